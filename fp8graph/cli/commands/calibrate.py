"""Observes the ranges that a plan needs and writes them for later runs.

Give --plan, or the same --recipe, --target, --passes and selection as to `optimize` later: another plan needs other
tensors. `optimize --ranges` takes the ranges instead of data, as often as you like. Random data is recorded as such.
"""

from __future__ import annotations

import argparse

from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Data, Model, Output, Policy, Select
from fp8graph.cli.parser import Parser

USAGE = "calibrate MODEL -o R.json --data URI ... [options]"
EXAMPLES = (
    "calibrate m.onnx -o r.json --data calib.npz",
    "calibrate m.onnx -o r.json --data calib/ --plan m.fp8.onnx.plan.json --samples 128",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    Model.add(parser, output="the ranges to write")
    group = parser.add_argument_group("plan")
    group.add_argument("--plan", metavar="FILE", help="observe only what this plan needs")
    Policy.recipe(parser, group)
    Policy.target(group)
    Policy.passes(group)
    Data.add(parser)
    Select.add(parser)


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.calibrate`."""
    model = Model.read(args, "calibrate")
    output = Output.read(args, "calibrate")
    data = Data.read(args, "calibrate", needed=True)
    from fp8graph import flow
    from fp8graph.report import text

    done = flow.calibrate(
        model,
        **output,
        **data,
        plan=args.plan,
        **Select.read(args),
        **Policy.read_passes(args),
        recipe=Policy.recipe_name(args),
        target=args.target,
        progress=console.progress,
    )
    samples = getattr(done.ranges, "samples", None)
    values = getattr(done.ranges, "values", None)
    tensors = len(values) if values is not None else None
    return Outcome(
        text=text.calibrated(
            model=model,
            tensors=tensors,
            samples=samples,
            files=done.files,
            findings=done.findings,
            next_command=_next(args, model),
            paint=console.paint,
        ),
        result={"ranges": args.output, "tensors": tensors, "samples": samples},
        files=done.files,
        findings=done.findings,
    )


def _next(args: argparse.Namespace, model: str) -> str:
    """`optimize` with what the ranges were observed for."""
    import shlex

    words = ["optimize", model, "-o", "OUT", "--ranges", args.output]
    for option in ("plan", "recipe", "target"):
        if value := getattr(args, option):
            words += [f"--{option}", value]
    return "python -m fp8graph " + shlex.join([*words, *Select.typed(args)])
