"""Lists versions, devices and usable targets, and why the others are not.

No backend is imported to find that out, except in a child process. Status 1 where a required target is missing.
"""

from __future__ import annotations

import argparse

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.parser import Parser

USAGE = "doctor [--require TARGET ...]"
EXAMPLES = ("doctor", "doctor --require tensorrt-rtx")


def configure(parser: Parser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("doctor")
    group.add_argument(
        "--require", nargs="+", action="extend", metavar="TARGET", help="status 1 where it is not usable"
    )


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.doctor`."""
    from fp8graph import flow
    from fp8graph.report import listing

    state = flow.doctor()
    usable = {target["name"]: bool(target["usable"]) for target in state["targets"]}
    for name in args.require or ():
        if name not in usable:
            raise UsageError(
                f"there is no target '{name}'", where="--require", do=did_you_mean(name, usable), code="FG101"
            )
    missing = [name for name in args.require or () if not usable[name]]
    return Outcome(
        text=listing.machine(state, missing=missing, paint=console.paint),
        result={**state, "missing": missing},
        status=1 if missing else 0,
    )
