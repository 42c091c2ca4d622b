"""Joins plan, comparison and attestation by operator.

What was planned and why, what the engine does, what it costs. Takes a plan, and what attest, compare,
build --attest or optimize printed by --json. Recomputes nothing.
"""

from __future__ import annotations

import argparse

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Output
from fp8graph.cli.parser import Parser

USAGE = "report FILES... [--format text|md|html|json] [-o F]"
EXAMPLES = (
    "report m.fp8.onnx.plan.json attest.json compare.json",
    "report m.fp8.onnx.plan.json attest.json --format html -o report.html",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("report")
    group.add_argument("files", nargs="*", metavar="FILES", help="plan, attestation, comparison, results of --json")
    group.add_argument(
        "--format",
        type=values.choice("text", "md", "html", "json"),
        default="text",
        metavar="HOW",
        help="text, md, html or json",
    )
    Output.add(parser, group, "where it is written (else printed)")


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.report`."""
    if not args.files:
        raise UsageError(
            "'report' needs files",
            where="python -m fp8graph report",
            do="python -m fp8graph report PLAN ATTESTATION COMPARISON",
            code="FG100",
        )
    from fp8graph import flow
    from fp8graph.report import pages

    done = flow.report(args.files, format=args.format, output=args.output, force=args.force)
    text = pages.text(done.report, paint=console.paint) if args.format == "text" else done.text
    if done.files:
        text = f"wrote {done.files[0].path}"
    return Outcome(text=text.rstrip("\n"), result=done.report.to_json(), files=done.files)
