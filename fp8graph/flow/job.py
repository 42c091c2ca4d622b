"""One optimization, stage by stage: what `optimize` and `calibrate` have in common."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fp8graph.base import canon
from fp8graph.base.errors import BackendError, InputError, UnmetError, UsageError
from fp8graph.base.files import WrittenFile, check_writable, describe, sha256_of, staged
from fp8graph.base.names import did_you_mean
from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.calibrate.collect import collect, profiles, profiles_of
from fp8graph.calibrate.samples import Samples, open_samples
from fp8graph.compare.default import try_default
from fp8graph.compare.outputs import compare_outputs
from fp8graph.core import registry, repairing, stages
from fp8graph.core.context import Context
from fp8graph.core.facts import Facts
from fp8graph.core.options import Options
from fp8graph.core.passes import PlanRule, Repair, RewritePass, pass_name
from fp8graph.core.pipeline import Pipeline
from fp8graph.core.planner import make_plan
from fp8graph.core.settle import needs, settle
from fp8graph.data import recipe as recipes
from fp8graph.data import target as targets
from fp8graph.data.comparison import Comparison, DefaultSession
from fp8graph.data.document import load_json
from fp8graph.data.plan import Plan, Shapes
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types
from fp8graph.graph.save import save
from fp8graph.graph.stages import Legal, Normalized, Source
from fp8graph.numerics import sidecar
from fp8graph.numerics.ranges import Ranges, Stat
from fp8graph.runners.onnxruntime import fill_types
from fp8graph.runners.reference import reference

DEFAULT_RECIPE, DEFAULT_TARGET = "fp8-default", "tensorrt-rtx"
PLAN_SUFFIX, ARRAYS_SUFFIX = ".plan.json", ".plan.safetensors"
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
            self.given = _load_plan(plan)
            self._refuse_contradictions(recipe, target)
            policy, aim = _meant(self.given)
        else:
            policy = recipe if isinstance(recipe, recipes.Recipe) else recipes.load(recipe or DEFAULT_RECIPE)
            aim = targets.load(target or DEFAULT_TARGET)
        self._check_output(model, plan)
        asked = self.given.asked.get("high_precision_dtype") if self.given else self.options.high_precision_dtype
        self.ctx = Context(target=aim, recipe=policy, progress=self.progress, high=asked or policy.high)
        own = _own_passes(passes, pass_file, self.given)
        self.pipeline, self.rules, self.repairs = _passes(policy, aim, own)
        self.extra = _spelling(passes, pass_file)
        with self.clock("load"):
            self.source = load(model)
        if self.out is not None and self.source.external:
            check_writable(self.out, force=self.force, inputs=self.source.external, also=ALSO)
        _check_shapes(self.shapes or {}, self.source)
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
        seen = _load_ranges(ranges, self.source) if ranges is not None else None
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
                made += _write_plan(plan, folder, self.out.name)
            comparison = self.compare(legal, folder / self.out.name) if compare else None
        return [describe(self.out.parent / name) for name in made], comparison

    def write_plan(self, plan: Plan) -> list[WrittenFile]:
        """Writes the plan alone."""
        if self.out is None:
            return []
        with staged(self.out.with_name(self.out.name + PLAN_SUFFIX)) as folder:
            made = _write_plan(plan, folder, self.out.name)
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


def _meant(plan: Plan) -> tuple[recipes.Recipe, targets.Target]:
    """Recipe and target of a plan. Raises InputError FG111 where it names what there is not: the plan is at fault."""
    try:
        Options(high_precision_dtype=plan.asked.get("high_precision_dtype"))
        return recipes.Recipe.from_mapping(plan.recipe, "the plan's recipe"), targets.load(plan.target)
    except UsageError as error:
        raise InputError(
            "the plan is damaged", where=error.where, why=error.what, do="make the plan anew", code="FG111"
        ) from error


def _check_shapes(shapes: Shapes, source: Source) -> None:
    """Raises UsageError where shapes are given for an input that the model has not, or that it cannot take."""
    inputs = {value.name or "": value for value in source.model.graph.inputs}
    valued = walk.shape_inputs(source.model)
    for name, profile in shapes.items():
        if name not in inputs:
            do = did_you_mean(name, inputs)
            raise UsageError(f"the model has no input '{name}'", where="--shapes", do=do, code="FG101")
        dims = inputs[name].shape
        for shape in (profile.min, profile.opt, profile.max):
            fits = (
                dims is None
                or name in valued
                or (
                    len(dims) == len(shape)
                    and all(not isinstance(d, int) or d == size for d, size in zip(dims, shape, strict=True))
                )
            )
            if not fits:
                raise UsageError(
                    f"the input '{name}' cannot have the shape {'x'.join(map(str, shape))}",
                    where="--shapes",
                    why=f"the model says {'x'.join(str(d) for d in dims or ())}",
                    do="give sizes for the axes that the model leaves open",
                    code="FG100",
                )


def _own_passes(extra: str | Sequence[Any] | None, pass_file: str | None, given: Plan | None) -> list[Any]:
    """The user's passes; with a plan, those by name that it was made with. Raises UsageError FG113."""
    if given is not None and extra is None:
        extra = given.asked.get("passes")
        if extra is not None and not isinstance(extra, str):
            raise InputError("the plan is damaged", where="asked.passes", why="it is no text", code="FG111")
    own: list[Any] = registry.parse_specs(extra) if isinstance(extra, str) else list(extra or ())
    if pass_file is not None:
        own.append(registry.from_file(pass_file))
    needed = given.asked.get("pass_code") if given is not None else None
    have = [pass_name(type(item)) for item in own]
    if needed and not set(needed) <= set(have):
        raise UsageError(
            f"the plan was made with the pass {needed[0]}, which is code",
            why="a plan names no code",
            do="give the same --pass-file, or the same objects, again",
            code="FG113",
        )
    for item in own:
        if not isinstance(item, registry.KINDS):
            raise UsageError(
                f"a {type(item).__name__} is no pass", do="give a RewritePass, PlanRule or Repair", code="FG113"
            )
    return own


