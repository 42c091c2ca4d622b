"""Let a residual addition read the FP8 tensor that lies beside it anyway.

What it does   An Add that reads a tensor which otherwise only a QuantizeLinear and such Adds read, reads its
               DequantizeLinear instead. No recipe of ours names this pass: --passes share-residual does.
Why            The skip branch is then kept as FP8 alone: half the bytes of fp16. No engine adds in FP8, so that it
               costs accuracy and gains memory traffic at most (tensorrt_rtx 1.7.1: one kernel in high precision either
               way).
Codes          FG223 an addition reads a rounded skip branch
Exactness      rounds the skip branch to FP8
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.graph import edit, walk


@dataclass(frozen=True)
class ShareResidual(RewritePass):
    """Skip branches in FP8."""

    stage: ClassVar[Stage] = Stage.FOLD
    exact: ClassVar[Exactness] = Approximate("rounds skip branches to FP8")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Each Add once; each of its operands that can."""
        changed = 0
        for place in list(walk.walk(model)):
            if place.node.op_type != "Add" or place.node.domain not in ("", "ai.onnx"):
                continue
            for slot, value in enumerate(place.node.inputs):
                rounded = _rounded(value, place.graph)
                if rounded is not None:
                    edit.replace_input(place.node, slot, rounded)
                    ctx.note("FG223", place.key, f"reads '{value.name if value else ''}' as it is rounded to FP8")
                    changed += 1
        return changed


def _rounded(value: ir.Value | None, graph: ir.Graph | ir.Function) -> ir.Value | None:
    """What the one pair on a value yields, where nobody but Adds reads the value beside it."""
    if value is None or value.is_graph_output():
        return None
    readers = [user for user, _ in value.uses()]
    pairs = list(dict.fromkeys(user for user in readers if user.op_type == "QuantizeLinear"))
    if len(pairs) != 1 or pairs[0].graph is not graph:
        return None
    if any(user.op_type not in ("QuantizeLinear", "Add") for user in readers):
        return None
    results = [user.outputs[0] for user, _ in pairs[0].outputs[0].uses() if user.op_type == "DequantizeLinear"]
    return next((result for result in results if result.dtype == value.dtype), None)
