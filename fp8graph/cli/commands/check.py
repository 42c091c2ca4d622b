"""Reports what keeps a model's Q/DQ from running in low precision.

Works on anybody's Q/DQ model. One line for each finding, its code first; status 1 from severity `warning` upwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Model, Policy
from fp8graph.cli.parser import Parser

USAGE = "check MODEL [--plan P] [--target T] [--select FG3] [--ignore FG301]"
EXAMPLES = (
    "check theirs.onnx --target tensorrt-rtx:sm89",
    "check m.fp8.onnx --select FG3 --ignore FG304 --json",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    Model.add(parser)
    group = parser.add_argument_group("check")
    group.add_argument("--plan", metavar="P", help="its plan, whose target counts where none is named")
    Policy.target(group)
    group.add_argument("--select", nargs="+", action="extend", metavar="CODE", help="only codes that begin so")
    group.add_argument("--ignore", nargs="+", action="extend", metavar="CODE", help="not codes that begin so")
    group.add_argument("--exit-zero", action="store_true", help="status 0 whatever is found")
    group.add_argument(
        "--output-format", type=values.choice("text", "json"), default="text", metavar="HOW", help="text or json"
    )


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.check`."""
    model = Model.read(args, "check")
    select, ignore = _prefixes(args.select, "--select"), _prefixes(args.ignore, "--ignore")
    from fp8graph import flow
    from fp8graph.report import text

    findings = tuple(
        item
        for item in flow.check(model, plan=args.plan, target=args.target)
        if (not select or item.code.startswith(select)) and not (ignore and item.code.startswith(ignore))
    )
    bad = any(item.severity != "info" for item in findings)
    return Outcome(
        text=text.checked(findings, model=model, paint=console.paint),
        result={"model": model},
        status=1 if bad and not args.exit_zero else 0,
        findings=findings,
    )


def _prefixes(given: Iterable[str] | None, option: str) -> tuple[str, ...]:
    """Beginnings of codes. Raises UsageError for one of ours with which no code begins."""
    from fp8graph.base.codes import CODES

    found = tuple(part.strip().upper() for text in given or () for part in text.split(",") if part.strip())
    for prefix in found:
        if prefix.startswith("FG") and not any(code.startswith(prefix) for code in CODES):
            raise UsageError(
                f"no code begins with '{prefix}'", where=option, do=did_you_mean(prefix, CODES), code="FG101"
            )
    return found
