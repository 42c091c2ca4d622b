"""Lists passes and rules with their owners, or shows the page of one.

Nothing is imported for the list: names and summaries are read from the source files.
"""

from __future__ import annotations

import argparse

from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Page
from fp8graph.cli.parser import Parser

USAGE = "passes [show [OWNER:]NAME]"
EXAMPLES = ("passes", "passes show insert-qdq")


def configure(parser: Parser) -> None:
    """Declares the options."""
    Page.add(parser, "NAME", "a pass or rule")


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Asks the registry."""
    from fp8graph.core import registry
    from fp8graph.report import listing

    name = Page.read(args, "passes")
    if name is None:
        found = registry.catalog()
        return Outcome(
            text=listing.catalogue([(item.name, item.owner, item.summary) for item in found], paint=console.paint),
            result={"passes": [{"name": item.name, "owner": item.owner, "summary": item.summary} for item in found]},
        )
    one = registry.entry(name)
    return Outcome(
        text=f"{console.paint('bold', one.name)}  of {one.owner}\n\n{one.page}",
        result={"name": one.name, "owner": one.owner, "summary": one.summary, "page": one.page},
    )
