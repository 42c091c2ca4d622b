"""Keep attention whose heads are smaller than 16.

What it does   Keeps both products of an attention whose head size is below `least`.
Why            FP8 tiles contract over 16 or more elements: smaller heads are padded, so nothing is gained, and in
               stories260k (heads of 8) the five score products made 54 % of all noise.
Codes          FG209 kept: small attention heads
Exactness      plan only, no arithmetic changes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Opinion, PlanRule


@dataclass(frozen=True)
class KeepSmallHeads(PlanRule):
    """Attention with small heads stays in high precision.

    least   smallest head size that is quantized
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"least": (1, 2**31)}

    least: int = 16

    def decide(self, op: OpView, ctx: Context) -> Opinion | None:
        """Asks the head size where the op is a product of attention."""
        size = op.facts.get("head_size")
        if op.node.op_type == "MatMul" and op.facts.get("attention") and isinstance(size, int) and size < self.least:
            return Opinion("keep", "FG209", f"attention heads of {size} are smaller than {self.least}: they are padded")
        return None
