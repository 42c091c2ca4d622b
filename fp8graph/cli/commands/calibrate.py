"""Observes the ranges that a plan needs and writes them for later runs.

Give --plan, or the same --recipe, --target, --passes and selection as to `optimize` later: another plan needs other
tensors. `optimize --ranges` takes the ranges instead of data, as often as you like. Random data is recorded as such.
Ctrl-C leaves OUT.resume, from which the same command with --resume goes on.
"""

from __future__ import annotations

import argparse
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Data, Model, Output, Policy, Scales, Select
from fp8graph.cli.parser import Parser

USAGE = "calibrate MODEL -o R.json --data URI ... [--shard I/N] [--resume] [options]"
EXAMPLES = (
    "calibrate m.onnx -o r.json --data calib.npz",
    "calibrate m.onnx -o r.json --data calib/ --plan m.fp8.onnx.plan.json --samples 128",
    "calibrate m.onnx -o r0.json --data calib/ --shard 0/4",
    "calibrate --merge r0.json r1.json r2.json r3.json -o r.json",
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
    Parts.add(parser)
    Scales.add(parser)
    Select.add(parser)


class Parts:
    """The data in parts."""

    @staticmethod
    def add(parser: Parser) -> None:
        """Declares the options."""
        group = parser.add_argument_group("parts")
        group.add_argument("--shard", metavar="I/N", help="only every N-th sample, from the I-th on (0 is the first)")
        group.add_argument(
            "--merge",
            nargs="+",
            action="extend",
            metavar="R.json",
            help="join the ranges of all shards, bit-equal to one run; no MODEL and no data",
        )
        group.add_argument("--resume", action="store_true", help="go on from OUT.resume, where there is one")

    @staticmethod
    def read(args: argparse.Namespace) -> dict[str, Any]:
        """shard, resume."""
        return {"shard": args.shard, "resume": args.resume}


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.calibrate`."""
    output = Output.read(args, "calibrate")
    if args.merge:
        return _merge(args, output, console)
    model = Model.read(args, "calibrate")
    data = Data.read(args, "calibrate", needed=True)
    from fp8graph import flow

    done = flow.calibrate(
        model,
        **output,
        **data,
        **Parts.read(args),
        **Scales.read(args),
        plan=args.plan,
        **Select.read(args),
        **Policy.read_passes(args),
        recipe=Policy.recipe_name(args),
        target=args.target,
        progress=console.progress,
    )
    return _outcome(args, model, done, "" if args.shard else _next(args, model), console)


def _merge(args: argparse.Namespace, output: dict[str, Any], console: Console) -> Outcome:
    """Joins ranges; whatever says how to observe is a contradiction."""
    given = args.model or args.model_option or args.data or args.shard or args.resume or args.plan
    if given:
        raise UsageError(
            "--merge joins ranges and observes nothing",
            where="python -m fp8graph calibrate --merge",
            why=f"'{given if isinstance(given, str) else 'options about data'}' was given, too",
            do="leave out MODEL, --plan, --data, --shard and --resume",
            code="FG100",
        )
    from fp8graph import flow

    done = flow.calibrate(None, data=None, merge=tuple(args.merge), **output)
    return _outcome(args, ", ".join(args.merge), done, "", console)


def _outcome(args: argparse.Namespace, model: str, done: Any, then: str, console: Console) -> Outcome:
    from fp8graph.report import text

    samples, tensors = done.ranges.samples, len(done.ranges.values)
    return Outcome(
        text=text.calibrated(
            model=model,
            tensors=tensors,
            samples=samples,
            files=done.files,
            findings=done.findings,
            next_command=then,
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
    words += ["--calibration-method", args.calibration_method] if args.calibration_method else []
    return "python -m fp8graph " + shlex.join([*words, *Select.typed(args)])
