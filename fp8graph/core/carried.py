"""Whether a graph does what its plan says: a promise that nobody carried out must not leave as a result."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.context import Context
from fp8graph.core.reading import DEQUANTIZE
from fp8graph.data.plan import OpKey
from fp8graph.graph import walk


@dataclass(frozen=True)
class Undone:
    """An operand that the plan quantizes and the graph does not; `text` says both."""

    key: OpKey
    slot: int
    text: str


def undone(model: ir.Model, ctx: Context) -> Undone | None:
    """The first operand that does not come from a DequantizeLinear of its planned format; None without a plan.

    Casts, Concat, and the data movement that the target's table lets FP8 pass may lie in between.
    """
    if ctx.plan is None:
        return None
    through = frozenset({"Cast", *ctx.target.through})
    for place in walk.walk(model):
        decision = ctx.plan.ops.get(place.key)
        if decision is None or place.node.op_type != decision.op_type:
            continue  # an op written as another: who wrote it answers for its operands
        for slot, quant in sorted(decision.inputs.items()):
            operand = place.node.inputs[slot] if slot < len(place.node.inputs) else None
            wanted, found = ir.DataType(formats.get(quant.format).onnx_type), _codes(operand, through)
            if found != {wanted}:
                has = " and ".join(sorted("none" if kind is None else f"one of {kind}" for kind in found))
                return Undone(place.key, slot, f"the plan wants a DequantizeLinear of {quant.format}, there is {has}")
    return None


def _codes(value: ir.Value | None, through: frozenset[str]) -> set[ir.DataType | None]:
    """Types of the codes that a value comes from, several where it is joined; None where it comes from none."""
    node = walk.origin(value, through)
    if node is not None and node.op_type == "Concat":
        return {kind for operand in node.inputs for kind in _codes(operand, through)}
    codes = node.inputs[0] if node is not None and node.op_type in DEQUANTIZE else None
    return {codes.dtype if codes is not None else None}
