"""Ranks operators by what FP8 costs the model's output there.

Each quantized operator is measured alone, against the same model with nothing quantized, on as many samples as about
five plain evaluations of the data pay for; the costliest are split into what the weight and each input cost. --exact
measures every operator and operand on all samples. OUT is a recipe that keeps the first operators in high precision:
as many as --top says, or --keep-until needs, or else those that make half of the noise.
"""

from __future__ import annotations

import argparse
from typing import Any

from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Data, Goal, Model, Policy
from fp8graph.cli.parser import Parser

USAGE = "sensitivity MODEL --data URI ... [--plan P] [-o keep.toml] [--exact] [--keep-until 'sqnr>=30']"
EXAMPLES = (
    "sensitivity m.onnx --plan m.fp8.onnx.plan.json --data calib.npz",
    "sensitivity m.onnx --plan m.fp8.onnx.plan.json --data calib.npz -o keep.toml --keep-until 'sqnr>=30'",
    "sensitivity m.onnx --recipe fp8-full --target reference --data calib.npz --exact --json",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    Model.add(parser, output="the keep-list to write, a recipe (.toml)")
    group = parser.add_argument_group("plan", "what is measured: a plan, or what `optimize` would make of the rest")
    group.add_argument("--plan", metavar="FILE", help="the plan to measure")
    Policy.recipe(parser, group)
    Policy.target(group)
    group.add_argument(
        "--high-precision-dtype",
        type=values.choice("keep", "fp16", "bf16", "fp32"),
        metavar="TYPE",
        help="of what is not quantized: fp16, bf16, fp32 or keep (the model's own)",
    )
    how = parser.add_argument_group("measure")
    Goal.metric(how)
    how.add_argument("--exact", action="store_true", help="every operator and operand on all samples")
    how.add_argument("--top", type=values.whole(1), metavar="N", help="show, and keep, the first N")
    how.add_argument("--keep-until", metavar="BOUND", help="the shortest keep-list found that holds it, as 'sqnr>=30'")
    how.add_argument("--jobs", type=values.whole(1), metavar="N", help="runs at a time (one per core, at most 4)")
    Data.add(parser)


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.sensitivity`."""
    model = Model.read(args, "sensitivity")
    data = Data.read(args, "sensitivity", needed=True)
    from fp8graph import flow

    done = flow.sensitivity(
        model,
        **data,
        plan=args.plan,
        output=args.output,
        force=args.force,
        recipe=Policy.recipe_name(args),
        target=args.target,
        high_precision_dtype=args.high_precision_dtype,
        metric=args.metric,
        exact=args.exact,
        keep_until=args.keep_until,
        top=args.top,
        jobs=args.jobs,
        progress=console.progress,
    )
    from fp8graph.report import sensing

    found = done.to_json(args.top)
    return Outcome(
        text=sensing.ranked(
            found,
            model=model,
            files=done.files,
            findings=done.findings,
            next_command=_next(args, model),
            paint=console.paint,
        ),
        result=found,
        files=done.files,
        findings=done.findings,
    )


def _next(args: argparse.Namespace, model: Any) -> str:
    import shlex

    if not args.output:
        return ""
    words = ["optimize", str(model), "-o", "OUT", "--recipe", args.output, "--data", *args.data]
    words += ["--target", args.target] if args.target else []
    return "python -m fp8graph " + shlex.join(words)
