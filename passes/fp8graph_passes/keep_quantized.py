"""Keep what is quantized already: nothing is quantized twice, and scales that came with the model stay.

What it does   Keeps a Conv, Gemm or MatMul of which an operand comes from a DequantizeLinear, directly or through data
               movement.
Why            A second rounding on another grid adds noise and gains nothing; whoever placed the first pair chose it.
Codes          FG230 kept: quantized already
Exactness      plan only, no arithmetic changes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Opinion, PlanRule

_MOVES = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Identity", "Cast", "MaxPool"}
)
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
            codes = _codes(op.input(slot))
            if codes is not None:
                kind = codes.dtype.name.lower() if codes.dtype is not None else "codes"
                return Opinion("keep", "FG230", f"operand {slot} is quantized already ({kind}): its scale is kept")
        return None


def _codes(value: ir.Value | None) -> ir.Value | None:
    """The codes behind the DequantizeLinear that a value comes from."""
    for _ in range(16):
        node = value.producer() if value is not None else None
        if node is None:
            return None
        if node.op_type == "DequantizeLinear":
            return node.inputs[0]
        if node.op_type not in _MOVES:
            return None
        value = node.inputs[0]
    return None
