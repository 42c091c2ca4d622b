"""One optimization, stage by stage: what `optimize` and `calibrate` have in common."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fp8graph.base.errors import BackendError, InputError, UnmetError, UsageError
from fp8graph.base.files import WrittenFile, check_writable, describe, staged
from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.calibrate.collect import collect, profiles, profiles_of
from fp8graph.calibrate.samples import Samples, open_samples
from fp8graph.compare.default import try_default
from fp8graph.compare.outputs import compare_outputs
from fp8graph.core import repairing, stages
from fp8graph.core.context import Context
from fp8graph.core.facts import Facts
from fp8graph.core.options import Options
from fp8graph.core.passes import PlanRule, Repair, RewritePass
from fp8graph.core.pipeline import Pipeline
from fp8graph.core.planner import make_plan
from fp8graph.core.settle import needs, settle
from fp8graph.data import recipe as recipes
from fp8graph.data import target as targets
from fp8graph.data.comparison import Comparison, DefaultSession
from fp8graph.data.plan import ARRAYS_SUFFIX, PLAN_SUFFIX, Plan, Shapes
from fp8graph.flow import given
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types
from fp8graph.graph.save import save
from fp8graph.graph.stages import Legal, Normalized, Source
from fp8graph.numerics.ranges import Ranges, Stat
from fp8graph.runners.onnxruntime import fill_types
from fp8graph.runners.reference import reference

DEFAULT_RECIPE, DEFAULT_TARGET = "fp8-default", "tensorrt-rtx"
ALSO = (PLAN_SUFFIX, ARRAYS_SUFFIX, ".data")


@dataclass(frozen=True)
class Reading:
    """How data is read: `samples` feeds at most, of `batch` where the model leaves it open; `seed` for random data.

    `libraries` hold the model's own operators for ONNX Runtime.
    """

    samples: int | None = None
    batch: int | None = None
    seed: int = 0
    libraries: tuple[str, ...] = ()


class Clock:
    """Seconds by stage, for the summary; nothing that is written depends on it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - begin


