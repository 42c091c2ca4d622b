"""Prints the page of a code such as FG214.

Without a code: all of them, one line each.
"""

from __future__ import annotations

import argparse

from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.parser import Parser

USAGE = "explain [CODE ...]"
EXAMPLES = ("explain FG214", "explain")


def configure(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument_group("explain").add_argument("codes", nargs="*", metavar="CODE", help="such as FG214")


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Looks the codes up."""
    from fp8graph.base import codes
    from fp8graph.report import listing

    if args.codes:
        pages = [codes.find(code) for code in args.codes]
        return Outcome(
            text="\n\n".join(page.page for page in pages), result={"codes": [page.to_json() for page in pages]}
        )
    every = [codes.CODES[code] for code in sorted(codes.CODES)]
    return Outcome(
        text=listing.catalogue([(code.code, code.title) for code in every], paint=console.paint),
        result={"codes": [{"code": code.code, "title": code.title} for code in every]},
    )
