"""Builds an engine from a model that `optimize` wrote.

Writes ENGINE, ENGINE.json (what it was built from and how) and ENGINE.log. The engine is strongly typed and carries
detailed layer information, so that it can be attested. The builder runs in a process of its own.

With --emit-script and without -o nothing is built: the script is for a machine that has the builder, and nothing else.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import CustomOps, Model, Output, Policy
from fp8graph.cli.parser import Parser
from fp8graph.cli.shaping import Shapes

USAGE = "build MODEL -o ENGINE [--emit-script F] [--target T] [--plan P] [shapes] [options]"
EXAMPLES = (
    "build m.fp8.onnx -o m.engine --target tensorrt-rtx --attest",
    "build m.fp8.onnx -o m.engine --min-shapes x:1x3x224x224 --opt-shapes x:8x3x224x224 --max-shapes x:32x3x224x224",
    "build m.fp8.onnx -o m.engine --profile 0 --shapes x:1x3x224x224 --profile 1 --shapes x:32x3x224x224",
    "build m.fp8.onnx --emit-script build_m.py --target tensorrt",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    model = Model.add(parser, output="the engine to write")
    CustomOps.add(parser, model)
    group = parser.add_argument_group("build")
    Policy.target(group)
    group.add_argument("--plan", metavar="P", help="its shapes are built for (MODEL.plan.json beside the model)")
    group.add_argument(
        "--attest", action="store_true", help="attest the engine at once; status 1 where it is not as planned"
    )
    group.add_argument("--timeout", type=values.seconds, metavar="S", help="stop the builder after S seconds")
    group.add_argument("--memory-limit", type=values.size, metavar="SIZE", help="memory of the builder's process (8G)")
    group.add_argument(
        "--memory-pool-limit", type=values.pool, nargs="+", action="extend", metavar="POOL:SIZE", help="workspace:4G"
    )
    parser.option(
        group,
        "--builder-optimization-level",
        type=values.whole(0, 5),
        metavar="N",
        known_as=("--builderOptimizationLevel",),
        help="0 (fast build) to 5 (fast engine)",
    )
    group.add_argument("--load-timing-cache", metavar="F", help="start from the timings in F")
    group.add_argument("--save-timing-cache", metavar="F", help="write timings to F")
    group.add_argument("--version-compatible", action="store_true", help="runs with later versions of the runtime, too")
    group.add_argument("--hardware-compatibility-level", metavar="LEVEL", help="runs on other chips, too")
    group.add_argument("--weight-streaming", action="store_true", help="weights may stay in host memory")
    group.add_argument("--refit", action="store_true", help="weights can be replaced later")
    parser.option(
        group,
        "--strip-weights",
        action="store_true",
        known_as=("--stripWeights",),
        help="leave weights out: refit later",
    )
    group.add_argument(
        "--builder-arg", type=values.pair, action="append", metavar="K=V", help="any other setting of the builder"
    )
    group.add_argument("--emit-script", metavar="F", help="a Python script that builds the same without fp8graph")
    Shapes.add(parser, profiles=True)


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.build`."""
    model = Model.read(args, "build")
    scripted = args.emit_script is not None and not args.output
    output = {"output": None, "force": args.force} if scripted else Output.read(args, "build")
    shapes = Shapes.read_profiles(args)
    from fp8graph import flow

    done = flow.build(
        model,
        **output,
        target=args.target,
        plan=args.plan,
        shapes=shapes,
        attest=args.attest,
        timeout=args.timeout,
        memory_limit=args.memory_limit,
        workspace=_workspace(args),
        builder_optimization_level=args.builder_optimization_level,
        load_timing_cache=args.load_timing_cache,
        save_timing_cache=args.save_timing_cache,
        version_compatible=args.version_compatible,
        hardware_compatibility_level=args.hardware_compatibility_level,
        weight_streaming=args.weight_streaming,
        refit=args.refit,
        strip_weights=args.strip_weights,
        builder_args=dict(args.builder_arg) if args.builder_arg else None,
        custom_ops=args.custom_ops,
        emit_script=args.emit_script,
        progress=console.progress,
    )
    attestation = done.attestation
    return Outcome(
        text=_summary(args, model, done, console),
        result={
            "engine": args.output,
            "chips": list(done.chips),
            "warnings": list(done.warnings),
            "manifest": done.manifest,
            "attestation": None if attestation is None else attestation.to_json(),
        },
        status=1 if attestation is not None and not attestation.honest else 0,
        files=done.files,
        findings=(*done.findings, *(attestation.findings if attestation is not None else ())),
    )


def _workspace(args: argparse.Namespace) -> int | None:
    limits = {size for _, size in args.memory_pool_limit or ()}
    if len(limits) > 1:
        raise UsageError("the workspace has two limits", where="--memory-pool-limit", do="give one", code="FG100")
    return next(iter(limits), None)


def _summary(args: argparse.Namespace, model: str, done: Any, console: Console) -> str:
    from fp8graph.report import attesting, text

    engine, attestation = args.output, done.attestation
    attest = f"python -m fp8graph attest {shlex.quote(engine or '')} --model {shlex.quote(model)}"
    if args.plan:
        attest += f" --plan {shlex.quote(args.plan)}"
    said = text.built(
        engine=engine or args.emit_script,
        model=model,
        chips=[str(chip) for chip in done.chips],
        builder=_builder(done.manifest),
        files=done.files,
        warnings=done.warnings,
        next_command="" if attestation is not None or not engine else attest,
        profiles=done.manifest.get("profiles", ()),
        paint=console.paint,
    )
    if attestation is None:
        return said
    return said + "\n\n" + attesting.attested(attestation, engine=engine, model=model, paint=console.paint)


def _builder(manifest: dict[str, Any]) -> str:
    builder = manifest.get("builder", "")
    if isinstance(builder, dict):
        return " ".join(str(builder[key]) for key in ("name", "version") if key in builder)
    return str(builder)
