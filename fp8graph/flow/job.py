"""One optimization, stage by stage: what `optimize` and `calibrate` have in common."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fp8graph.base.errors import BackendError, InputError, UnmetError, UsageError
from fp8graph.base.files import WrittenFile, check_writable, describe, same_file, staged
from fp8graph.base.findings import Notes
from fp8graph.base.progress import SILENT, stage
from fp8graph.calibrate.collect import collect, profiles, profiles_of
from fp8graph.calibrate.samples import Samples, files_of, is_random
from fp8graph.compare.default import Kept, first, try_default
from fp8graph.compare.outputs import compare_outputs
from fp8graph.core import channels, registry, repairing, stages
from fp8graph.core.context import Context
from fp8graph.core.facts import Facts, facts_for
from fp8graph.core.options import Options
from fp8graph.core.passes import PlanRule, Repair, RewritePass
from fp8graph.core.pipeline import Pipeline
from fp8graph.core.planner import make_plan
from fp8graph.core.settle import needs, settle
from fp8graph.data import recipe as recipes
from fp8graph.data import target as targets
from fp8graph.data.comparison import Comparison, DefaultSession
from fp8graph.data.plan import ARRAYS_SUFFIX, PLAN_SUFFIX, OpKey, Plan, Shapes
from fp8graph.flow import asked, given, mixing
from fp8graph.flow.feeding import Reading
from fp8graph.flow.gathering import Gathering
from fp8graph.flow.learning import FULL, LIGHT, Effort
from fp8graph.flow.mixing import mixed
from fp8graph.flow.repairs import bound, repaired
from fp8graph.graph import tensors, walk
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types
from fp8graph.graph.save import save
from fp8graph.graph.stages import Legal, Normalized, Source
from fp8graph.numerics.ranges import Need, Ranges, Stat, joined
from fp8graph.runners.onnxruntime import fill_types
from fp8graph.runners.reference import reference

log = logging.getLogger(__name__)
DEFAULT_RECIPE, DEFAULT_TARGET = "fp8-default", "tensorrt-rtx"
ALSO = (PLAN_SUFFIX, ARRAYS_SUFFIX, ".data")


class Clock:
    """Seconds by stage, for the summary and the log; nothing that is written depends on it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begin
            self.seconds[what] = self.seconds.get(what, 0.0) + took
            log.info("%s: %.2f s", what, took)


