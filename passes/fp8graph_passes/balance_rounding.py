"""Round weights so that the rounding errors of each output channel add up to nothing.

Rounding each weight to its nearest code leaves an error e = W_q - W whose sum over an output channel is not zero. On
inputs of one sign (behind ReLU, Sigmoid, Softmax) the sum times the mean input is a shift of that channel's output.

What it does   For each output channel, starting from nearest rounding, moves single weights to their other neighbour,
               cheapest first (least growth of the squared error for the shift it mends), while that brings the
               channel's summed error nearer to zero. Needs no data.
Why            The mean shift is the part of the error that later layers do not average out.
Codes          none: what it finds are codes in the plan's sidecar
Exactness      weights stay on their grid, within one step of nearest rounding
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fp8graph import formats
from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Repair
from fp8graph.data.plan import CAME, Adjust, Decision, Quant
from fp8graph.formats.spec import Format
from fp8graph.graph import tensors
from fp8graph.graph.tensors import Array
from fp8graph.numerics import cast, sidecar
from fp8graph.numerics.observed import peaks_of_weight
from fp8graph.numerics.scale import scale_from_amax


@dataclass(frozen=True)
class BalanceRounding(Repair):
    """Data-free rounding of weights that keeps each output channel's sum.

    share   at most this share of a channel's weights is moved off its nearest code
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"share": (0, 1)}

    share: float = 0.1

    def solve(
        self, op: OpView, decision: Decision, ctx: Context, weights: Callable[[int], Array]
    ) -> Sequence[tuple[Adjust, Array]]:
        """Codes for each constant operand that has a scale per output channel."""
        found = []
        for slot, quant in sorted(decision.inputs.items()):
            if (
                quant.scale.origin != "computed"
                or quant.scale.rule == CAME
                or not quant.granularity.blocks
                or not tensors.is_constant(op.input(slot))
            ):
                continue
            weight = weights(slot)
            codes = self._balanced(weight.astype(np.float32), quant)
            # A weight that is read along two axes has codes for each.
            name = f"{quant.value}.codes.axis{quant.granularity.blocks[0][0]}"
            reference = sidecar.reference(name, codes)
            found.append((Adjust("codes", slot, self.name, reference, sidecar.weight_digest(weight)), codes))
        return found

    def _balanced(self, weight: Array, quant: Quant) -> Array:
        form = formats.get(quant.format)
        axis = quant.granularity.blocks[0][0]
        scale = np.asarray(
            scale_from_amax(peaks_of_weight(weight, quant.granularity, form, quant.scale.rule), form), np.float32
        )
        shape = quant.granularity.broadcast_shape(weight.shape)
        codes = cast.encode(weight, form, scale.reshape(shape))
        rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1).copy()
        exact = np.moveaxis(weight.astype(np.float64) / scale.reshape(shape).astype(np.float64), axis, 0).reshape(
            rows.shape
        )
        for index in range(rows.shape[0]):
            _balance(rows[index], exact[index], form, self.share)
        moved = np.moveaxis(weight, axis, 0).shape
        return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis))


def _balance(codes: Array, exact: Array, form: Format, share: float) -> None:
    """Moves codes of one channel in place until the summed error changes its sign, or `share` of them has moved."""
    values = cast.decode(codes, form).astype(np.float64)
    error = values - exact
    total = float(error.sum())
    if total == 0 or not np.isfinite(total):
        return
    other = _neighbours(codes, total, form)
    after = cast.decode(other, form).astype(np.float64)
    step = values - after  # how much of the total each move takes away; of the total's sign
    fit = np.isfinite(after) & (np.sign(step) == np.sign(total))
    growth = np.where(fit, ((after - exact) ** 2 - error**2) / np.where(fit, np.abs(step), 1), np.inf)
    for position in np.argsort(growth, kind="stable")[: max(1, int(share * codes.size))]:
        if not np.isfinite(growth[position]):
            return
        if abs(total - step[position]) < abs(total):
            codes[position] = other[position]
            total -= float(step[position])


def _neighbours(codes: Array, total: float, form: Format) -> Array:
    """The next code towards minus infinity where the total error is positive, towards plus infinity where negative.

    Codes are sign and magnitude: a smaller value is one magnitude down for positive numbers, one up for negative.
    Zeros and the largest magnitudes stay.
    """
    sign = codes & 0x80
    magnitude = (codes & 0x7F).astype(np.int16)
    down = (sign == 0) == (total > 0)
    moved = np.where(down, magnitude - 1, magnitude + 1)
    top = int(max(code for code in range(0x80) if form.value(code) is not None))
    keep = (magnitude == 0) | (moved < 0) | (moved > top)
    return np.where(keep, codes, (sign | np.clip(moved, 0, 0x7F).astype(np.uint8))).astype(np.uint8)
