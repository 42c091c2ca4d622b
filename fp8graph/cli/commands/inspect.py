"""Shows what is in a model, plan, ranges, engine or attestation.

The kind is detected. Plans and attestations open without ONNX installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.base.names import OpPattern
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
    patterns = [_pattern(text) for text in args.op or ()]
    from fp8graph import flow
    from fp8graph.report import listing

    document: Mapping[str, Any] = flow.inspect(args.file)
    if patterns:
        document = _narrowed(document, patterns)
    return Outcome(text=listing.inside(document, show=args.show or (), paint=console.paint), result=document)


def _pattern(text: str) -> OpPattern:
    try:
        return OpPattern(text)
    except ValueError as error:
        raise UsageError(str(error), where="--op", do="quote it for the shell: --op 're:...'", code="FG100") from error


def _narrowed(document: Mapping[str, Any], patterns: list[OpPattern]) -> dict[str, Any]:
    """The document with only the rows that a pattern selects. Raises UsageError FG109 where one selects none."""
    hit: set[str] = set()

    def selected(key: str, row: Mapping[str, Any]) -> bool:
        name, op_type = str(row.get("name", "")), str(row.get("op_type", row.get("type", "")))
        matching = [pattern.text for pattern in patterns if pattern.matches(key, name, op_type)]
        hit.update(matching)
        return bool(matching)

    out: dict[str, Any] = {}
    for section, value in document.items():
        if isinstance(value, list) and any(isinstance(row, Mapping) and "key" in row for row in value):
            out[section] = [row for row in value if isinstance(row, Mapping) and selected(str(row.get("key", "")), row)]
        elif isinstance(value, Mapping) and any(
            isinstance(row, Mapping) and "op_type" in row for row in value.values()
        ):
            out[section] = {key: row for key, row in value.items() if isinstance(row, Mapping) and selected(key, row)}
        elif not isinstance(value, Mapping | list):
            out[section] = value
    for pattern in patterns:
        if pattern.text not in hit:
            raise UsageError(
                f"the pattern '{pattern.text}' matches no op",
                where="--op",
                why="globs are matched against key and node name",
                do="leave --op out to see all of them",
                code="FG109",
            )
    return out
