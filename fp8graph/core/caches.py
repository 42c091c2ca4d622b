"""Caches of keys and values: graph inputs that a step of generation reads, and outputs that the next one reads."""

from __future__ import annotations

import json
import re
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


# Where `import` writes down the scales of a checkpoint that no tensor of the graph takes, by their names there.
GIVEN = "fp8graph.given_scales"
# Names of scales end in one of these: for keys, for values, for both.
_SCALE = re.compile(r"(?:^|[._])(k|v|kv)_(?:cache_)?scale$")
_KIND = re.compile(r"(?:^|[._])(key|value|k|v)s?(?=$|[._])")
_LAYER = re.compile(r"(?:^|[._])(\d+)(?=$|[._])")


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


def given_scales(model: ir.Model) -> dict[ir.Value, float]:
    """The scales that a checkpoint has for caches, by the value that holds the whole: the output, else the input."""
    scales = ((item, _scale_of(model, item.input.name or "")) for item in find(model))
    return {item.output or item.input: scale for item, scale in scales if scale is not None}


def behind(value: ir.Value | None) -> Iterator[ir.Value]:
    """A value, and what it is moved from."""
    while value is not None:
        yield value
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in _MOVES - {"Mul"} and node.inputs else None


def _scale_of(model: ir.Model, cache: str) -> float | None:
    """By the number of the layer, and by keys or values.

    model.layers.3.self_attn.k_scale     for     past_key_values.3.key
    """
    layers, kinds = _LAYER.findall(cache), _KIND.findall(cache)
    if len(layers) != 1 or not kinds:
        return None
    found = set()
    for name, number in _given(model).items():
        scale = _SCALE.search(name)
        if scale is not None and _LAYER.findall(name) == layers and scale.group(1) in (kinds[-1][0], "kv"):
            found.add(float(number))
    return found.pop() if len(found) == 1 else None


def _given(model: ir.Model) -> dict[str, float]:
    try:
        said = json.loads(model.metadata_props.get(GIVEN, "{}"))
    except ValueError:
        return {}
    numbers = said.items() if isinstance(said, dict) else ()
    return {str(name): number for name, number in numbers if isinstance(number, (int, float)) and number > 0}


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
