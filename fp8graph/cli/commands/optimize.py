"""Plans, calibrates and writes the FP8 model, with a reason for every operator.

Writes OUT, OUT.plan.json and, where weights are external, OUT.data. A plan replays with --plan, byte for byte and
without data.
"""

from __future__ import annotations

import argparse
from typing import Any

from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Data, Goal, Model, Output, Policy, Scales, Select
from fp8graph.cli.parser import Parser
from fp8graph.cli.shaping import Shapes

USAGE = "optimize MODEL -o OUT [--target T] [--recipe R] [--data URI ...] [options]"
EXAMPLES = (
    "optimize m.onnx -o m.fp8.onnx --target tensorrt-rtx --data calib.npz",
    "optimize m.onnx -o m.fp8.onnx --plan-only",
    "optimize m.onnx -o again.onnx --plan m.fp8.onnx.plan.json",
    "optimize m.onnx -o m.fp8.onnx --data calib.npz --min-sqnr 30 --curve curve.svg",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    Model.add(parser, output="the model to write", storage=True)
    group = parser.add_argument_group("plan")
    Policy.recipe(parser, group)
    Policy.target(group)
    group.add_argument(
        "--plan", metavar="FILE", help="carry out this plan: it brings target, recipe, shapes and numbers"
    )
    group.add_argument("--ranges", metavar="FILE", help="take ranges from `calibrate` instead of observing anew")
    group.add_argument("--plan-only", action="store_true", help="write OUT.plan.json and stop")
    Policy.passes(group)
    group.add_argument("--allow-unquantized", action="store_true", help='"nothing to do" is status 0')
    group.add_argument("--verify", action="store_true", help="check the model after every pass")
    group.add_argument("--no-compare", action="store_true", help="do not compare OUT with MODEL at the end")
    parser.add_argument("--dq-only", action="store_true", help=argparse.SUPPRESS)  # ModelOpt's; always done
    Data.add(parser)
    Scales.add(parser)
    Select.add(parser)
    Goal.add(parser)
    Shapes.add(parser)


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.optimize`."""
    model = Model.read(args, "optimize")
    output = Output.read(args, "optimize")
    asked = {**Data.read(args, "optimize"), **Scales.read(args), **Select.read(args)}
    asked["shapes"] = Shapes.read(args)
    from fp8graph import flow

    done = flow.optimize(
        model,
        **output,
        **asked,
        recipe=Policy.recipe_name(args),
        target=args.target,
        plan=args.plan,
        ranges=args.ranges,
        plan_only=args.plan_only,
        **Policy.read_passes(args),
        allow_unquantized=args.allow_unquantized,
        verify=args.verify,
        compare=not args.no_compare,
        **Goal.read(args),
        external_data_size_threshold=args.external_data_size_threshold,
        progress=console.progress,
    )
    plan_path = next((file.path for file in done.files if file.path.endswith(".plan.json")), args.plan)
    return Outcome(
        text=_summary(args, model, plan_path, done, console),
        result={
            "planned": done.planned,
            "planned_by": dict(done.planned_by),
            "kept": done.kept,
            "plan": plan_path,
            "target": done.plan.target,
            "recipe": done.plan.recipe.get("name"),
            "comparison": _comparison(done),
            "onnxruntime_default": done.default_session.to_json() if done.default_session else None,
            "search": dict(done.plan.search) or None,
            "seconds": dict(done.seconds),
        },
        files=done.files,
        findings=done.findings,
    )


def _comparison(done: Any) -> dict[str, Any] | None:
    if done.comparison is None:
        return None
    return {name: item.to_json() for name, item in done.comparison.outputs.items()}


def _summary(args: argparse.Namespace, model: str, plan_path: str | None, done: Any, console: Console) -> str:
    from fp8graph.report import text

    return text.optimized(
        done.plan,
        source=model,
        output=str(plan_path) if args.plan_only else args.output,
        files=done.files,
        findings=done.findings,
        comparison=done.comparison,
        default_session=done.default_session,
        seconds=done.seconds,
        source_bytes=None if args.plan_only else _size(model),
        samples=_learned(done),
        next_command=_next(args, model, plan_path, done.plan),
        paint=console.paint,
    )


def _learned(done: Any) -> int | None:
    """How many samples scales were taken from: a search holds some back."""
    if done.plan.search.get("scales_from"):
        return int(done.plan.search["scales_from"])
    return done.comparison.samples if done.comparison else None


def _size(model: str) -> int | None:
    """Bytes of the model and of a data file beside it that is called like it."""
    from pathlib import Path

    path = Path(model)
    found = [one for one in (path, Path(f"{path}.data"), Path(f"{path}_data")) if one.is_file()]
    return sum(one.stat().st_size for one in found) or None


def _next(args: argparse.Namespace, model: str, plan_path: str | None, plan: Any) -> str:
    import shlex
    from pathlib import Path

    from fp8graph.data import target

    out = shlex.quote(args.output)
    given = shlex.join(args.data) if args.data else "FILE"
    if args.plan_only:
        data = "" if plan.settled else f" --data {given}"
        return f"python -m fp8graph optimize {shlex.quote(model)} -o {out} --plan {shlex.quote(str(plan_path))}{data}"
    if not target.load(plan.target).builder:
        return f"python -m fp8graph compare {shlex.quote(model)} {out} --data {given}"
    engine = shlex.quote(str(Path(args.output).with_suffix(".engine")))
    return f"python -m fp8graph build {out} -o {engine} --target {_buildable(plan.target)} --attest"


def _buildable(asked: str) -> str:
    """The target as `build` takes it on this machine: without a GPU of its own it wants chips to be named."""
    from fp8graph.data import target
    from fp8graph.engines import probe

    aim = target.load(asked)
    if ":" in asked or aim.builder == "tensorrt" or probe.devices():  # tensorrt builds for the machine's GPU alone
        return asked
    return f"{asked}:{'+'.join(aim.chips)}" if aim.chips else asked
