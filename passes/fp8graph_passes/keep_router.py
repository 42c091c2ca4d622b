"""Keep the product that chooses experts: its result is compared, not summed.

What it does   Keeps a MatMul or Gemm whose result reaches TopK through at most six ops that only scale, bias,
               normalise or move it. ArgMax does not count: that is how a classifier or a decoder ends.
Why            A rounding that swaps two close scores sends the token to another expert: an error that no later layer
               mends.
Codes          FG207 kept: router
Exactness      plan only, no arithmetic changes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Opinion, PlanRule

_BETWEEN = frozenset(
    {"Softmax", "Sigmoid", "Add", "Mul", "Div", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Transpose"}
)


@dataclass(frozen=True)
class KeepRouter(PlanRule):
    """Routers of mixtures of experts stay in high precision.

    steps   most ops between the product and the TopK
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"steps": (0, 64)}

    steps: int = 6

    def decide(self, op: OpView, ctx: Context) -> Opinion | None:
        """Walks down from the product's result."""
        if op.node.op_type not in ("MatMul", "Gemm"):
            return None
        front: list[ir.Value] = [op.node.outputs[0]]
        for _ in range(self.steps + 1):
            users = [user for value in front for user, _ in value.uses()]
            if any(user.op_type == "TopK" for user in users):
                return Opinion("keep", "FG207", "its result is ranked by TopK: a rounding would choose another expert")
            front = [user.outputs[0] for user in users if user.op_type in _BETWEEN]
            if not front or len(front) > 8:
                return None
        return None
