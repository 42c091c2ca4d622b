"""Take the mean of what quantizing has done to an op's output out of its bias.

What it does   For each Conv and Gemm with a constant bias: the mean error of its output over the data, found from the
               means of its input in the quantized model and in the original, and from the rounded weight, goes into
               the bias.
Why            A mean error passes through every layer behind it, and costs nothing to take away.
Needs          data
Codes          none: what it finds are shifts of biases in the plan's sidecar
Exactness      the bias stays in its type
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fp8graph import formats
from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Repair
from fp8graph.core.products import product_of
from fp8graph.data.plan import Adjust, Decision
from fp8graph.graph import tensors
from fp8graph.graph.tensors import Array
from fp8graph.numerics import cast, sidecar
from fp8graph.numerics.observed import scales_of_weight


@dataclass(frozen=True)
class CorrectBias(Repair):
    """Biases that make good the mean error of an op's output."""

    learns: ClassVar[bool] = True

    def solve(
        self, op: OpView, decision: Decision, ctx: Context, weights: Callable[[int], Array]
    ) -> Sequence[tuple[Adjust, Array]]:
        """What is added to the bias, float32 [output channels], of a Conv or Gemm with a constant one of that shape."""
        product, moments, bias = product_of(op.node), ctx.moments.get(op.key), op.input(2)
        if product is None or moments is None or bias is None or not tensors.is_constant(bias) or not moments.rows:
            return []
        if product.weight != 1:  # a Gemm's bias runs along what is then the activation
            return []
        if any(item.kind == "bias" for item in decision.adjust) or len(bias.uses()) > 1:
            return []
        slot, value = product.weight, op.input(product.weight)
        quant = decision.inputs.get(slot)
        if value is None or (quant is not None and quant.scale.origin != "computed"):
            return []
        factor = op.node.attributes.get("alpha"), op.node.attributes.get("beta")
        if any(item is not None and item.as_float() != 1 for item in factor):
            return []
        weight, held = weights(slot), tensors.read(bias).astype(np.float32)
        exact = weight.astype(np.float32)
        rounded = exact
        if quant is not None:
            form = formats.get(quant.format)
            solved = next((item for item in decision.adjust if item.kind == "codes" and item.slot == slot), None)
            scale = np.asarray(scales_of_weight(exact, quant).effective, np.float32)
            codes = (
                cast.encode(exact, form, scale, quant.granularity) if solved is None else ctx.found[solved.value.name]
            )
            rounded = cast.decode(codes, form, scale, quant.granularity)
        rows, kept = product.rows(exact).astype(np.float64), product.rows(rounded).astype(np.float64)
        if held.shape != (len(rows),):
            return []
        groups = moments.gram.shape[0]
        mean, lost = (sums.astype(np.float64) * moments.unit / moments.rows for sums in (moments.sums, moments.lost))
        step = len(rows) // groups
        of = np.repeat(np.arange(groups), step)
        shift = np.sum(rows * (mean + lost)[of] - kept * mean[of], axis=1)
        # Not the bias itself: what is lost does not hang on it, so that one that was trained on stays what it became.
        found = shift.astype(np.float32)
        named = sidecar.reference(f"{quant.value if quant else value.name}.bias.{op.key}", found)
        return [(Adjust("bias", slot, self.name, named, sidecar.weight_digest(weight)), found)]
