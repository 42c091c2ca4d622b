"""Models as passes find them: normalized, planned, and quantized as far as a pass has to have it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import onnx_ir as ir

from fp8graph.base.findings import Notes
from fp8graph.core.context import Context
from fp8graph.core.facts import Facts, facts_for
from fp8graph.core.options import Options
from fp8graph.core.passes import RewritePass, Stage
from fp8graph.core.pipeline import Pipeline
from fp8graph.data import recipe as recipes
from fp8graph.data import target as targets
from fp8graph.data.plan import Shapes
from fp8graph.data.recipe import HighChoice
from fp8graph.flow.feeding import Reading
from fp8graph.flow.job import Job
from fp8graph.graph import keys
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types
from fp8graph.testing.models import Feeds, random_feeds


@dataclass(frozen=True)
class Prepared:
    """A model as a pass finds it in the pipeline, with what surrounds it.

    before     the normalized model, nothing quantized yet; where there is no plan, the model itself
    feeds      what the plan's scales come from
    shapes     the profiles that the plan was made for
    """

    model: ir.Model
    ctx: Context
    pipeline: Pipeline
    before: ir.Model
    feeds: tuple[Feeds, ...]
    shapes: Shapes = field(default_factory=dict)

    @cached_property
    def facts(self) -> Facts:
        """What rules ask about the ops of `model`, where nothing is quantized yet."""
        return facts_for(self.model, self.shapes)

    def copy(self) -> Prepared:
        """The same for another run: a pass edits the model and leaves notes."""
        return replace(self, model=self.model.clone(), ctx=replace(self.ctx, notes=Notes()))


def planned(
    model: Any,
    *,
    until: RewritePass | Stage | None = None,
    high: HighChoice = "keep",
    recipe: str = "fp8-default",
    target: str = "reference",
    seed: int = 0,
    feeds: Sequence[Feeds] | None = None,
    **options: Any,
) -> Prepared:
    """A model under a plan whose scales come from a few feeds, quantized as far as `until`.

    until     a pass: what the default pipeline runs before it has run; a stage: the stages before it; None: all
    feeds     None: two `random_feeds`, of this seed and the next
    options   fields of `fp8graph.core.options.Options`
    """
    asked = Options(high_precision_dtype=None if high == "keep" else high, **options)
    source = load(model).model
    if feeds is not None:
        prepared = _plan(model, asked, recipe, target, tuple(feeds)).copy()
    else:
        content = ir.to_proto(source).SerializeToString(deterministic=True)
        key = (hashlib.sha256(content).hexdigest(), recipe, target, str(asked), seed)
        if key not in _PLANNED:
            if len(_PLANNED) >= _MOST:
                _PLANNED.clear()
            _PLANNED[key] = _plan(model, asked, recipe, target, two_feeds(source, seed))
        prepared = _PLANNED[key].copy()
    for item in split(prepared.pipeline, until)[0]:
        if item.stage != Stage.NORMALIZE:
            Pipeline([item]).run(prepared.model, prepared.ctx)
    return prepared


# Normalized, planned and calibrated: that is the costly part, and the same for every pass that is checked.
_PLANNED: dict[tuple[Any, ...], Prepared] = {}
_MOST = 256


def _plan(model: Any, asked: Options, recipe: str, target: str, feeds: tuple[Feeds, ...]) -> Prepared:
    job = Job(asked, list(feeds), Reading())
    job.open(model, recipe, target, None, None, None)
    job.repairs = []  # what they find would be in the way of one that is tested
    ctx = replace(job.ctx, plan=job.settled_plan(None, plan_only=False))
    made = job.normalized.model
    return Prepared(made, ctx, job.pipeline, made.clone(), feeds, job.shapes or {})


def two_feeds(model: ir.Model, seed: int = 0) -> tuple[Feeds, ...]:
    """Two feeds: a bug that one set of numbers hides shows in the other."""
    return random_feeds(model, seed=seed), random_feeds(model, seed=seed + 1)


def split(pipeline: Pipeline, at: RewritePass | Stage | None) -> tuple[list[RewritePass], list[RewritePass]]:
    """The passes before and behind a pass, or the begin of a stage. One that is not there comes last in its stage."""
    passes = list(pipeline.passes)
    if at is None:
        return passes, []
    if isinstance(at, RewritePass):
        names = [item.name for item in passes]
        if at.name in names:
            return passes[: names.index(at.name)], passes[names.index(at.name) + 1 :]
        return [p for p in passes if p.stage <= at.stage], [p for p in passes if p.stage > at.stage]
    return [p for p in passes if p.stage < at], [p for p in passes if p.stage >= at]


def situations(
    item: RewritePass,
    name: str,
    model: Any,
    highs: Sequence[HighChoice],
    target: str,
    feeds: tuple[Feeds, ...] | None,
    options: Mapping[str, Any],
) -> Iterator[tuple[str, Prepared]]:
    """With a plan where it is at home, in every type; without one on the model as it came, and where it is at home."""
    if item.stage != Stage.NORMALIZE:
        for high in highs:
            label = f"{name}, {high}" if high != "keep" else name
            yield label, planned(model, until=item, high=high, target=target, feeds=feeds, **options)
        return
    pipeline = Pipeline(recipes.load("fp8-default").passes)
    for label, first in ((name, []), (f"{name}, in its place", split(pipeline, item)[0])):
        work = load(model).model
        ctx = Context(target=targets.load(target), recipe=recipes.load("fp8-default"))
        keys.name_everything(work)
        infer_types(work)
        for other in first:
            if Pipeline([other]).run(work, ctx):
                keys.name_everything(work)
                infer_types(work)
        yield label, Prepared(work, ctx, pipeline, work, feeds or two_feeds(work))