class Job:
    """One optimization, stage by stage."""

    source: Source
    ctx: Context
    pipeline: Pipeline
    rules: list[PlanRule]
    repairs: list[Repair]
    normalized: Normalized

    def __init__(
        self,
        options: Options,
        data: Any,
        reading: Reading,
        *,
        shapes: Shapes | None = None,
        verify: bool = False,
        out: Path | None = None,
        force: bool = False,
        progress: Progress = SILENT,
    ) -> None:
        self.options, self.data, self.reading, self.shapes = options, data, reading, shapes
        self.verify, self.progress, self.out, self.force = verify, progress, out, force
        self.given: Plan | None = None
        self.feeds: Samples | None = None
        self.clock = Clock()
        self.default: DefaultSession | None = None
        self._facts: tuple[Shapes, Facts] | None = None

    def open(
        self,
        model: Any,
        recipe: str | recipes.Recipe | None,
        target: str | None,
        plan: Plan | str | Path | None,
        passes: str | Sequence[RewritePass | PlanRule | Repair] | None,
        pass_file: str | None,
    ) -> None:
        """Loads everything that is named, cheapest first, so that a wrong call fails before any work is done."""
        if plan is not None:
            self.given = given.load_plan(plan)
            self._refuse_contradictions(recipe, target)
            policy, aim = given.meant(self.given)
        else:
            policy = recipe if isinstance(recipe, recipes.Recipe) else recipes.load(recipe or DEFAULT_RECIPE)
            aim = targets.load(target or DEFAULT_TARGET)
        self._check_output(model, plan)
        asked = self.given.asked.get("high_precision_dtype") if self.given else self.options.high_precision_dtype
        self.ctx = Context(target=aim, recipe=policy, progress=self.progress, high=asked or policy.high)
        own = given.own_passes(passes, pass_file, self.given)
        self.pipeline, self.rules, self.repairs = given.by_kind(policy, aim, own)
        self.extra = given.spelling(passes, pass_file)
        with self.clock("load"):
            self.source = load(model)
        if self.out is not None and self.source.external:
            check_writable(self.out, force=self.force, inputs=self.source.external, also=ALSO)
        given.check_shapes(self.shapes or {}, self.source)
        if self.data is not None:
            reading = self.reading
            self.feeds = open_samples(
                self.data,
                self.source.model,
                self.ctx.notes,
                samples=reading.samples,
                batch=reading.batch,
                seed=reading.seed,
            )
            if self.shapes is None and self.given is None:
                with self.clock("read data"):
                    self.shapes = profiles(self.feeds, walk.shape_inputs(self.source.model))
        with self.clock("normalize"):
            self.normalized = stages.normalize(self.source, self.pipeline, self.ctx, verify=self.verify)
            if fill_types(self.normalized.model, self.reading.libraries):
                infer_types(self.normalized.model)

    def _check_output(self, model: Any, plan: Plan | str | Path | None) -> None:
        if self.out is None:
            return
        uris = self.data if isinstance(self.data, (list, tuple)) else [self.data]
        inputs = [Path(item) for item in (model, *uris) if isinstance(item, (str, Path))]
        also: tuple[str, ...] = ALSO
        if isinstance(plan, (str, Path)):
            if Path(plan).absolute() == self.out.with_name(self.out.name + PLAN_SUFFIX).absolute():
                also = (".data",)  # OUT's own plan, made with --plan-only: it is carried out in its place
            else:
                inputs.append(Path(plan))
        check_writable(self.out, force=self.force, inputs=inputs, also=also)

    def _refuse_contradictions(self, recipe: Any, target: str | None) -> None:
        assert self.given is not None
        asked = {**self.options.asked()}
        if recipe is not None and (recipe if isinstance(recipe, str) else recipe.name) != self.given.recipe.get("name"):
            asked["recipe"] = recipe
        if target is not None and target != self.given.target:
            asked["target"] = target
        if self.shapes is not None and dict(self.shapes) != dict(self.given.shapes):
            asked["shapes"] = "other shapes"
        for name, value in asked.items():
            if self.given.asked.get(name) != value:
                raise UsageError(
                    f"--{name.replace('_', '-')} contradicts the plan",
                    where=f"plan for target {self.given.target}",
                    why="a plan brings its target, recipe, shapes and options",
                    do="leave the option out, or make a new plan",
                    code="FG110",
                )

    def plan(self) -> Plan:
        """The plan given, or a new one whose observed scales have no numbers yet."""
        with self.clock("plan"):
            if self.given is not None:
                return stages.fits(self.given, self.normalized)
            shapes = self.shapes or {}
            facts = self._facts_for(shapes)
            plan = make_plan(self.normalized, self.rules, self.ctx, self.options, shapes, facts)
            return replace(plan, asked={**plan.asked, **self.extra})

    def _facts_for(self, shapes: Shapes) -> Facts:
        """Facts of the normalized model, inferred once for the same shapes."""
        if self._facts is None or self._facts[0] != shapes:
            self._facts = shapes, stages.facts_for(self.normalized, shapes)
        return self._facts[1]

    def wanted(self, plan: Plan) -> list[str]:
        """Tensors to observe: those that the plan needs, and, while it needs any, those that repairs do."""
        own = needs(plan, self.normalized.model)
        if not own or not self.repairs:
            return own
        facts = self._facts_for(plan.shapes)
        return list(dict.fromkeys([*own, *repairing.needs(plan, self.normalized, self.repairs, facts)]))

    def settled_plan(self, ranges: Ranges | str | Path | None, *, plan_only: bool) -> Plan:
        """The plan given, or a new one, with its numbers where there is data or ranges."""
        seen = given.load_ranges(ranges, self.source) if ranges is not None else None
        if seen is not None and self.shapes is None and self.given is None:
            self.shapes = profiles_of(seen.shapes)  # those that calibration saw
        plan = self.plan()
        wanted = self.wanted(plan)
        if not wanted:
            if self.given is not None and self.given.settled:
                return plan
            # Nothing to observe: what does not fit fp16 is told from constants alone.
            return self.repaired(settle(plan, Ranges("", plan.data), self.normalized.model, self.ctx.notes))
        lacking = [name for name in wanted if seen is not None and name not in seen.values]
        if lacking:
            raise UsageError(
                "the ranges lack tensors that this plan needs",
                where=f"{len(lacking)} of {len(wanted)} tensors, first: {lacking[0]}",
                why="they were observed for another recipe, target or high-precision type",
                do="give --data, or observe anew: calibrate --plan with this plan",
                code="FG120",
            )
        if seen is None and self.feeds is not None:
            with self.clock("calibrate"):
                seen = self.observe(wanted, "")
        if seen is None and plan_only:
            return plan
        if seen is None:
            raise UsageError(
                "this plan needs data and none was given",
                where=f"{len(wanted)} activation tensors, first: {wanted[0]}",
                why=f"recipe '{self.ctx.recipe.name}' takes activation scales from observation",
                do="give --data FILE.npz (arrays by input name), a folder, or --ranges FILE",
                code="FG120",
            )
        settled = settle(plan, seen, self.normalized.model, self.ctx.notes)
        self.ctx.ranges = seen
        return self.repaired(settled)

    def observe(self, wanted: Sequence[str], digest: str) -> Ranges:
        """Runs the samples. Raises InputError FG133 where the original model cannot be run on them either."""
        assert self.feeds is not None
        try:
            seen = collect(self.normalized, wanted, self.feeds, digest, self.progress, self.reading.libraries)
        except BackendError as error:
            if error.code == "FG133" and not self._original_runs():
                where = ", ".join(filter(None, (str(self.source.path or "the model given"), error.where)))
                raise InputError(error.what, where=where, why=error.why, do=error.do, code=error.code) from error
            raise
        outputs = [value.name for value in self.normalized.model.graph.outputs if value.name in seen.values]
        broken = [name for name in outputs if name and seen.values[name].nonfinite]
        inner = [name for name in wanted if seen.values.get(name, Stat()).nonfinite]
        if broken and inner:
            raise InputError(
                "on this data the model itself overflows: its outputs are infinite or NaN",
                where=f"output '{broken[0]}', first tensor '{inner[0]}'",
                why="a range that is not finite gives no scale",
                do="give data as the model was made for",
                code="FG107",
            )
        return seen

    def _original_runs(self) -> bool:
        """Whether ONNX Runtime runs the model as it came on the first sample that is to be had."""
        assert self.feeds is not None
        try:
            runner = reference(self.source.path or load(self.source.original).model, self.reading.libraries)
            for feed in self.feeds:
                runner.run(feed)
        except BackendError:
            return False
        return True

    def repaired(self, plan: Plan) -> Plan:
        """The settled plan with what the repairs find; a replayed one holds that already."""
        with self.clock("repair"):
            facts = self._facts_for(plan.shapes)
            return repairing.repair(plan, self.normalized, self.repairs, self.ctx, facts)

    def carry_out(self, plan: Plan) -> Legal:
        """Quantizes and legalizes by the plan."""
        self.ctx.plan = plan
        with self.clock("quantize"):
            quantized = stages.quantize(self.normalized, self.pipeline, self.ctx, verify=self.verify)
        with self.clock("legalize"):
            return stages.legalize(quantized, self.pipeline, self.ctx, verify=self.verify)

    def write(
        self, plan: Plan, legal: Legal, threshold: int | None = None, *, compare: bool = False
    ) -> tuple[list[WrittenFile], Comparison | None]:
        """Writes model and plan together, or nothing; they are compared before, so that a failure leaves nothing."""
        if self.out is None:
            return [], self.compare(legal, None) if compare else None
        with staged(self.out) as folder:
            with self.clock("save"), stage(self.progress, "saving"):
                made = [path.name for path in save(legal, folder, self.out.name, threshold=threshold)]
                made += given.write_plan(plan, folder, self.out.name)
            comparison = self.compare(legal, folder / self.out.name) if compare else None
        for suffix in ALSO:  # what an earlier result left beside OUT does not belong to this one
            if self.out.name + suffix not in made:
                self.out.with_name(self.out.name + suffix).unlink(missing_ok=True)
        return [describe(self.out.parent / name) for name in made], comparison

    def write_plan(self, plan: Plan) -> list[WrittenFile]:
        """Writes the plan alone."""
        if self.out is None:
            return []
        with staged(self.out.with_name(self.out.name + PLAN_SUFFIX)) as folder:
            made = given.write_plan(plan, folder, self.out.name)
        return [describe(self.out.parent / name) for name in made]

    def compare(self, legal: Legal, file: Path | None) -> Comparison | None:
        """Original against result (its file, where there is one) on the data given, in the exact reference; None
        without data."""
        if self.feeds is None:
            return None
        with self.clock("compare"):
            original = load(self.source.path or self.source.original)
            before = reference(self.source.path or original.model, self.reading.libraries)
            after = reference(file if file is not None else legal.model, self.reading.libraries)
            result = compare_outputs(before, after, self.feeds, count=self.feeds.count, progress=self.progress)
        with self.clock("default session"):
            self.default = try_default(legal.model, file, before, after, self.feeds, self.reading.libraries)
        for problem in result.problems:
            self.ctx.note("FG401", "", problem, severity="warning")
        return result


def nothing_quantized(plan: Plan, job: Job) -> UnmetError:
    """Status 1 with the most frequent reasons."""
    reasons: dict[str, int] = {}
    for _, op in plan.kept():
        reasons[f"{op.why.text} ({op.why.code})"] = reasons.get(f"{op.why.text} ({op.why.code})", 0) + 1
    shown = "; ".join(f"{count}x {text}" for text, count in sorted(reasons.items(), key=lambda item: -item[1])[:4])
    error = UnmetError(
        "nothing in this model can be quantized",
        where=str(job.source.path or "the model given"),
        why=shown or "it holds no ops",
        do="--allow-unquantized writes it all the same",
        code="FG150",
    )
    error.findings = job.ctx.notes.items()
    return error
