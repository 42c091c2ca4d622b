"""Models as passes find them: normalized, planned, and quantized as far as a pass has to have it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from fp8graph.base.findings import Notes
from fp8graph.core import stages
from fp8graph.core.context import Context
from fp8graph.core.facts import Facts
from fp8graph.core.options import Options
from fp8graph.core.passes import RewritePass, Stage
from fp8graph.core.pipeline import Pipeline
from fp8graph.data import recipe as recipes
from fp8graph.data import target as targets
from fp8graph.data.plan import Plan
from fp8graph.data.recipe import HighChoice
from fp8graph.flow.job import Job, Reading
from fp8graph.graph import keys
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types
from fp8graph.testing.models import Feeds, random_feeds


@dataclass(frozen=True)
class Prepared:
    """A model as a pass finds it in the pipeline, with what surrounds it.

    before     the normalized model, nothing quantized yet; where there is no plan, the model itself
    feeds      what the plan's scales come from
    facts      what rules ask; None where there is no plan
    """

    model: ir.Model
    ctx: Context
    pipeline: Pipeline
    before: ir.Model
    feeds: tuple[Feeds, ...]
    facts: Facts | None = None

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
    **options: Any,
) -> Prepared:
    """A model under a plan whose scales come from `random_feeds`, quantized as far as `until`.

    until     a pass: what the default pipeline runs before it has run; a stage: the stages before it; None: all
    options   fields of `fp8graph.core.options.Options`
    """
    source = load(model)
    feeds = tuple(random_feeds(source.model, seed=seed + index) for index in range(2))
    asked = Options(high_precision_dtype=None if high == "keep" else high, **options)
    job = Job(asked, list(feeds), Reading())
    job.open(model, recipe, target, None, None, None)
    # A plan depends on these alone; it is the costly part, and the same for every pass that is checked.
    content = ir.to_proto(source.model).SerializeToString(deterministic=True)
    key = (hashlib.sha256(content).hexdigest(), recipe, target, str(asked), seed)
    if key not in _PLANS:
        _PLANS[key] = job.settled_plan(None, plan_only=False)
    ctx = replace(job.ctx, plan=_PLANS[key])
    facts = stages.facts_for(job.normalized, job.shapes or {})
    prepared = Prepared(job.normalized.model, ctx, job.pipeline, job.normalized.model.clone(), feeds, facts)
    for item in split(prepared.pipeline, until)[0]:
        if item.stage != Stage.NORMALIZE:
            Pipeline([item]).run(prepared.model, ctx)
    return prepared


_PLANS: dict[tuple[Any, ...], Plan] = {}


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
    item: RewritePass, name: str, model: Any, highs: Sequence[HighChoice], target: str
) -> Iterator[tuple[str, Prepared]]:
    """With a plan where it is at home, in every type; without one on the model as it came, and where it is at home."""
    if item.stage != Stage.NORMALIZE:
        for high in highs:
            yield f"{name}, {high}" if high != "keep" else name, planned(model, until=item, high=high, target=target)
        return
    pipeline = Pipeline(recipes.load("fp8-default").passes)
    for label, first in ((name, []), (f"{name}, in its place", split(pipeline, item)[0])):
        work = load(model).model
        ctx = Context(target=targets.load(target), recipe=recipes.load("fp8-default"))
        feeds = tuple(random_feeds(work, seed=index) for index in range(2))
        keys.name_everything(work)
        infer_types(work)
        for other in first:
            if Pipeline([other]).run(work, ctx):
                keys.name_everything(work)
                infer_types(work)
        yield label, Prepared(work, ctx, pipeline, work, feeds)
