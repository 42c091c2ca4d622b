"""An operand in two FP8 terms: x = hi + lo / 16 with hi = DQ(Q(x)) and lo = DQ(Q(16 (x - hi))).

Chosen channels of one operand of a product are summed over twice, the second time with what the first rounding lost:

    sum over [hi, lo] times [w, w / 16]      still one product with one scale for each operand

What rounding loses is at most 1/16 of x in E4M3, so that 16 times it has the range of x; w / 16 only moves the
exponent, but where it becomes subnormal, of a part that is 1/256 of the whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8graph.core.context import OpView
from fp8graph.core.quants import contraction_axis
from fp8graph.data.plan import CAME, PAIR, Decision, Quant
from fp8graph.formats.spec import Format
from fp8graph.graph import tensors
from fp8graph.numerics import cast

# What the second term is multiplied by; 2^(mantissa bits + 1) of E4M3.
FACTOR = 16.0


def widened(codes: NDArray[np.uint8], channels: NDArray[np.int64], axis: int, form: Format) -> NDArray[np.uint8]:
    """Codes of the other operand where it is a weight: those of `channels` again along `axis`, divided by 16."""
    again = cast.decode(np.take(codes, channels, axis), form) / np.float32(FACTOR)
    return np.concatenate([codes, cast.encode(again, form)], axis)


def joined(operand: NDArray[Any], channels: NDArray[np.int64], axis: int) -> NDArray[np.float32]:
    """What an operand in two terms stands for: [hi, lo] with `channels` twice, back to as many as there were."""
    count = operand.shape[axis] - len(channels)
    first, second = np.split(operand.astype(np.float32), [count], axis)
    whole = np.moveaxis(first.copy(), axis, 0)
    whole[channels] += np.moveaxis(second, axis, 0) / np.float32(FACTOR)
    return np.moveaxis(whole, 0, axis)


def splittable(op: OpView, decision: Decision, which: str) -> list[int]:
    """Slots of activations that may be in two terms: of E4M3 with one scale that was observed.

    which   `all`; `constant`: of products with a weight alone, so that attention stays in one kernel; `none`
    """
    if which == "none" or op.node.op_type not in ("Conv", "MatMul", "Gemm") or set(decision.inputs) != {0, 1}:
        return []
    group = op.node.attributes.get("group")
    if op.node.op_type == "Conv" and group is not None and group.as_int() != 1:
        return []
    constant = [slot for slot in (0, 1) if tensors.is_constant(op.input(slot))]
    if len(constant) > 1 or (which == "constant" and not constant):
        return []
    for slot in (0, 1):
        quant = decision.inputs[slot]
        summed = contraction_axis(op.node, slot, len(op.input_dims(slot) or ()))
        if quant.format != "e4m3fn" or (slot not in constant and not _plain(quant)):
            return []
        if slot in constant and (not quant.scale.of_weight or quant.scale.rule == CAME or _along(quant, summed)):
            return []
    return [slot for slot in (0, 1) if slot not in constant and channels_of(op, slot)]


def channels_of(op: OpView, slot: int) -> int:
    """How many channels an operand is summed over; 0 where that is not known."""
    dims = op.input_dims(slot)
    size = dims[contraction_axis(op.node, slot, len(dims))] if dims else None
    return size or 0


def _plain(quant: Quant) -> bool:
    return quant.scale.value is not None and not quant.granularity.blocks and quant.scale.rule != PAIR


def _along(quant: Quant, axis: int) -> bool:
    """Whether scales change along an axis."""
    return any(index == axis or size > 1 for index, size in quant.granularity.blocks)
