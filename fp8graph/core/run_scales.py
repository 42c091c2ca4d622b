"""Scales that a model finds for its activations in each run: they stay fp32, whatever is around them.

    s = Clip(ReduceMax(|x|), 1e-12) / 448     q = QuantizeLinear(x / s, 1)     y = op(DequantizeLinear(q, 1), ..) * s

In fp16 the floor below the largest value becomes zero, and a token of zeros 0 / 0; in bf16 the scale has 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.reading import ONNX, is_quantizer
from fp8graph.data.plan import Decision, OpKey, Reason
from fp8graph.graph import given, walk

# What may lie between the largest value and the division.
_ARITHMETIC = frozenset(
    {"Abs", "Neg", "Max", "Min", "Clip", "Add", "Mul", "Div", "Reciprocal", "Where", "Pow"}
    | {"ReduceMax", "ReduceMin", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Transpose"}
)
_PEAKS = frozenset({"ReduceMax", "ReduceMin"})
_TEXT = "it computes the scale of an activation in each run, which in half precision could become zero"


def hold(ops: dict[OpKey, Decision], model: ir.Model, ctx: Context) -> None:
    """Keeps what computes such scales, divides by them and multiplies by them in fp32, and says so (FG214); nothing
    where the model's own types stay."""
    if ctx.high not in ("fp16", "bf16"):
        return
    found = dict.fromkeys(node for place in walk.walk(model) for node in _around(place.node))
    for key in filter(ops.__contains__, map(walk.node_key, found)):
        op = ops[key]
        if op.high == "fp32" or op.do != "keep":
            continue
        ctx.note("FG214", key, f"stays fp32: {_TEXT}")
        ops[key] = replace(op, high="fp32", why=Reason("FG214", "scales of each run", f"{_TEXT}; {op.why.text}"))


def _around(node: ir.Node) -> Iterator[ir.Node]:
    """What belongs to scales that are divided by in front of a QuantizeLinear, or of a product that came with one."""
    rounded = [slot for slot in range(len(node.inputs)) if given.held(node, slot) is not None]
    for slot in [0] if is_quantizer(node) else rounded:
        divide = walk.origin(node.inputs[slot], ("Cast",))
        if divide is not None and divide.op_type in ("Div", "Mul") and divide.domain in ONNX:
            yield from _of(divide)


def _of(divide: ir.Node) -> Iterator[ir.Node]:
    """A division by a scale of each run, what computes that, and what multiplies by it; nothing for a constant one."""
    for slot in (1,) if divide.op_type == "Div" else (0, 1):
        whole = divide.inputs[1 - slot]
        chain = _chain(divide.inputs[slot], whole)
        if not any(item.op_type in _PEAKS for item in chain):
            continue
        yield from chain
        yield divide
        for item in chain:
            for user, _ in item.outputs[0].uses():
                if user.op_type == "Mul" and user.domain in ONNX:
                    yield user
        return


def _chain(value: ir.Value | None, whole: ir.Value | None) -> list[ir.Node]:
    """The nodes that a scale comes from, up to the activation itself and to what is no such arithmetic."""
    found, waiting = dict[ir.Node, None](), [value]
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None and value is not whole else None
        if node is None or node in found or node.op_type not in _ARITHMETIC or node.domain not in ONNX:
            continue
        if node.op_type not in (*_PEAKS, "Abs", "Neg") and whole in node.inputs:
            continue  # a way back into the activation
        found[node] = None
        waiting += node.inputs
    return list(found)
