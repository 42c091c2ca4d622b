"""Lists passes and rules with their owners, or shows the page of one.

Nothing is imported for the list: names and summaries are read from the source files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Page
from fp8graph.cli.parser import Parser

if TYPE_CHECKING:
    from fp8graph.core.registry import PassOption

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
    options = one.options
    return Outcome(
        text=f"{console.paint('bold', one.name)}  of {one.owner}\n\n{one.page}\n\n{_options(one.name, options)}",
        result={
            "name": one.name,
            "owner": one.owner,
            "summary": one.summary,
            "page": one.page,
            "options": [asdict(item) for item in options],
        },
    )


def _options(name: str, options: Sequence[PassOption]) -> str:
    if not options:
        return "It has no options."
    width = max(len(item.name) for item in options)
    lines = ["Options"]
    for item in options:
        default = f"default {item.default}" if item.default else "must be given"
        lines.append(f"  {item.name:<{width}}  {item.type}, {default}: {item.means}")
    first = options[0]
    return "\n".join([*lines, "", f"Type it --passes '{name}{{{first.name}={first.default or '...'}}}'"])
