"""Round weights so that what an op computes stays what it was, its own input's losses included.

What it does   For each product with a constant operand, one after the other as they depend on each other: of the input
               as it is in the quantized model (everything before it solved already) and as it is in the original, it
               takes second moments over the data; finds the weight that answers best for what the input has lost; and
               rounds it column by column, each column's error made good by those behind it (GPTQ). Codes alone change:
               the model has the same size, ops and scales.
Why            Rounding to nearest is best for the weight by itself, not for its sums; and what activations lose on
               their way is no one's otherwise.
Needs          data
Codes          none: what it finds are codes in the plan's sidecar
Exactness      weights stay on their grid
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fp8graph import formats
from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Repair
from fp8graph.core.products import Product, product_of
from fp8graph.data.plan import Adjust, Decision, Quant
from fp8graph.graph.tensors import Array
from fp8graph.numerics import cast, rounding, sidecar
from fp8graph.numerics.blocks import block_scale
from fp8graph.numerics.moments import Moments
from fp8graph.numerics.observed import scales_of_weight

# Firmer ridges, times the least one.
_STEPS = (5.0, 25.0, 125.0)


@dataclass(frozen=True)
class ReconstructWeights(Repair):
    """Rounding of weights with data, for what the op computes.

    ridge   how firmly a weight is held to what it was at least, as a share of its input's mean square; 5, 25 and 125
            times that are tried where samples are held back
    damp    the same for the weight's rounding
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"ridge": (1e-6, 1e3), "damp": (1e-6, 1e3)}
    learns: ClassVar[bool] = True

    ridge: float = 0.02
    damp: float = 0.01

    def solve(
        self, op: OpView, decision: Decision, ctx: Context, weights: Callable[[int], Array]
    ) -> Sequence[tuple[Adjust, Array]]:
        """Codes of the weight where there are moments of its operand, and they make the op's own error smaller."""
        product, moments = product_of(op.node), ctx.moments.get(op.key)
        if product is None or moments is None:
            return []
        slot = product.weight
        quant, value = decision.inputs.get(slot), op.input(slot)
        solved = any(item.kind == "codes" and item.slot == slot for item in decision.adjust)
        if quant is None or value is None or solved or quant.scale.origin != "computed" or len(value.uses()) > 1:
            return []
        weight = weights(slot)
        codes = self._solved(weight.astype(np.float32), quant, product, moments)
        if codes is None:
            return []
        reference = sidecar.reference(f"{quant.value}.codes.{op.key}", codes)
        return [(Adjust("codes", slot, self.name, reference, sidecar.weight_digest(weight)), codes)]

    def _group(self, rows: Array, moments: Moments, group: int, rounded: rounding.Round) -> Array | None:
        """The rows of one group, solved with the ridge that holds best on samples that they were not solved on."""
        told = moments.held or moments
        best, least, firm = None, math.inf, self.damp
        # Few rows tell little about many columns: where no sample is held back to show it, the ridge grows with that.
        first = self.ridge if moments.held is not None else max(self.ridge, 4 * rows.shape[1] / max(moments.rows, 1))
        for ridge in (first, *(first * step for step in _STEPS if moments.held is not None)):
            try:
                wanted = rounding.answered(rows, moments, group, ridge)
            except np.linalg.LinAlgError:
                continue
            lost = rounding.loss(rows, wanted, told, group)
            if lost < least:
                best, least, firm = wanted, lost, max(self.damp, ridge / _STEPS[0])
        if best is None:
            return None
        try:
            return rounding.compensated(best, moments.gram[group], rounded, firm)
        except np.linalg.LinAlgError:
            return None

    def _solved(self, weight: Array, quant: Quant, product: Product, moments: Moments) -> Array | None:
        form = formats.get(quant.format)
        effective = np.asarray(scales_of_weight(weight, quant).effective, np.float32)
        spread = block_scale(effective, quant.granularity, weight.shape)
        whole = tuple(slice(0, size) for size in weight.shape)
        scale = product.rows(np.broadcast_to(spread.part(whole), weight.shape))
        rows = product.rows(weight)
        groups = moments.gram.shape[0]
        step, better = len(rows) // groups, np.empty(rows.shape, np.float32)
        gained = False
        for group in range(groups):
            of = slice(group * step, (group + 1) * step)

            def rounded(columns: Array, at: slice, of: slice = of) -> Array:
                part = scale[of, at]
                return cast.decode(cast.encode(columns / part, form), form) * part

            better[of] = nearest = rounded(rows[of], slice(None))
            found = self._group(rows[of], moments, group, rounded)
            told = moments.held or moments
            if found is None or rounding.loss(rows[of], found, told, group) >= rounding.loss(
                rows[of], nearest, told, group
            ):
                continue
            better[of], gained = found, True
        return cast.encode(product.back(better, weight.shape), form, effective, quant.granularity) if gained else None
