"""Keep what is quantized already: nothing is quantized twice, and scales that came with the model stay.

What it does   Keeps a Conv, Gemm or MatMul of which an operand comes from a DequantizeLinear, directly or through data
               movement: in another format than the recipe's, with a zero point, or beside a float operand. What
               `lift-given-pairs` and `lift-given-weights` took off the graph is none.
Why            A second rounding on another grid adds noise and gains nothing; whoever placed the first pair chose it.
Codes          FG230 kept: quantized already
Exactness      plan only, no arithmetic changes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Opinion, PlanRule
from fp8graph.graph import given

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class KeepQuantized(PlanRule):
    """Ops with a dequantized operand stay as they came."""

    firm: ClassVar[bool] = True

    def decide(self, op: OpView, ctx: Context) -> Opinion | None:
        """Walks up from both operands."""
        if op.node.op_type not in _PRODUCTS:
            return None
        for slot in (0, 1):
            node = given.dequantizer(op.input(slot))
            if node is not None:
                codes = node.inputs[0]
                kind = codes.dtype.name.lower() if codes is not None and codes.dtype is not None else "codes"
                return Opinion("keep", "FG230", f"operand {slot} is quantized already ({kind}): its scale is kept")
        return None
