"""Measures how fast engines are on the GPU of this machine.

A and B are measured in turn, round after round; the speedup of B over A comes with the interval that holds it with
95 % confidence. Status 1 where even its lower end is below --min-speedup, 4 where there is no GPU.
"""

from __future__ import annotations

import argparse

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.parser import Parser
from fp8graph.cli.shaping import Shapes

USAGE = "bench A [B] [--shapes X:SHAPE] [--min-speedup X]"
EXAMPLES = (
    "bench m.fp16.engine m.fp8.engine --min-speedup 1.2",
    "bench m.engine --shapes x:8x3x224x224 --json",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("what is measured")
    group.add_argument("a", nargs="?", metavar="A", help="an engine")
    group.add_argument("b", nargs="?", metavar="B", help="another one, measured against it")
    group.add_argument("--min-speedup", type=values.number, metavar="X", help="status 1 where B is not X times as fast")
    group.add_argument("--rounds", type=values.whole(6), default=11, metavar="N", help="A and B in turn N times (11)")
    Shapes.add(parser)


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.bench`."""
    if not args.a or (args.min_speedup is not None and not args.b):
        raise UsageError(
            "'bench' needs an engine" if not args.a else "--min-speedup speaks of a second engine",
            where="python -m fp8graph bench",
            do="python -m fp8graph bench A [B]",
            code="FG100",
        )
    shapes = Shapes.read(args)
    from fp8graph import flow
    from fp8graph.report import timing

    done = flow.bench(args.a, args.b, shapes=shapes, rounds=args.rounds, progress=console.progress)
    missed = args.min_speedup is not None and not done.benchmark.faster_by(args.min_speedup)
    return Outcome(
        text=timing.benched(
            done.to_json(), a=args.a, b=args.b or "", least=args.min_speedup, missed=missed, paint=console.paint
        ),
        result={**done.to_json(), "min_speedup": args.min_speedup, "missed": missed},
        status=1 if missed else 0,
    )
