"""What is in a model: inputs and outputs, ops by type and precision, scales."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.data.contents import Contents, OpContent, ScaleContent
from fp8graph.graph import tensors, walk
from fp8graph.graph.protos import infer_types
from fp8graph.graph.save import weight_bytes

_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Identity", "Cast"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def contents(model: ir.Model, file: str = "") -> Contents:
    """What is in a model; weights are not read, but for scales. Its types are inferred in place."""
    infer_types(model)
    about = {
        "file": file,
        "producer": f"{model.producer_name or '?'} {model.producer_version or ''}".strip(),
        "ir_version": model.ir_version,
        "opset": dict(model.graph.opset_imports),
        "weight_bytes": weight_bytes(model),
    }
    io = {
        "inputs": [_value(value) for value in model.graph.inputs],
        "outputs": [_value(value) for value in model.graph.outputs],
    }
    places = list(walk.walk(model))
    ops = tuple(_op(place) for place in places)
    scales = tuple(_scale(place) for place in places if place.node.op_type == "DequantizeLinear")
    return Contents("model", about, io, ops, scales, _weights(model, places))


def _op(place: walk.Place) -> OpContent:
    node = place.node
    type_, size = "", None
    if node.op_type in _PRODUCTS and len(node.inputs) > 1:
        held = _held(node.inputs[1])
        if held is not None:
            type_, size = _short(held.dtype), held.nbytes
    minor = walk.FOR in node.metadata_props
    return OpContent(
        place.key, node.name or "", node.op_type, precision(node), weight=type_, weight_bytes=size, minor=minor
    )


def _held(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The stored tensor that an operand is made of, behind data movement and a DequantizeLinear."""
    for _ in range(2):
        node = walk.origin(value, _MOVES)
        if node is None or node.op_type != "DequantizeLinear":
            break
        value = node.inputs[0]
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in _MOVES or not node.inputs:
            return None
        value = node.inputs[0]
    return value.const_value if value is not None else None


def _weights(model: ir.Model, places: Sequence[walk.Place]) -> dict[str, int]:
    """Bytes of initializers and Constants by type."""
    held = [
        value.const_value
        for _, graph in walk.graphs(model)
        if not isinstance(graph, ir.Function)
        for value in graph.initializers.values()
    ]
    held += [place.node.outputs[0].const_value for place in places if place.node.op_type == "Constant"]
    sizes: dict[str, int] = {}
    for tensor in held:
        if tensor is not None:
            sizes[_short(tensor.dtype)] = sizes.get(_short(tensor.dtype), 0) + tensor.nbytes
    return dict(sorted(sizes.items()))


def _short(dtype: ir.DataType | None) -> str:
    if dtype is None:
        return "?"
    return formats.family(tensors.word(dtype)) or tensors.FLOATS.get(dtype, dtype.name.lower())


def precision(node: ir.Node) -> str:
    """What the file says of an op's arithmetic: `fp8` where both operands come from FP8 Q/DQ, else its own type."""
    if node.op_type in _PRODUCTS and len(node.inputs) > 1:
        stored = {_stored(value) for value in node.inputs[:2]}
        if len(stored) == 1 and None not in stored:
            return str(stored.pop())
    for value in node.outputs:
        if value.dtype is not None:
            return _short(value.dtype)
    return "?"


def _stored(value: ir.Value | None) -> str | None:
    """The type behind the DequantizeLinear that an operand comes from through data movement."""
    node = walk.origin(value, _MOVES)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    codes = node.inputs[0]
    return formats.family(tensors.word(codes.dtype)) or None if codes is not None else None


def _value(value: ir.Value) -> Mapping[str, Any]:
    shape = None if value.shape is None else [d if isinstance(d, int) else str(d) for d in value.shape]
    return {"name": value.name, "type": value.dtype.name.lower() if value.dtype is not None else "?", "shape": shape}


def _scale(place: walk.Place) -> ScaleContent:
    node = place.node
    codes, scale = node.inputs[0], node.inputs[1]
    key = node.metadata_props.get(walk.FOR, "") or place.key
    name = (codes.name or "") if codes is not None else ""
    stored = _short(codes.dtype) if codes is not None else "?"
    if scale is None or not tensors.is_constant(scale):
        return ScaleContent(name, key, stored, origin="dynamic")
    array = tensors.read(scale).astype(np.float64)
    if not array.size:
        return ScaleContent(name, key, stored, scales=0)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return ScaleContent(name, key, stored, "", "", int(array.size), float(array.min()), float(array.max()), digest)
