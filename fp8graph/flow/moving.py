"""Repairs of channels: what they need of the data, and the scales that follow from what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fp8graph.calibrate.samples import Samples
from fp8graph.calibrate.stepping import Steps, each
from fp8graph.core import channels, repairing
from fp8graph.core.context import Context
from fp8graph.core.facts import Facts
from fp8graph.core.passes import Repair
from fp8graph.core.settle import again
from fp8graph.data.plan import Plan
from fp8graph.graph import walk
from fp8graph.numerics.ranges import Need

if TYPE_CHECKING:
    from fp8graph.flow.job import Job

Array = np.ndarray[Any, Any]
# Samples that mean squares are taken of.
_LOOKED = 16


def moved(job: Job, ctx: Context, plan: Plan, repairs: Sequence[Repair], feeds: Samples, facts: Facts) -> Plan:
    """The settled plan with factors of channels, and the scales that operands have with them."""
    if ctx.ranges is None:
        return plan
    wanted = repairing.needs(plan, job.normalized, repairs, facts)
    told = replace(ctx, plan=plan, powers=_powers(job, wanted, feeds))
    found = repairing.repair(plan, job.normalized, repairs, told, facts)
    return again(found, channels.peaks(found, job.normalized.model, ctx.ranges))


def _powers(job: Job, wanted: Sequence[Need], feeds: Samples) -> Mapping[str, Array]:
    """Mean squares by channel of tensors of the main graph, on the first samples."""
    model = job.normalized.model.clone()
    here = {value.name for value in walk.values(model.graph)}
    axes = {need.tensor: need.axis for need in wanted if need.axis is not None and need.tensor in here}
    if not axes:
        return {}
    steps = Steps([dict(feed) for feed in feeds.first(_LOOKED)], job.reading.libraries, job.reading.providers)
    count = len(steps.left)
    steps.prepare(model, list(axes), [])

    def one(index: int) -> dict[str, tuple[Array, int]]:
        return {name: squares(array, axes[name]) for name, array in steps.run(index).items()}

    sums: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    for part in each(count, one):
        for name, (lot, size) in part.items():
            sums[name] = sums.get(name, 0.0) + lot
            sizes[name] = sizes.get(name, 0) + size
    return {name: array / max(sizes[name], 1) for name, array in sums.items()}


def squares(array: Array, axis: int) -> tuple[Array, int]:
    """Sums of squares by index of one axis, and how many elements each is of."""
    others = tuple(index for index in range(array.ndim) if index != axis)
    return np.square(array.astype(np.float64)).sum(axis=others), array.size // array.shape[axis]