def _spelling(extra: str | Sequence[Any] | None, pass_file: str | None) -> dict[str, Any]:
    """What a plan notes of the user's passes: names and options, for code its name alone."""
    noted: dict[str, Any] = {"passes": extra} if isinstance(extra, str) else {}
    code = [] if isinstance(extra, str) else [pass_name(type(item)) for item in extra or ()]
    code += [pass_name(type(registry.from_file(pass_file)))] if pass_file is not None else []
    return {**noted, "pass_code": code} if code else noted


def _passes(
    recipe: recipes.Recipe, target: targets.Target, own: Sequence[Any]
) -> tuple[Pipeline, list[PlanRule], list[Repair]]:
    """Passes of recipe, target and user by their kind; the user's rules are asked first."""
    made: list[Any] = [registry.create(name) for name in (*recipe.passes, *target.forms)]
    rules: list[Any] = [registry.create(name) for name in recipe.rules]
    for name, item in zip(recipe.rules, rules, strict=True):
        if not isinstance(item, PlanRule):
            raise UsageError(f"'{name}' is no rule", where=f"recipe {recipe.name}: rules", code="FG140")
    everything = [*made, *own]
    return (
        Pipeline([item for item in everything if isinstance(item, RewritePass)]),
        [*(item for item in own if isinstance(item, PlanRule)), *rules],
        [item for item in everything if isinstance(item, Repair)],
    )


def _load_plan(plan: Plan | str | Path) -> Plan:
    """A plan with the arrays that lie beside its document. Raises InputError FG111 or FG105."""
    if isinstance(plan, Plan):
        return plan
    path = Path(plan)
    document = load_json(path, "the plan")
    made = Plan.from_json(document, str(path))
    digest = document.get("sidecar", "")
    if not digest:
        return made
    beside = path.with_name(path.name.removesuffix(".json") + ".safetensors")
    return replace(made, arrays=sidecar.Sidecar(beside, str(digest)))


def _write_plan(plan: Plan, folder: Path, name: str) -> list[str]:
    """Writes the plan document, and its arrays where it holds some; returns the files' names."""
    made, digest = [], ""
    if plan.arrays:
        made.append(name + ARRAYS_SUFFIX)
        digest = sidecar.write(folder / made[0], plan.arrays)
    (folder / (name + PLAN_SUFFIX)).write_text(canon.pretty(plan.to_json(digest)), encoding="utf-8")
    return [*made, name + PLAN_SUFFIX]


def _load_ranges(ranges: Ranges | str | Path, source: Source) -> Ranges:
    seen = (
        ranges if isinstance(ranges, Ranges) else Ranges.from_json(load_json(Path(ranges), "the ranges"), str(ranges))
    )
    if seen.source and seen.source != source_digest(source):
        raise InputError(
            "these ranges were observed on another model", where=str(ranges), do="calibrate this one", code="FG110"
        )
    return seen


def source_digest(source: Source) -> str:
    """Digest of the model as it came, weights included."""
    if source.path is not None:
        whole = [sha256_of(path) for path in (source.path, *source.external)]
        return "sha256:" + whole[0] if len(whole) == 1 else canon.digest(whole)
    import onnx_ir as ir

    proto = source.original if source.kind == "proto" else ir.to_proto(load(source.original).model)
    return canon.digest(proto.SerializeToString(deterministic=True).hex())


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
