"""Runs two models on the same data and measures how far they lie apart.

Each side may name a runner: m.onnx@onnxruntime is ONNX Runtime as users run it, the default is the exact reference.
Without a tolerance it measures: status 1 only where shapes or types differ, or B has a NaN or Inf where A has none.
With one, an element is close where its difference is within --atol or within --rtol times that of B.
--layers shows where the error starts: of each op what it adds by itself, and what has come together by then.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fp8graph.base.errors import UsageError
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Data, Tolerance
from fp8graph.cli.parser import Parser

if TYPE_CHECKING:
    from fp8graph.base.files import WrittenFile

USAGE = "compare A B --data URI ... [--min-sqnr DB] [--atol X] [--rtol X]"
EXAMPLES = (
    "compare m.onnx m.fp8.onnx --data eval.npz --min-sqnr 25",
    "compare m.onnx m.fp8.onnx@onnxruntime --data eval.npz --json",
    "compare m.onnx m.fp8.onnx --data eval.npz --layers",
    "compare m.onnx m.fp8.onnx --data eval.npz --atol 1e-2 logits:1e-1 --rtol 1e-2 --check-error-stat mean",
    "compare m.onnx --data eval.npz --save-outputs m.npz",
    "compare m.fp8.onnx --data eval.npz --load-outputs m.npz",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("what is compared")
    group.add_argument("a", nargs="?", metavar="A", help="the reference: FILE or FILE@RUNNER")
    group.add_argument("b", nargs="?", metavar="B", help="what is measured against it")
    group.add_argument("--save-outputs", metavar="F", help="write what A gives as .npz; without B nothing is compared")
    group.add_argument("--load-outputs", metavar="F", help="take A's outputs from there; A need not be named then")
    group.add_argument("--layers", action="store_true", help="also the error of each layer, local and accumulated")
    group.add_argument("--force", action="store_true", help="overwrite files that exist")
    Tolerance.add(parser)
    Data.add(parser)


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.compare`."""
    alone = args.save_outputs is not None or args.load_outputs is not None
    if not args.a or not (args.b or alone):
        raise UsageError(
            "'compare' needs two models",
            where="python -m fp8graph compare",
            do="python -m fp8graph compare A B --data FILE",
            code="FG100",
        )
    data = Data.read(args, "compare", needed=True)
    bounds = Tolerance.read(args)
    from fp8graph import flow

    found = flow.compare(
        args.a,
        args.b,
        **data,
        **bounds,
        save_outputs=args.save_outputs,
        load_outputs=args.load_outputs,
        layers=args.layers,
        force=args.force,
        progress=console.progress,
    )
    new = [name for name, item in found.outputs.items() if item.new_nonfinite]
    return Outcome(
        text=_summary(args, found, console),
        result=found.to_json(),
        status=1 if found.missed or found.problems or new else 0,
        files=_files(args),
    )


def _files(args: argparse.Namespace) -> tuple[WrittenFile, ...]:
    from pathlib import Path

    from fp8graph.base.files import describe

    return () if args.save_outputs is None else (describe(Path(args.save_outputs)),)


def _summary(args: argparse.Namespace, found: Any, console: Console) -> str:
    from fp8graph.report import text
    from fp8graph.report.tables import count

    if args.b is None and args.save_outputs is not None:
        return f"wrote what {args.a} gives for {count(found.samples, 'sample')}: {args.save_outputs}"
    sides = (args.a, args.b) if args.b is not None else (args.load_outputs, args.a)
    return text.compared(found, a=sides[0], b=sides[1], missed=found.missed, paint=console.paint)
