"""What is in a model: inputs and outputs, ops by type and precision, scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.graph import tensors, walk
from fp8graph.graph.protos import infer_types
from fp8graph.graph.save import weight_bytes

_SHORT = {
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.FLOAT8E5M2: "fp8",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.FLOAT4E2M1: "fp4",
    **tensors.FLOATS,
}
_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Identity", "Cast"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def describe(model: ir.Model) -> dict[str, Any]:
    """Plain data about a model; weights are not read, but for scales."""
    infer_types(model)
    ops: dict[str, dict[str, int]] = {}
    scales = []
    for place in walk.walk(model):
        node = place.node
        kinds = ops.setdefault(node.op_type, {})
        kind = precision(node)
        kinds[kind] = kinds.get(kind, 0) + 1
        if node.op_type == "DequantizeLinear":
            scales.append(_scale(place))
    return {
        "producer": f"{model.producer_name or '?'} {model.producer_version or ''}".strip(),
        "ir_version": model.ir_version,
        "opset": dict(model.graph.opset_imports),
        "weight_bytes": weight_bytes(model),
        "inputs": [_value(value) for value in model.graph.inputs],
        "outputs": [_value(value) for value in model.graph.outputs],
        "ops": dict(sorted(ops.items())),
        "scales": scales,
    }


def precision(node: ir.Node) -> str:
    """What the file says of an op's arithmetic: `fp8` where both operands come from FP8 Q/DQ, else its own type."""
    if node.op_type in _PRODUCTS and len(node.inputs) > 1:
        stored = {_stored(value) for value in node.inputs[:2]}
        if len(stored) == 1 and None not in stored:
            return str(stored.pop())
    for value in node.outputs:
        if value.dtype is not None:
            return _SHORT.get(value.dtype, value.dtype.name.lower())
    return "?"


def _stored(value: ir.Value | None) -> str | None:
    """The type behind the DequantizeLinear that an operand comes from through data movement."""
    node = walk.origin(value, _MOVES)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    codes = node.inputs[0]
    return _SHORT.get(codes.dtype) if codes is not None and codes.dtype is not None else None


def _value(value: ir.Value) -> Mapping[str, Any]:
    shape = None if value.shape is None else [d if isinstance(d, int) else str(d) for d in value.shape]
    return {"name": value.name, "type": value.dtype.name.lower() if value.dtype is not None else "?", "shape": shape}


def _scale(place: walk.Place) -> Mapping[str, Any]:
    node = place.node
    codes, scale = node.inputs[0], node.inputs[1]
    row: dict[str, Any] = {
        "key": node.metadata_props.get(walk.FOR, "") or place.key,
        "tensor": codes.name if codes is not None else "",
        "format": _SHORT.get(codes.dtype, "?") if codes is not None and codes.dtype is not None else "?",
    }
    if scale is not None and tensors.is_constant(scale):
        array = tensors.read(scale).astype(np.float64)
        row |= {"scales": int(array.size)}
        if array.size:
            row |= {"least": float(array.min()), "largest": float(array.max())}
    return row
