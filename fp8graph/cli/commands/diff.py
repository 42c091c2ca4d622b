"""Lays two plans, models or engines side by side: what changed.

Which ops changed precision, which scales moved, bytes by type. Two attestations and two ranges, too.
Status 0 where both hold the same, 1 where they differ or where one could not be read. What the files
are, such as the recipe's name or the builder's version, is shown and does not count.
"""

from __future__ import annotations

import argparse

from fp8graph.base.errors import UsageError
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.parser import Parser

USAGE = "diff A B [--op PATTERN]"
EXAMPLES = (
    "diff old.onnx.plan.json new.onnx.plan.json",
    "diff m.1.6.engine m.1.7.engine --json",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("files")
    group.add_argument("a", nargs="?", metavar="A", help="plan, model, engine, attestation or ranges: the old one")
    group.add_argument("b", nargs="?", metavar="B", help="one of the same kind: the new one")
    group.add_argument(
        "--op", nargs="+", action="extend", metavar="PATTERN", help="only these: globs, key:, name:, type:, re:"
    )


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.diff`."""
    if not (args.a and args.b):
        raise UsageError(
            "'diff' needs two files",
            where="python -m fp8graph diff",
            do="python -m fp8graph diff A B",
            code="FG100",
        )
    from fp8graph import flow
    from fp8graph.report import differences

    found = flow.diff(args.a, args.b, op=args.op)
    return Outcome(
        text=differences.differing(found, a=args.a, b=args.b, paint=console.paint),
        result=found.to_json(),
        status=0 if found.equal else 1,
    )
