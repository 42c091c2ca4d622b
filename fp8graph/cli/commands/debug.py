"""Finds the smallest set of operators that has to stay in high precision.

What is good is said by bounds on the outputs (--min-sqnr, --atol, --rtol: against MODEL on --data), or by a command of
your own: the model of each step lies as fp8graph_debug.onnx in the working folder, and status 0 means good. First it is
verified that keeping everything is good and keeping nothing is bad. Operators that can only be quantized together
(attention, what shares a Concat's scale) are kept together. OUT is a recipe with a [[keep]] line for each operator.
Ctrl-C leaves OUT.resume, from which the same command with --resume goes on.
"""

from __future__ import annotations

import argparse
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Data, Model, Output, Tolerance
from fp8graph.cli.parser import Parser

USAGE = "debug precision MODEL --plan P -o keep.toml [--min-sqnr DB --data URI ... | --check CMD ...]"
EXAMPLES = (
    "debug precision m.onnx --plan m.fp8.onnx.plan.json -o keep.toml --data eval.npz --min-sqnr 30",
    "debug precision m.onnx --plan m.fp8.onnx.plan.json -o keep.toml --check python eval.py fp8graph_debug.onnx",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument("what", nargs="?", metavar="precision", help="what is searched for")
    Model.add(parser, output="the keep-list to write, a recipe (.toml)")
    group = parser.add_argument_group("search")
    group.add_argument("--plan", metavar="FILE", help="the plan whose operators are tried in high precision")
    group.add_argument(
        "--mode", type=values.choice("bisect", "linear"), default="bisect", metavar="HOW", help="bisect, or linear"
    )
    group.add_argument(
        "--dir",
        type=values.choice("forward", "reverse", "sensitive"),
        metavar="HOW",
        help="kept first: forward (from the inputs on), reverse, or sensitive (what FP8 costs most on --data; the "
        "default without --check)",
    )
    group.add_argument("--resume", action="store_true", help="go on from OUT.resume, where there is one")
    Check.add(parser)
    Tolerance.add(parser)
    Data.add(parser)


class Check:
    """The user's own judge."""

    @staticmethod
    def add(parser: Parser) -> None:
        """Declares the options; --check takes the rest of the line."""
        group = parser.add_argument_group("check", "names and meaning as in Polygraphy")
        parser.option(
            group,
            "--fail-code",
            nargs="+",
            action="extend",
            type=values.whole(),
            metavar="N",
            known_as=("--fail-codes",),
            help="statuses that mean bad; all others are good then",
        )
        group.add_argument(
            "--fail-regex",
            nargs="+",
            action="extend",
            metavar="RE",
            help="bad is only where one is found in what CMD prints",
        )
        group.add_argument("--check", nargs=argparse.REMAINDER, metavar="CMD", help="the command; last on the line")

    @staticmethod
    def read(args: argparse.Namespace) -> dict[str, Any]:
        """check, fail_code, fail_regex."""
        names = ("check", "fail_code", "fail_regex")
        return {name: tuple(value) if (value := getattr(args, name)) is not None else None for name in names}


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.debug_precision`."""
    if args.what != "precision":
        raise UsageError(
            f"'debug' does not know '{args.what}'" if args.what else "'debug' needs to know what to search for",
            where="python -m fp8graph debug",
            do=f"python -m fp8graph {EXAMPLES[0]}",
            code="FG100",
        )
    model = Model.read(args, "debug precision")
    output = Output.read(args, "debug precision")
    if args.plan is None:
        raise UsageError(
            "'debug precision' needs a plan",
            where="python -m fp8graph debug precision",
            why="the operators that it quantizes are what is tried in high precision",
            do="add --plan OUT.plan.json, which optimize writes beside OUT",
            code="FG100",
        )
    check, data, bounds = Check.read(args), Data.read(args, "debug precision"), Tolerance.read(args)
    from fp8graph import flow

    done = flow.debug_precision(
        model,
        plan=args.plan,
        **output,
        mode=args.mode,
        dir=args.dir,
        **check,
        **data,
        **bounds,
        resume=args.resume,
        progress=console.progress,
    )
    from fp8graph.report import debugging

    found, then = done.to_json(), _next(args, model, done.plan)
    return Outcome(
        text=debugging.debugged(found, model=model, files=done.files, next_command=then, paint=console.paint),
        result=found,
        files=done.files,
        findings=done.findings,
    )


def _next(args: argparse.Namespace, model: str, plan: Any) -> str:
    """`optimize` with the keep-list, and what the plan was asked for beside its recipe."""
    import shlex

    words = ["optimize", model, "-o", "OUT", "--recipe", args.output, "--target", plan.target]
    for name, value in plan.asked.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            words.append(option)
        elif isinstance(value, (list, tuple)):
            words += [option, *map(str, value)]
        elif isinstance(value, str):
            words += [option, value]
    return "python -m fp8graph " + shlex.join([*words, "--data", "FILE"])
