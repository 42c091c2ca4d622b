"""What repairs weigh: what each operand costs the output, through which of its channels, and what ops compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fp8graph import formats
from fp8graph.calibrate.samples import Samples
from fp8graph.calibrate.stepping import Steps, each
from fp8graph.core.products import product_of
from fp8graph.core.quants import contraction_axis
from fp8graph.core.repairing import Weighed
from fp8graph.data.plan import Decision, OpKey, Plan, Quant
from fp8graph.flow.judging import Metric
from fp8graph.flow.sensing import sense
from fp8graph.graph import tensors, walk
from fp8graph.numerics import cast

if TYPE_CHECKING:
    from fp8graph.flow.job import Job

Array = np.ndarray[Any, Any]
# Samples that costs are measured on, and channels are looked at.
_SENSED, _LOOKED = 64, 16


def weigh(job: Job, plan: Plan, feeds: Samples) -> Weighed:
    """What each operand of a settled plan costs, measured on the first samples."""
    ranking, _ = sense(job, plan, feeds.first(_SENSED), Metric(), operands=True)
    costs = {(cost.key, slot): part for cost in ranking.costs for slot, part in cost.parts.items()}
    # Where an op was switched as a whole, nothing is known of its parts.
    noises, macs = _looked(job, plan, feeds.first(_LOOKED))
    return Weighed(costs, noises, macs)


def _looked(job: Job, plan: Plan, feeds: Samples) -> tuple[dict[tuple[OpKey, int], Array], dict[OpKey, float]]:
    """For each product in FP8 of the main graph what its operands lose by channel, and its multiply-accumulates."""
    model = job.moved(plan).model.clone()
    places = [
        place
        for place in walk.walk(model)
        if not place.scope and (op := plan.ops.get(place.key)) and op.do == "quantize" and op.precision == "fp8"
    ]
    taps: dict[OpKey, dict[int, str]] = {}
    constants: dict[OpKey, dict[int, Array]] = {}
    for place in places:
        for slot in (0, 1):
            value = place.node.inputs[slot]
            assert value is not None
            if tensors.is_constant(value):
                constants.setdefault(place.key, {})[slot] = tensors.read(value)
            else:
                taps.setdefault(place.key, {})[slot] = value.name or ""
    nodes = {place.key: place.node for place in places}
    products = {place.key: product_of(place.node) for place in places}
    steps = Steps([dict(feed) for feed in feeds], job.reading.libraries, job.reading.providers)
    count = len(steps.left)
    axes = {
        (key, slot): contraction_axis(nodes[key], slot, len(nodes[key].inputs[slot].shape or ()) or 2)  # type: ignore[union-attr]
        for key in nodes
        for slot in (0, 1)
    }
    steps.prepare(model, [name for slots in taps.values() for name in slots.values()], [])

    def one(index: int) -> tuple[dict[tuple[OpKey, int], Array], dict[OpKey, float]]:
        seen = steps.run(index)
        losses: dict[tuple[OpKey, int], Array] = {}
        work: dict[OpKey, float] = {}
        for key, slots in taps.items():
            arrays = {slot: seen[name] for slot, name in slots.items()} | constants.get(key, {})
            product = products[key]
            if product is not None:
                work[key] = float(product.window.count(arrays[product.activation].shape) * arrays[product.weight].size)
            else:
                work[key] = float(arrays[0].size * arrays[1].shape[-1])
            losses |= _losses(key, plan.ops[key], arrays, slots, axes)
        return losses, work

    noises: dict[tuple[OpKey, int], Array] = {}
    macs: dict[OpKey, float] = {}
    for losses, work in each(count, one):
        for seat, noise in losses.items():
            noises[seat] = noises[seat] + noise if seat in noises else noise
        for key, number in work.items():
            macs[key] = macs.get(key, 0.0) + number
    return noises, macs


def _losses(
    key: OpKey,
    decision: Decision,
    arrays: dict[int, Array],
    slots: dict[int, str],
    axes: dict[tuple[OpKey, int], int],
) -> dict[tuple[OpKey, int], Array]:
    """Noise by channel: the power of what rounding loses there, times that of what it is multiplied by."""
    found = {}
    for slot in slots:
        quant, other = decision.inputs[slot], arrays[1 - slot]
        lost = _lost(arrays[slot], quant)
        if lost is None:
            continue
        noise, by = _power(lost, axes[key, slot]), _power(other, axes[key, 1 - slot])
        if len(noise) == len(by):
            found[key, slot] = noise * by
    return found


def _lost(array: Array, quant: Quant) -> Array | None:
    if quant.scale.value is None or quant.granularity.blocks:
        return None
    form, scale = formats.get(quant.format), np.asarray(quant.scale.value, np.float32)
    values = np.ascontiguousarray(array, np.float32)
    return values - cast.decode(cast.encode(values, form, scale), form, scale)


def _power(array: Array, axis: int) -> Array:
    axis %= array.ndim
    others = tuple(index for index in range(array.ndim) if index != axis)
    return np.asarray(np.square(array.astype(np.float64)).sum(axis=others))
