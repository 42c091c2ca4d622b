"""Lists recipes, shows one, or validates a file.

`recipes show NAME` prints TOML that can be saved, changed and given to --recipe.
"""

from __future__ import annotations

import argparse

from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Page
from fp8graph.cli.parser import Parser

USAGE = "recipes [show NAME | validate FILE.toml]"
EXAMPLES = ("recipes", "recipes show fp8-default > mine.toml", "recipes validate mine.toml")


def configure(parser: Parser) -> None:
    """Declares the options."""
    Page.add(parser, "NAME", "a recipe by name, or a TOML file", verbs=("show", "validate"))


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Reads packaged recipes, or a file."""
    from fp8graph.data import recipe
    from fp8graph.report import listing

    name = Page.read(args, "recipes", verbs=("show", "validate"))
    if name is None:
        found = [recipe.load(one) for one in recipe.names()]
        return Outcome(
            text=listing.catalogue([(item.name, item.summary) for item in found], paint=console.paint),
            result={"recipes": [{"name": item.name, "summary": item.summary} for item in found]},
        )
    one = recipe.load(name)
    if args.verb == "show":
        return Outcome(text=_source(name).rstrip(), result={"recipe": one.to_json()})
    from fp8graph.core import policy

    policy.whole(one, policy.steps(one)[1])
    return Outcome(
        text=f"{name} is a valid recipe, called '{one.name}'", result={"recipe": one.to_json(), "valid": True}
    )


def _source(name: str) -> str:
    """The recipe as it was written, comments included."""
    from importlib import resources
    from pathlib import Path

    from fp8graph.base.files import read_text
    from fp8graph.data import recipe

    if name in recipe.names():
        return resources.files("fp8graph.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return read_text(Path(name), "the recipe")