class Job:
    """One optimization, stage by stage."""

    source: Source
    ctx: Context
    pipeline: Pipeline
    rules: list[PlanRule]
    repairs: list[Repair]
    effort: Effort
    normalized: Normalized

    def __init__(
        self,
        options: Options,
        data: Any,
        reading: Reading,
        *,
        shapes: Any = None,
        verify: bool = False,
        out: Any = None,
        force: bool = False,
        progress: Any = SILENT,
        method: str | None = None,
    ) -> None:
        self.method = method
        self.options, self.data, self.reading, self.shapes = options, data, reading, asked.shapes(shapes)
        self.verify, self.progress, self.out, self.force = (
            verify,
            asked.progress(progress),
            asked.path(out, "output"),
            force,
        )
        self.given: Plan | None = None
        self.feeds: Samples | None = None
        self.clock = Clock()
        self.default: DefaultSession | None = None
        self.stale: set[OpKey] = set()
        self._facts: tuple[Shapes, Facts] | None = None
        self._moved: tuple[Plan, Normalized] | None = None

    def open(
        self,
        model: Any,
        recipe: str | recipes.Recipe | None,
        target: str | None,
        plan: Plan | str | Path | None,
        passes: str | Sequence[RewritePass | PlanRule | Repair | str] | None,
        pass_file: str | None,
        ranges: Ranges | str | Path | None = None,
        *,
        also: tuple[str, ...] = ALSO,
    ) -> None:
        """Loads everything that is named, cheapest first, so that a wrong call fails before any work is done.

        `also` are the suffixes of the files that are written beside the output.
        """
        recipe, target, pass_file = (
            asked.recipe(recipe),
            asked.text(target, "target"),
            asked.text(pass_file, "pass_file"),
        )
        if plan is not None:
            self.given = given.load_plan(plan)
            self._refuse_contradictions(recipe, target, ranges)
            policy, aim = given.meant(self.given)
        else:
            policy = recipe if isinstance(recipe, recipes.Recipe) else recipes.load(recipe or DEFAULT_RECIPE)
            policy = policy.measured(self.method) if self.method else policy
            aim = targets.load(target or DEFAULT_TARGET)
        if self.data is None:
            given.check_alone(self.reading.options(), self.given)
        named = [model, recipe, ranges, registry.file_of(pass_file) if pass_file else None, *self.reading.libraries]
        self._check_output(named, plan, also)
        high = self.given.asked.get("high_precision_dtype") if self.given else self.options.high_precision_dtype
        came = self.given.asked.get("given_scales") if self.given else self.options.given_scales
        self.ctx = Context(target=aim, recipe=policy, progress=self.progress, high=high or policy.high)
        self.ctx.anew = (came or policy.given) == "recalibrate"
        own = given.own_passes(passes, pass_file, self.given)
        direct = bool(self.given.asked.get("direct_io_types")) if self.given else self.options.direct_io_types
        given.check_direct(self.ctx.high, direct=direct)
        given.check_high(self.ctx.high, aim, policy)
        self.pipeline, self.rules, self.repairs = given.by_kind(policy, aim, own.passes, direct=direct)
        named_here = any(isinstance(item, Repair) and item.learns for item in own.passes)
        self.effort = LIGHT if policy.learn == "light" and not named_here else FULL
        self.extra = own.noted
        self._tell(policy, aim)
        with self.clock("load"):
            self.source = load(model)
        if self.out is not None and self.source.external:
            check_writable(self.out, force=self.force, inputs=self.source.external, also=also)
        given.check_shapes(self.shapes or {}, self.source)
        self._read()
        with self.clock("normalize"):
            self.normalized = stages.normalize(self.source, self.pipeline, self.ctx, verify=self.verify)
            if fill_types(self.normalized.model, self.reading.libraries):
                infer_types(self.normalized.model)

    def _tell(self, policy: recipes.Recipe, aim: targets.Target) -> None:
        """Logs what will run, in its order."""
        log.info("target %s for %s, recipe %s", aim.name, "+".join(aim.chips) or "any machine", policy.name)
        log.info("rules: %s", ", ".join(item.name for item in self.rules) or "none")
        log.info("passes: %s", ", ".join(item.name for item in self.pipeline.passes) or "none")
        log.info("repairs: %s", ", ".join(item.name for item in self.repairs) or "none")

    def _read(self) -> None:
        """Opens the data; inputs whose shapes were not given have those that are in it."""
        if self.data is None:
            return
        how = self.reading
        if self.shapes and not how.input_shapes and is_random(self.data):
            how = replace(how, input_shapes={name: profile.opt for name, profile in self.shapes.items()})
        self.feeds = how.open(self.data, self.source.model, self.ctx.notes)
        if self._shapes_open() and self._unsized():
            with self.clock("read data"):
                self._complete(profiles(self.feeds, walk.shape_inputs(self.source.model)))

    def _unsized(self) -> bool:
        """Whether some input is left whose size is open, and was not given."""
        if self.shapes is None:
            return True
        valued = walk.shape_inputs(self.source.model)
        return any(
            value.name not in self.shapes and (value.name in valued or None in (tensors.dims(value) or (None,)))
            for value in self.source.model.graph.inputs
        )

    def _complete(self, seen: Shapes) -> None:
        """Takes shapes that were seen for inputs without given ones."""
        self.shapes = {**seen, **(self.shapes or {})}

    def _check_output(self, named: Sequence[Any], plan: Any, also: tuple[str, ...]) -> None:
        """Refuses an output that exists, or that is one of the inputs: files named, and those in folders of data."""
        if self.out is None:
            return
        inputs = [Path(item) for item in named if isinstance(item, (str, Path))] + files_of(self.data)
        if isinstance(plan, (str, Path)):
            path = Path(plan)
            beside = self.out.with_name(self.out.name + PLAN_SUFFIX)
            if same_file(path, beside) or path.absolute() == beside.absolute():
                also = tuple(suffix for suffix in also if suffix == ".data")  # OUT's own plan, carried out in its place
            else:
                inputs += [path, path.with_name(path.name.removesuffix(".json") + ".safetensors")]
        check_writable(self.out, force=self.force, inputs=inputs, also=also)

    def _refuse_contradictions(self, recipe: str | recipes.Recipe | None, target: str | None, ranges: Any) -> None:
        """Raises UsageError FG110 for whatever a plan says otherwise. What repeats the plan is fine."""
        assert self.given is not None
        wanted = dict(self.options.asked())
        if recipe is not None and not given.same_recipe(recipe, self.given):
            wanted["recipe"] = recipe if isinstance(recipe, str) else recipe.name
        if target is not None and target != self.given.target:
            wanted["target"] = target
        if self.method and self.method != (has_method := given.meant(self.given)[0].activations.scale):
            why = f"asked {self.method}, the plan has {has_method}"
            raise given.contradiction("--calibration-method", why, self.given)
        if any(self.given.shapes.get(name) != profile for name, profile in (self.shapes or {}).items()):
            wanted["shapes"] = "other shapes"
        for name, value in wanted.items():
            if self.given.asked.get(name) != value:
                has = {"recipe": self.given.recipe.get("name"), "target": self.given.target, "shapes": "other ones"}
                mine = self.given.asked.get(name, has.get(name))
                raise given.contradiction(
                    f"--{name.replace('_', '-')}", f"asked {value}, the plan has {mine or 'the default'}", self.given
                )
        if ranges is not None and self.given.settled and self.given.data:
            raise given.contradiction("--ranges", "the plan holds all its numbers", self.given)

    def plan(self) -> Plan:
        """The plan given, or a new one whose observed scales have no numbers yet."""
        with self.clock("plan"):
            if self.given is not None:
                plan = bound(self, stages.fits(self.given, self.normalized))
                return self._under_shapes(plan) if self.shapes and self._shapes_open() else plan
            plan = self._made(self.options, self.shapes or {})
            return replace(plan, asked={**plan.asked, **self.extra})

    def _made(self, options: Options, shapes: Shapes) -> Plan:
        return make_plan(self.normalized, self.rules, self.ctx, options, shapes, self._facts_for(shapes))

    def _shapes_open(self) -> bool:
        """Whether the shapes are to be those of the data: no plan has them already."""
        return self.given is None or not (self.given.data or self.given.shapes)

    def _under_shapes(self, plan: Plan) -> Plan:
        """A plan that was made alone, under the shapes that data has: as if it had been made with it."""
        assert self.shapes is not None
        options = Options.again(plan.asked)
        before = self._made(options, {})
        return stages.under_shapes(plan, before, self._made(options, self.shapes))

    def moved(self, plan: Plan) -> Normalized:
        """The normalized model with the factors of channels that a plan has: what its other numbers are about."""
        if not channels.moved(plan):
            return self.normalized
        if self._moved is None or channels.factors(self._moved[0]) != channels.factors(plan):
            there = replace(self.normalized, model=self.normalized.model.clone(), moved=True)
            channels.move(there.model, plan)
            self._moved = plan, there
        return self._moved[1]

    def _facts_for(self, shapes: Shapes) -> Facts:
        """Facts of the normalized model, inferred once for the same shapes."""
        if self._facts is None or self._facts[0] != shapes:
            self._facts = shapes, facts_for(self.normalized.model, shapes)
        return self._facts[1]

    def wanted(self, plan: Plan) -> list[Need]:
        """What to observe: what the plan needs, and, while it needs anything, what repairs do."""
        own = needs(plan, self.normalized.model)
        if not own:
            return own
        own = joined([*own, *(need for other in self.others(plan) for need in needs(other, self.normalized.model))])
        if not self.repairs:
            return own
        facts = self._facts_for(plan.shapes)
        return joined([*own, *repairing.needs(plan, self.normalized, self.repairs, facts)])

    def settled_plan(self, ranges: Ranges | str | Path | None, *, plan_only: bool) -> Plan:
        """The plan given, or a new one, with its numbers where there is data or ranges."""
        if plan_only and self.given is not None and (self.given.settled or (ranges is None and self.data is None)):
            raise self._nothing_planned()
        seen = given.load_ranges(ranges, self.source) if ranges is not None else None
        if seen is not None and self._shapes_open() and self._unsized():
            self._complete(profiles_of(seen.shapes))  # those that calibration saw
        if self.ctx.recipe.instead and not (self.given is not None and self.given.data):
            mixing.check(self)
        plan = self.plan()
        wanted = self.wanted(plan)
        if not wanted and self.given is not None and self.given.data:
            return self.repaired(plan) if self.stale else plan
        if plan_only and seen is None and self.feeds is None:
            return plan
        if not wanted or (plan.settled and seen is None and self.feeds is None):
            # Nothing to observe: what does not fit fp16 is told from constants alone.
            return self.repaired(settle(plan, Ranges("", plan.data), self.normalized.model, self.ctx.notes))
        lacking = seen.lacks(wanted) if seen is not None else []
        if lacking:
            raise UsageError(
                "the ranges lack tensors that this plan needs",
                where=f"{len(lacking)} of {len(wanted)} tensors, first: {lacking[0].text}",
                why="they were observed for another recipe, target, high-precision type or calibration method",
                do="give --data, or observe anew: calibrate --plan with this plan",
                code="FG120",
            )
        if seen is None and self.feeds is not None:
            with self.clock("calibrate"):
                seen = self._observed(wanted, plan)
        if seen is None:
            raise UsageError(
                "this plan needs data and none was given",
                where=f"{len(wanted)} activation tensors, first: {wanted[0].tensor}",
                why=f"recipe '{self.ctx.recipe.name}' takes activation scales from observation",
                do="give --data FILE.npz (arrays by input name), a folder, or --ranges FILE",
                code="FG120",
            )
        settled = settle(plan, seen, self.normalized.model, self.ctx.notes)
        self.ctx.ranges = seen
        if self.ctx.recipe.instead:
            with self.clock("choose formats"):
                settled = mixed(self, settled, self.others(plan), seen)
        return self.repaired(settled)

    def others(self, plan: Plan) -> list[Plan]:
        """The plan as it would be in the formats that its ops may have instead, in those that the target runs."""
        found = []
        for recipe in self.ctx.recipe.others():
            ctx, facts = replace(self.ctx, recipe=recipe, notes=Notes()), self._facts_for(plan.shapes)
            try:
                made = make_plan(self.normalized, self.rules, ctx, Options.again(plan.asked), plan.shapes, facts)
            except UsageError as error:
                if error.code not in ("FG302", "FG341"):
                    raise
                log.info("recipe %s in %s: %s", recipe.name, recipe.weights.format, error.what)
            else:
                found.append(made)
        return found

    def _observed(self, wanted: Sequence[Need], plan: Plan) -> Ranges:
        """What the samples show; where no scale needs it and the model cannot be run, nothing, which is said."""
        try:
            return self.observe(wanted, "")
        except (BackendError, InputError) as error:
            if error.code != "FG133" or not plan.settled:
                raise
            self.ctx.note("FG226", "", f"whether tensors fit fp16 is not known: {error.why}", severity="warning")
            return Ranges("", plan.data, values={need.tensor: Stat() for need in wanted})

    def _nothing_planned(self) -> UsageError:
        """The error for --plan-only with a plan that would come out as it went in."""
        assert self.given is not None
        settled = self.given.settled
        return UsageError(
            "--plan-only with --plan would write the same plan again",
            where=f"--plan-only and --plan, a plan for target {self.given.target}",
            why="the plan holds all its numbers" if settled else "the plan lacks numbers, and no data was given",
            do="leave --plan-only out" if settled else "give --data FILE or --ranges FILE to fill it in",
            code="FG110",
        )

    def observe(self, wanted: Sequence[Need], digest: str, part: Gathering | None = None) -> Ranges:
        """Runs the samples, or the part of them that is to be gathered.

        Raises InputError FG133 where the original model cannot be run on them either.
        """
        assert self.feeds is not None
        part = Gathering() if part is None else part
        feeds, how = part.begin(self.feeds, digest, wanted, self.reading), self.reading
        try:
            found = collect(
                self.normalized, wanted, feeds, digest, self.progress, how.libraries, how.providers, part.keep
            )
            seen = part.with_earlier(found)
        except BackendError as error:
            if error.code == "FG133" and not self._original_runs():
                where = ", ".join(filter(None, (str(self.source.path or "the model given"), error.where)))
                raise InputError(error.what, where=where, why=error.why, do=error.do, code=error.code) from error
            raise
        outputs = [value.name for value in self.normalized.model.graph.outputs if value.name in seen.values]
        broken = [name for name in outputs if name and seen.values[name].nonfinite]
        log.info("%d samples from %s, %d tensors observed", seen.samples, seen.data, len(seen.values))
        for name, stat in sorted(seen.values.items()):
            log.debug("range of %s: %g to %g in %d elements", name, stat.min, stat.max, stat.count)
        inner = [need.tensor for need in wanted if seen.values.get(need.tensor, Stat()).nonfinite]
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
        how = self.reading.libraries, self.reading.providers
        try:
            runner = reference(self.source.path or load(self.source.original).model, *how)
            for feed in self.feeds:
                runner.run(feed)
        except BackendError:
            return False
        return True

    def repaired(self, plan: Plan) -> Plan:
        """The settled plan with what the repairs find; a replayed one holds that already."""
        with self.clock("repair"):
            return repaired(self, plan, self._facts_for(plan.shapes))

    def carry_out(self, plan: Plan) -> Legal:
        """Quantizes and legalizes by the plan."""
        self.ctx.plan = plan
        log.info("plan: %d ops quantized, %d kept", *(sum(1 for _ in ops) for ops in (plan.quantized(), plan.kept())))
        for key, op in plan.ops.items():
            log.debug("%s %s %s: %s, %s (%s)", op.do, op.op_type, key, op.why.code, op.why.text, op.why.by)
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
        how = self.reading.libraries, self.reading.providers
        with self.clock("compare"):
            original = load(self.source.path or self.source.original)
            before = reference(self.source.path or original.model, *how)
            after = reference(file if file is not None else legal.model, *how)
            result = compare_outputs(before, after, self.feeds, count=self.feeds.count, progress=self.progress)
            some = first(self.feeds)
            kept = Kept(before, some), Kept(after, some)
            del before, after
        with self.clock("default session"):
            self.default = try_default(legal.model, file, *kept, self.reading.libraries)
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
