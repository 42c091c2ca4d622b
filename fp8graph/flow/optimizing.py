"""From a model to a plan to a quantized model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.base.files import WrittenFile
from fp8graph.base.findings import Finding
from fp8graph.base.progress import SILENT, Progress
from fp8graph.core.options import Options
from fp8graph.core.passes import PlanRule, Repair, RewritePass
from fp8graph.data.comparison import Comparison, DefaultSession
from fp8graph.data.plan import Plan, Shapes
from fp8graph.data.recipe import Recipe
from fp8graph.flow import asked, rangefile
from fp8graph.flow.feeding import Reading
from fp8graph.flow.gathering import Gathering, merged, shard_of
from fp8graph.flow.given import source_digest
from fp8graph.flow.job import Job, nothing_quantized
from fp8graph.flow.searching import Goal, check_goal, search
from fp8graph.graph.save import like_source
from fp8graph.graph.stages import Legal
from fp8graph.numerics.ranges import Ranges


@dataclass
class Optimized:
    """What `optimize` made. `model` is the kind of object that came in (a path for a path, where it was written)."""

    model: Any
    files: tuple[WrittenFile, ...]
    plan: Plan
    findings: tuple[Finding, ...]
    comparison: Comparison | None = None
    default_session: DefaultSession | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def planned(self) -> int:
        """Conv, Gemm and MatMul nodes that are planned with both operands in FP8."""
        return self.planned_by["fp8"]

    @property
    def planned_by(self) -> dict[str, int]:
        """Planned nodes by what their operands are; of two families that of the activation counts."""
        counts = {"fp8": 0, "int8": 0, "fp4": 0, "storage": 0}
        for _, op in self.plan.quantized():
            counts[op.precision] = counts.get(op.precision, 0) + 1
        return counts

    @property
    def kept(self) -> int:
        """Ops that stay in high precision."""
        return sum(1 for _ in self.plan.kept())


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` saw, the file it wrote, and what there is to say about the data."""

    ranges: Ranges
    files: tuple[WrittenFile, ...]
    findings: tuple[Finding, ...] = ()


def optimize(
    model: Any,
    *,
    output: str | Path | None = None,
    recipe: str | Recipe | None = None,
    target: str | None = None,
    data: Any = None,
    ranges: Ranges | str | Path | None = None,
    plan: Plan | str | Path | None = None,
    shapes: Shapes | None = None,
    samples: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    val_range: Any = None,
    input_shapes: Any = None,
    providers: Sequence[str] | None = None,
    calibration_method: str | None = None,
    op_types_to_quantize: Sequence[str] | None = None,
    op_types_to_exclude: Sequence[str] | None = None,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    fp8_everywhere: bool = False,
    attention: Any = "auto",
    kv_cache: Any = "keep",
    high_precision_dtype: Any = None,
    direct_io_types: bool = False,
    given_scales: Any = None,
    passes: str | Sequence[RewritePass | PlanRule | Repair] | None = None,
    pass_file: str | None = None,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    metric: Any = None,
    eval_data: Any = None,
    curve: str | Path | None = None,
    resume: bool = False,
    compare: bool = True,
    plan_only: bool = False,
    allow_unquantized: bool = False,
    verify: bool = False,
    force: bool = False,
    external_data_size_threshold: int | None = None,
    custom_ops: Sequence[str | Path] | None = None,
    progress: Progress = SILENT,
) -> Optimized:
    """Turns a model into an FP8 one for a target: normalize, plan, calibrate, quantize, legalize, save, compare.

    model    path, onnx.ModelProto, onnx_ir.Model or onnx_graphsurgeon.Graph; never changed
    output   where to write it; without it nothing is written
    data     URIs, arrays by input name, an iterable of feeds, or a function that gives one
    ranges   numbers observed before, instead of `data`
    plan     a plan to replay: it brings target, recipe, shapes and all numbers
    shapes   by input: a shape, or a Profile with the least, the usual and the largest
    passes   more passes: `'name,other{option=value}'`, an object, or a list of either
    val_range, input_shapes   of random data: (least, largest) and a shape by input; one range alone is for all inputs
    providers                 of ONNX Runtime: `cpu`, `cuda:0`
    direct_io_types           inputs and outputs take the high-precision type that was asked for
    given_scales              of activations that came with Q/DQ: `keep`, or `recalibrate`
    min_sqnr, max_drop        a goal: the plan with the most low-precision arithmetic that has this SQNR (dB), or whose
                              `metric` (FILE.py:FUNCTION, a function, `cosine`, `max-abs`) falls by no more
    eval_data                 what plans are judged on; without it every fourth sample of `data`, held back
    curve                     a file for accuracy over coverage: .json, .csv, and .svg beside it
    resume                    go on from `OUTPUT.resume`, which Ctrl-C has left of a search

    Raises UnmetError where nothing can be quantized, or no plan holds the goal, UsageError, InputError, BackendError
    (`fp8graph.base.errors`).
    """
    lists = op_types_to_quantize, op_types_to_exclude, nodes_to_quantize, nodes_to_exclude
    options = _options(lists, fp8_everywhere, attention, high_precision_dtype, kv_cache, direct_io_types, given_scales)
    job = Job(
        options,
        data,
        Reading.of(samples, batch, seed, custom_ops, val_range, input_shapes, providers),
        shapes=shapes,
        verify=verify,
        out=output,
        force=force,
        progress=progress,
        method=asked.method(calibration_method),
    )
    goal = Goal.of(min_sqnr, max_drop, metric, eval_data, curve, resume)
    if goal is not None:
        check_goal(job, goal, plan, ranges)
    job.open(model, recipe, target, plan, passes, pass_file, ranges)
    found = search(job, goal, ranges) if goal is not None else None
    settled = found.plan if found is not None else job.settled_plan(ranges, plan_only=plan_only)
    if plan_only:
        files = job.write_plan(settled)
        files += found.write(goal) if found is not None and goal is not None else []
        return _finished(job, settled, None, files)
    if not any(True for _ in settled.quantized()) and not allow_unquantized and job.ctx.recipe.quantizes:
        raise nothing_quantized(settled, job)
    legal = job.carry_out(settled)
    files, comparison = job.write(settled, legal, external_data_size_threshold, compare=compare)
    files += found.write(goal) if found is not None and goal is not None else []
    return _finished(job, settled, legal, files, comparison)


