"""Shows what is in a model, plan, ranges, engine or attestation.

The kind is detected. Plans and attestations open without ONNX installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.parser import Parser

USAGE = "inspect FILE [--show io|ops|scales|layers] [--op PATTERN]"
EXAMPLES = (
    "inspect m.onnx --show io",
    "inspect m.fp8.onnx.plan.json --op 'layers.0/*'",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("file")
    group.add_argument("file", nargs="?", metavar="FILE", help="model, plan, ranges, engine or attestation")
    group.add_argument(
        "--show",
        type=values.choice("io", "ops", "scales", "layers"),
        nargs="+",
        action="extend",
        metavar="WHAT",
        help="io, ops, scales or layers only",
    )
    group.add_argument(
        "--op", nargs="+", action="extend", metavar="PATTERN", help="only these: globs, key:, name:, type:, re:"
    )


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.inspect`."""
    if not args.file:
        raise UsageError(
            "'inspect' needs a file",
            where="python -m fp8graph inspect",
            do="python -m fp8graph inspect FILE",
            code="FG100",
        )
    from fp8graph import flow
    from fp8graph.report import listing

    document: Mapping[str, Any] = flow.inspect(args.file, show=args.show, op=args.op)
    text = listing.inside(document, show=args.show or (), narrowed=bool(args.op), paint=console.paint)
    return Outcome(text=text, result=document)
