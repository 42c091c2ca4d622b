"""What a repair is told of data, from the feeds that a contract is checked on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fp8graph.calibrate.samples import Samples
from fp8graph.calibrate.stepping import Steps
from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Repair
from fp8graph.core.terms import channels_of
from fp8graph.flow.feeding import Reading
from fp8graph.flow.learning import Learning
from fp8graph.flow.moving import squares
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.graph.stages import Normalized
from fp8graph.numerics.ranges import Need, Ranges, Stat
from fp8graph.testing.prepare import Prepared


def informed(item: Repair, prepared: Prepared) -> Context:
    """The context with what the repair is told: as it is where that is nothing."""
    if prepared.ctx.plan is None:
        return prepared.ctx
    if item.learns:
        return _learned(prepared)
    if item.weighs:
        return _weighed(item, prepared)
    return _moving(item, prepared) if item.moves else prepared.ctx


def _learned(prepared: Prepared) -> Context:
    """With the moments of every operand."""
    plan, source = prepared.ctx.plan, load(prepared.before)
    assert plan is not None
    there = Normalized(prepared.model.clone(), source, plan.structure)
    feeds = Samples("feeds", lambda: iter(prepared.feeds), len(prepared.feeds))
    observe = Learning(there, prepared.pipeline, prepared.ctx, feeds, Reading())
    keys = [place.key for place in walk.walk(prepared.model) if not place.scope and plan.ops[place.key].inputs]
    return replace(prepared.ctx, moments=observe(plan, keys, []))


def _weighed(item: Repair, prepared: Prepared) -> Context:
    """As if each channel of each operand cost the same, with every second offer granted."""
    ctx, plan = prepared.ctx, prepared.ctx.plan
    assert plan is not None
    for place in walk.walk(prepared.model):
        if plan.ops[place.key].do == "quantize":
            op = OpView(place, prepared.facts, half=plan.ops[place.key].high != "fp32")
            told = {(op.key, slot): np.ones(channels_of(op, slot)) for slot in (0, 1)}
            ctx = replace(
                ctx,
                costs={**ctx.costs, **dict.fromkeys(told, 1.0)},
                noises={**ctx.noises, **told},
                macs={**ctx.macs, op.key: 1000.0},
            )
    granted: dict[str, dict[int, list[int]]] = {}
    for place in walk.walk(prepared.model):
        decision = plan.ops[place.key]
        if decision.do == "quantize":
            view = OpView(place, prepared.facts, half=decision.high != "fp32")
            for offer in list(item.offers(view, decision, ctx))[::2]:
                granted.setdefault(place.key, {}).setdefault(offer.slot, []).append(offer.channel)
    return replace(ctx, granted=granted)


def _moving(item: Repair, prepared: Prepared) -> Context:
    """With the largest values and mean squares by channel that it needs."""
    ctx, plan = prepared.ctx, prepared.ctx.plan
    assert plan is not None
    model = prepared.model.clone()
    here = {value.name for value in walk.values(model.graph)}
    axes: dict[str, int] = {}
    for place in walk.walk(prepared.model):
        decision = plan.ops[place.key]
        view = OpView(place, prepared.facts, half=decision.high != "fp32")
        for need in item.needs(view, decision) if decision.do == "quantize" else ():
            if isinstance(need, Need) and need.axis is not None and need.tensor in here:
                axes[need.tensor] = need.axis
    if not axes:
        return ctx
    steps = Steps([dict(feed) for feed in prepared.feeds])
    steps.prepare(model, list(axes), [])
    stats, powers = dict.fromkeys(axes, Stat()), {name: np.zeros(()) for name in axes}
    for index in range(len(prepared.feeds)):
        for name, array in steps.run(index).items():
            stats[name] = stats[name].merge(Stat.of(array, axes=[axes[name]]))
            sums, size = squares(array, axes[name])
            powers[name] = powers[name] + sums / size
    return replace(ctx, ranges=Ranges("", "feeds", values=stats), powers=powers)