def _finished(
    job: Job, plan: Plan, legal: Legal | None, files: list[WrittenFile], comparison: Comparison | None = None
) -> Optimized:
    """The result, in the kind of object that came in."""
    made = like_source(legal) if legal is not None and (job.out is None or job.source.kind != "path") else job.out
    return Optimized(made, tuple(files), plan, job.ctx.notes.items(), comparison, job.default, job.clock.seconds)


def calibrate(
    model: Any = None,
    *,
    data: Any = None,
    output: str | Path | None = None,
    plan: Plan | str | Path | None = None,
    target: str | None = None,
    recipe: str | Recipe | None = None,
    samples: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    val_range: Any = None,
    input_shapes: Any = None,
    providers: Sequence[str] | None = None,
    calibration_method: str | None = None,
    op_types_to_quantize: Sequence[str] | None = None,
    op_types_to_exclude: Sequence[str] | None = None,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    fp8_everywhere: bool = False,
    attention: Any = "auto",
    kv_cache: Any = "keep",
    high_precision_dtype: Any = None,
    direct_io_types: bool = False,
    given_scales: Any = None,
    passes: str | Sequence[RewritePass | PlanRule | Repair] | None = None,
    pass_file: str | None = None,
    custom_ops: Sequence[str | Path] | None = None,
    shard: str | tuple[int, int] | None = None,
    merge: Sequence[Ranges | str | Path] | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> Calibrated:
    """Observes what a plan needs (that given, or the one `optimize` would make of the same arguments).

    `optimize(..., ranges=...)` then runs no inference.

    shard    `I/N`: only every N-th sample from the I-th on; all shards, merged, are bit-equal to one run
    merge    ranges of shards to join, without a model
    resume   go on from `OUTPUT.resume`, which Ctrl-C (KeyboardInterrupt) has left

    Raises as `optimize` does.
    """
    if merge is not None:
        return _merged(merge, output, force, model, data)
    if model is None or data is None:
        raise UsageError(
            f"calibrate needs {'a model' if model is None else 'data'} and none was given",
            do="give an ONNX model" if model is None else "give --data FILE.npz (arrays by input name)",
            code="FG100" if model is None else "FG120",
        )
    lists = op_types_to_quantize, op_types_to_exclude, nodes_to_quantize, nodes_to_exclude
    options = _options(lists, fp8_everywhere, attention, high_precision_dtype, kv_cache, direct_io_types, given_scales)
    method = asked.method(calibration_method)
    how = Reading.of(samples, batch, seed, custom_ops, val_range, input_shapes, providers)
    part = Gathering(asked.path(output, "output"), shard_of(shard), bool(resume))
    job = Job(options, data, how, out=output, force=force, progress=progress, method=method)
    if job.out is not None:
        rangefile.check(job.out, force=force)
    job.open(model, recipe, target, plan, passes, pass_file, also=())
    wanted = job.wanted(job.plan())
    ranges = job.observe(wanted, source_digest(job.source), part)
    if job.out is None:
        return Calibrated(ranges, (), job.ctx.notes.items())
    files = rangefile.write(job.out, ranges)
    part.finish()
    return Calibrated(ranges, files, job.ctx.notes.items())


def _merged(merge: Any, output: Any, force: bool, model: Any, data: Any) -> Calibrated:
    """Ranges joined, written where `output` is given."""
    if model is not None or data is not None:
        raise UsageError(
            "ranges are joined without a model and data",
            where="--merge",
            why="they hold all that there is to join",
            do="leave MODEL and --data out",
            code="FG100",
        )
    out, ranges = asked.path(output, "output"), merged(merge)
    if out is None:
        return Calibrated(ranges, ())
    files = [merge] if isinstance(merge, (str, Path)) else merge
    inputs = [Path(item) for item in files if isinstance(item, (str, Path))]
    rangefile.check(out, force=force, inputs=[*inputs, *map(rangefile.beside, inputs)])
    return Calibrated(ranges, rangefile.write(out, ranges))


def _options(
    lists: tuple[Any, Any, Any, Any],
    fp8_everywhere: bool,
    attention: Any,
    high_precision_dtype: Any,
    kv_cache: Any,
    direct: bool,
    scales: Any,
) -> Options:
    """The selection, its lists as tuples in the order of `Options`. Raises UsageError FG100."""
    names = ("op_types_to_quantize", "op_types_to_exclude", "nodes_to_quantize", "nodes_to_exclude")
    first, second, third, fourth = (asked.texts(given, name) for given, name in zip(lists, names, strict=True))
    everywhere = bool(fp8_everywhere)
    high, io = high_precision_dtype, bool(direct)
    return Options(first, second, third, fourth, everywhere, attention, high, kv_cache, io, scales)
