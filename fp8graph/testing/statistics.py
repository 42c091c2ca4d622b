"""What a repair of channels is told, from the feeds that a contract is checked on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fp8graph.calibrate.stepping import Steps
from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Repair
from fp8graph.flow.moving import squares
from fp8graph.graph import walk
from fp8graph.numerics.ranges import Need, Ranges, Stat
from fp8graph.testing.prepare import Prepared


def informed(item: Repair, prepared: Prepared) -> Context:
    """The context with the largest values and mean squares by channel that the repair needs; as it is for others."""
    ctx, plan = prepared.ctx, prepared.ctx.plan
    if not item.moves or plan is None:
        return ctx
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
