"""Which products lose the kernel that they share with what stands behind them: told, and no reason to keep them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.facts import Facts
from fp8graph.data.plan import Decision, OpKey
from fp8graph.graph import walk


def note_epilogues(ops: Mapping[OpKey, Decision], model: ir.Model, ctx: Context, facts: Facts) -> None:
    """Leaves a note on each quantized op in half precision whose epilogue the target fuses there, and not in FP8.

    Products inside attention are one kernel with it, or are not for other reasons.
    """
    for place in walk.walk(model) if ctx.target.epilogues else ():
        decision = ops.get(place.key)
        if decision is None or decision.do == "keep" or decision.high == "fp32" or place.node in facts.attentions:
            continue
        readers = [user.op_type for user, _ in place.node.outputs[0].uses()]
        if place.node.op_type == "Gemm" and len(place.node.inputs) > 2 and place.node.inputs[2] is not None:
            readers.insert(0, "Add")  # its own bias
        for row in ctx.target.epilogues:
            lost = next((kind for kind in readers if kind in row.behind), None)
            if place.node.op_type in row.ops and lost is not None:
                ctx.note("FG225", place.key, f"{lost} behind it: {row.text}")
                break
