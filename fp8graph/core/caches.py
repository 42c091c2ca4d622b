"""Caches of keys and values: graph inputs that a step of generation reads, and outputs that the next one reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from fp8graph.graph.tensors import FLOATS, is_constant

# What joins the keys or values of a step to those of earlier ones; the first input is the older part.
JOINS = frozenset({"Concat", "ScatterND", "ScatterElements", "TensorScatter"})
_SAME = frozenset({"Cast", "Identity"})
_ANY: frozenset[str] = frozenset()
_MOVES = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Cast", "Identity", "Mul"})
# How far an attention product may lie behind a cache: rotations, repeats of heads, scales.
_REACH = 48


@dataclass(frozen=True)
class Found:
    """A cache. `output` is the graph output that holds it with this step's part, None where there is none."""

    input: ir.Value
    output: ir.Value | None


def find(model: ir.Model) -> Iterator[Found]:
    """The caches of the main graph, in the order of its inputs.

    A cache is a float input of rank 3 or 4 that is joined to this step's part (Concat or a scatter), where the whole
    is a graph output and reaches a product of two activations; or an input of rank 4 that nothing but data movement
    lies between and such a product (keys and values of an encoder).
    """
    for value in model.graph.inputs:
        rank = len(value.shape) if value.shape is not None else 0
        if value.dtype not in FLOATS or rank not in (3, 4) or value.name in model.graph.initializers:
            continue
        joined = _joined(value)
        output = _returned(joined) if joined is not None else None
        if joined is not None and output is not None and _reaches(joined, _ANY):
            yield Found(value, output)
        elif joined is None and rank == 4 and not value.is_graph_output() and _reaches(value, _MOVES):
            yield Found(value, None)


def _joined(value: ir.Value) -> ir.Value | None:
    """What a join makes of the value."""
    for user, slot in _users(value):
        if user.op_type in JOINS and slot == 0:
            return user.outputs[0]
    return None


def _returned(value: ir.Value) -> ir.Value | None:
    """The graph output that holds the value, itself or behind casts."""
    if value.is_graph_output():
        return value
    for user, _ in value.uses():
        if user.op_type in _SAME and (found := _returned(user.outputs[0])) is not None:
            return found
    return None


def _users(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    for user, slot in value.uses():
        if user.op_type in _SAME:
            yield from _users(user.outputs[0])
        else:
            yield user, slot


def _reaches(value: ir.Value, through: frozenset[str]) -> bool:
    """Whether a product of two activations reads the value; `through`: op types that may lie between, any if empty."""
    stack, seen = [value], set[ir.Node]()
    while stack and len(seen) < _REACH:
        for user, _ in stack.pop().uses():
            if user in seen:
                continue
            seen.add(user)
            if user.op_type == "MatMul":
                if not any(is_constant(operand) for operand in user.inputs):
                    return True
            elif not through or user.op_type in through:
                stack.extend(user.outputs)
    return False
