"""What is constant in a model, and the numbers of small constants however they are spelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.graph import tensors, walk
from fp8graph.graph.tensors import Array

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_STEPS = 16  # longest chain of nodes between a constant and its reader that is computed
_MOST = 1 << 22  # elements of a constant that is read
_SIMPLE: dict[str, Callable[..., Array]] = {
    "Identity": lambda x: x,
    "Mul": lambda x, y: x * y,
    "Div": lambda x, y: x / y,
    "Add": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Reciprocal": lambda x: np.asarray(1, x.dtype) / x,
    "Reshape": lambda x, shape: x.reshape([int(size) for size in shape]),
    "Squeeze": lambda x, axes=None: np.squeeze(x, None if axes is None else tuple(int(axis) for axis in axes)),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(int(axis) for axis in axes)),
}


def constants(model: ir.Model) -> set[int]:
    """id() of every value that is made of initializers and Constants alone. Nodes may come in any order."""
    found: set[int] = set()
    missing: dict[int, int] = {}  # id of a node -> inputs that are not known to be constant yet
    ready: list[ir.Value] = []
    readers: dict[int, list[ir.Node]] = {}
    for place in walk.walk(model):
        node = place.node
        if node.op_type in _RANDOM or any(True for _ in walk.bodies(node)):
            continue
        inputs = {id(value): value for value in node.inputs if value is not None}
        missing[id(node)] = len(inputs)
        for value in inputs.values():
            readers.setdefault(id(value), []).append(node)
            if value.is_initializer() and not value.is_graph_input():
                ready.append(value)
        if not inputs:
            ready.extend(node.outputs)
    while ready:
        value = ready.pop()
        if id(value) in found:
            continue
        found.add(id(value))
        for node in readers.get(id(value), ()):
            missing[id(node)] -= 1
            if not missing[id(node)]:
                ready.extend(node.outputs)
    return found


def number(value: ir.Value | None, steps: int = _STEPS) -> Array | None:
    """The array of a small constant: an initializer, a Constant, or simple arithmetic, Casts and moves of such.

    None for what is no constant, is larger than 4 Mi elements, or is computed in another way.
    """
    if value is None or steps < 0:
        return None
    if tensors.is_constant(value):
        return _small(value.const_value)
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Constant":
        return _of_attribute(node)
    inputs = [number(each, steps - 1) for each in node.inputs]
    if any(array is None for array in inputs):
        return None
    try:
        with np.errstate(all="ignore"):
            if node.op_type == "Cast":
                return np.asarray(inputs[0]).astype(ir.DataType(node.attributes["to"].as_int()).numpy())
            if node.op_type == "Transpose":
                perm = node.attributes.get("perm")
                return np.asarray(inputs[0]).transpose(None if perm is None else list(perm.as_ints()))
            simple = _SIMPLE.get(node.op_type)
            return simple(*inputs) if simple is not None else None
    except (TypeError, ValueError, KeyError, IndexError):
        return None


def _small(tensor: ir.TensorProtocol | None) -> Array | None:
    return tensor.numpy() if tensor is not None and tensor.size <= _MOST else None


def _of_attribute(node: ir.Node) -> Array | None:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            return None
        if attribute.type == ir.AttributeType.TENSOR:
            return _small(attribute.as_tensor())
        kinds: dict[str, Any] = {"value_float": np.float32, "value_floats": np.float32}
        kinds |= {"value_int": np.int64, "value_ints": np.int64}
        if attribute.name in kinds:
            return np.asarray(attribute.value, kinds[attribute.name])
    return None
