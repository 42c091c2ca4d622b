"""Runs two models on the same data and measures how far they lie apart.

Each side may name a runner: m.onnx@onnxruntime is ONNX Runtime as users run it, the default is the exact reference.
Without a tolerance it measures: status 1 only where shapes or types differ, or B has a NaN or Inf where A has none.
"""

from __future__ import annotations

import argparse
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Data
from fp8graph.cli.parser import Parser

USAGE = "compare A B --data URI ... [--min-sqnr DB] [--atol X]"
EXAMPLES = (
    "compare m.onnx m.fp8.onnx --data eval.npz --min-sqnr 25",
    "compare m.onnx m.fp8.onnx@onnxruntime --data eval.npz --json",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("what is compared")
    group.add_argument("a", nargs="?", metavar="A", help="the reference: FILE or FILE@RUNNER")
    group.add_argument("b", nargs="?", metavar="B", help="what is measured against it")
    tolerance = parser.add_argument_group("tolerance", "one number for all outputs, or OUTPUT:NUMBER")
    for option, metavar, what in (
        ("--min-sqnr", "DB", "least signal to noise ratio, in dB"),
        ("--atol", "X", "largest absolute difference"),
    ):
        tolerance.add_argument(option, type=values.bound, nargs="+", action="extend", metavar=metavar, help=what)
    Data.add(parser)


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.compare`."""
    if not (args.a and args.b):
        raise UsageError(
            "'compare' needs two models",
            where="python -m fp8graph compare",
            do="python -m fp8graph compare A B --data FILE",
            code="FG100",
        )
    data = Data.read(args, "compare", needed=True)
    from fp8graph import flow
    from fp8graph.report import text

    found = flow.compare(args.a, args.b, **data, progress=console.progress)
    missed = _missed(found, dict(args.min_sqnr or ()), dict(args.atol or ()))
    new = [name for name, item in found.outputs.items() if item.new_nonfinite]
    return Outcome(
        text=text.compared(found, a=args.a, b=args.b, missed=missed, paint=console.paint),
        result={**found.to_json(), "missed": missed},
        status=1 if missed or found.problems or new else 0,
    )


def _missed(found: Any, sqnr: dict[str, float], atol: dict[str, float]) -> list[str]:
    """Sentences about bounds that do not hold. What cannot be shown to hold does not."""
    for option, bounds in (("--min-sqnr", sqnr), ("--atol", atol)):
        for name in bounds:
            if name and name not in found.outputs:
                raise UsageError(
                    f"there is no output '{name}'", where=option, do=did_you_mean(name, found.outputs), code="FG101"
                )
    missed = []
    for name, item in found.outputs.items():
        if item.equal:
            continue
        least, most = sqnr.get(name, sqnr.get("")), atol.get(name, atol.get(""))
        if item.sqnr_db is None and name not in sqnr and most is not None:
            least = None  # it has no SQNR, and the other bound speaks about it
        if least is not None and item.sqnr_db is None:
            missed.append(f"{name}: differs and has no SQNR; bound it by --atol '{name}:X', or name the other outputs")
        elif least is not None and item.sqnr_db < least:
            missed.append(f"{name}: SQNR {item.sqnr_db:.2f} dB is below {least:g} dB")
        if most is not None and (item.max_abs is None or not item.max_abs <= most):
            missed.append(f"{name}: largest difference {item.max_abs} is above {most:g}")
    return missed
