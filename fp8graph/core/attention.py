"""Attention written out: two products around a Softmax. One matcher for planning, folding and checking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from fp8graph.base.errors import UsageError
from fp8graph.graph import walk
from fp8graph.graph.tensors import is_constant

# Between the scores' product and Softmax: scales, masks, casts, soft capping.
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_BEFORE = _QDQ | {"Mul", "Div", "Add", "Sub", "Where", "Cast", "Identity", "Tanh", "Reshape", "Max", "Min"}
# Between Softmax and the second product: casts, dropout, the guard against rows that are masked throughout.
_AFTER = _QDQ | {"Cast", "Dropout", "Identity", "Where", "Reshape"}
# Between a weight as it is stored and the product that reads it.
_DRESS = _QDQ | {"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Attention:
    """One attention: `scores` = Q K^T, `softmax`, `context` = P V; `probability_slot` is P's slot in `context`.

    `guarded`: between Softmax and context lies a Where, such as the guard against rows that are masked throughout.
    """

    scores: ir.Node
    softmax: ir.Node
    context: ir.Node
    probability_slot: int
    guarded: bool = False

    @property
    def exposed(self) -> bool:
        """Whether scores or probabilities are graph outputs: then no engine fuses it, in any precision."""
        held = (self.scores.outputs[0], self.softmax.outputs[0], self.context.inputs[self.probability_slot])
        return any(value is not None and value.is_graph_output() for value in held)


def find(model: ir.Model) -> Iterator[Attention]:
    """Every written-out attention of the model, bodies and functions included, in graph order."""
    for place in walk.walk(model):
        if place.node.op_type != "Softmax" or place.node.domain not in ("", "ai.onnx"):
            continue
        scores = _scores(place.node.inputs[0])
        found = _context(place.node.outputs[0])
        if scores is not None and found is not None:
            yield Attention(scores, place.node, *found)


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a constant, or one that was quantized, cast or moved."""
    for _ in range(8):
        if value is None or is_constant(value):
            return value is not None
        node = value.producer()
        if node is None or node.op_type == "Constant":
            return node is not None
        if node.op_type not in _DRESS or not node.inputs:
            return False
        value = node.inputs[0]
    return False


def _product(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and not any(is_weight(value) for value in node.inputs)


def _scores(value: ir.Value | None) -> ir.Node | None:
    """Walks up from Softmax along the operand that is no constant, to the product of two activations."""
    stack, seen = [value], 0
    while stack and seen < 32:
        value = stack.pop()
        node = value.producer() if value is not None else None
        seen += 1
        if node is None:
            continue
        if _product(node):
            return node
        if node.op_type in _BEFORE:
            # Masks are operands, too; the scores are the first operand that leads to a product.
            operands = node.inputs[1:] if node.op_type == "Where" else node.inputs
            stack.extend(operand for operand in reversed(operands) if operand is not None and not is_constant(operand))
    return None


def _context(value: ir.Value) -> tuple[ir.Node, int, bool] | None:
    """Walks down from Softmax to the product that has the probabilities as an operand, and tells of a Where between."""
    stack, seen = [(value, False)], 0
    while stack and seen < 16:
        current, guarded = stack.pop()
        seen += 1
        for user, slot in current.uses():
            if _product(user):
                return user, slot, guarded
            if user.op_type in _AFTER:
                stack.extend((output, guarded or user.op_type == "Where") for output in user.outputs[:1])
    return None


def unfused(key: str, why: str) -> UsageError:
    """An attention that must fuse (`--attention must-fuse`), and cannot."""
    return UsageError(
        "an attention that must fuse cannot",
        where=f"--attention must-fuse, op {key}",
        why=why,
        do="mend what the reason names, or leave --attention must-fuse out",
        code="FG233",
    )
