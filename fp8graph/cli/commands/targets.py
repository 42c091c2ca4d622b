"""Lists targets, or shows what one can run and which source says so."""

from __future__ import annotations

import argparse

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Page
from fp8graph.cli.parser import Parser

USAGE = "targets [show NAME[:CHIP...] [--op TYPE]]"
EXAMPLES = ("targets", "targets show tensorrt-rtx --op MatMul")


def configure(parser: Parser) -> None:
    """Declares the options."""
    group = Page.add(parser, "NAME", "a target, such as tensorrt-rtx:sm89")
    group.add_argument("--op", metavar="TYPE", help="with show: only rows about this operator type")


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Reads the packaged tables."""
    from fp8graph.data import target
    from fp8graph.report import listing

    spec = Page.read(args, "targets")
    if spec is None:
        found = [target.load(name) for name in target.names()]
        rows = [
            {
                "name": item.name,
                "summary": item.summary,
                "chips": [chip for chip, fp8 in item.all_chips.items() if fp8],
                "builder": item.builder,
            }
            for item in found
        ]
        text = listing.catalogue([(item.name, item.summary) for item in found], paint=console.paint)
        return Outcome(text=text, result={"targets": rows})
    one = target.load(spec)
    types = {op for ops in (*(r.ops for r in one.rows), *(r.ops for r in one.qdq.refused)) for op in ops}
    if args.op is not None and args.op not in types:
        raise UsageError(
            f"the table of '{one.name}' has no row for '{args.op}'",
            where="--op",
            why=f"{one.name} refuses what it has no row for",
            do=did_you_mean(args.op, types),
            code="FG101",
        )
    chosen = [
        row
        for row in one.rows
        if (args.op is None or args.op in row.ops)
        and (not row.chips or not one.chips or set(row.chips) & set(one.chips))
    ]
    return Outcome(
        text=listing.target_page(one, chosen, op_type=args.op, paint=console.paint),
        result={
            "name": one.name,
            "summary": one.summary,
            "chips": dict(one.all_chips),
            "builder": one.builder,
            "opset": one.opset,
            "ir_version": one.ir_version,
            "through": list(one.through),
            "rows": [listing.row_json(row) for row in chosen],
            "types": [vars(item) for item in one.types if args.op in (None, *item.ops)],
            "epilogues": [vars(item) for item in one.epilogues if args.op in (None, *item.ops)],
            "imports": list(one.qdq.imports) if one.qdq.imports is not None else None,
            "not_imported": [vars(item) for item in one.qdq.refused if args.op in (None, *item.ops)],
        },
    )
