"""Legality before the build: what a target rejects or silently drops, with node, consequence and mend.

Works on anybody's Q/DQ model. Rules are those measured on TensorRT-RTX 1.7.1 engines; `error` is what a builder refuses
or computes wrongly, `warning` what builds and does not run in FP8.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from fp8graph.base.findings import Finding
from fp8graph.core.planner import COMPUTE, output_axis
from fp8graph.data.target import Target
from fp8graph.graph import tensors, walk

_FP8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2FNUZ)
# Casts that an engine takes up between DQ and op.
_CASTS = {(ir.DataType.FLOAT, ir.DataType.FLOAT16), (ir.DataType.FLOAT, ir.DataType.BFLOAT16)}


def check(model: ir.Model, target: Target) -> list[Finding]:
    """All findings in graph order."""
    return [
        *_versions(model, target),
        *(finding for place in walk.walk(model) for finding in _check_node(place, target)),
    ]


def _versions(model: ir.Model, target: Target) -> Iterator[Finding]:
    fp8 = any(_is_fp8(value) for place in walk.walk(model) for value in (*place.node.inputs, *place.node.outputs))
    opset = model.graph.opset_imports.get("", 0)
    if fp8 and opset < 19:
        yield Finding(
            "FG311",
            "error",
            "",
            f"FP8 Q/DQ is legal from opset 19, the model imports {opset}",
            "python -m fp8graph check --fix",
        )
    if model.ir_version > target.ir_version:
        yield Finding(
            "FG311",
            "warning",
            "",
            f"IR version {model.ir_version} is newer than {target.name} reads ({target.ir_version})",
        )


def _check_node(place: walk.Place, target: Target) -> Iterator[Finding]:
    node = place.node
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and (_is_fp8(node.inputs[0]) or _is_fp8(node.outputs[0])):
        yield from _check_pair(place)
    elif node.op_type in COMPUTE and node.domain in ("", "ai.onnx"):
        yield from _check_product(place, target)


def _check_pair(place: walk.Place) -> Iterator[Finding]:
    node = place.node
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    if scale is None:
        return
    if not tensors.is_constant(scale):
        yield Finding(
            "FG307",
            "warning",
            place.key,
            f"the scale '{scale.name}' is computed: engines then only simulate FP8",
            "use a constant scale",
        )
    else:
        array = tensors.read(scale).astype(np.float32)
        if array.size and not (np.isfinite(array).all() and (array > 0).all()):
            yield Finding(
                "FG310", "error", place.key, f"the scale '{scale.name}' is not positive and finite throughout"
            )
        if (
            array.ndim == 1
            and array.size == 1
            and not (node.inputs[0] is not None and node.inputs[0].shape is not None and len(node.inputs[0].shape) == 1)
        ):
            yield Finding(
                "FG307",
                "warning",
                place.key,
                f"the scale '{scale.name}' has shape [1]: a Conv then falls back",
                "give it rank 0",
            )
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and tensors.is_constant(zero) and np.any(tensors.read(zero).astype(np.float32)):
        yield Finding(
            "FG309", "error", place.key, f"the zero point '{zero.name}' is not zero: engines ignore it, FP8 has none"
        )


def _check_product(place: walk.Place, target: Target) -> Iterator[Finding]:
    node = place.node
    found = [_dequantizer(value, target) for value in node.inputs[:2]]
    promised = any(item[0] is not None for item in found)
    if not promised and any(item[1] is None for item in found):
        return  # nobody meant it to run in FP8
    for slot, (dequantizer, obstacle) in enumerate(found):
        if dequantizer is None:
            what = f"{obstacle.op_type} between DQ and the op" if obstacle is not None else "no Q/DQ"
            code = "FG306" if obstacle is not None else "FG305"
            if obstacle is not None and obstacle.op_type == "Cast":
                code = "FG312"
            yield Finding(
                code,
                "warning",
                place.key,
                f"operand {slot} has {what}: the op runs in high precision",
                "put Q/DQ directly before both operands",
            )
        elif _sums_over(node, slot, dequantizer):
            yield Finding(
                "FG308",
                "warning",
                place.key,
                f"the scales of operand {slot} lie along the axis that is summed over: the op runs in high precision",
                "take one scale, or one per output channel",
            )


def _sums_over(node: ir.Node, slot: int, dequantizer: ir.Node) -> bool:
    """Whether an operand that comes straight from a DQ has a vector of scales along another axis than its outputs'."""
    value, scale = dequantizer.outputs[0], dequantizer.inputs[1]
    if node.inputs[slot] is not value or scale is None or scale.shape is None or value.shape is None:
        return False
    if len(scale.shape) != 1 or scale.shape[0] == 1 or "block_size" in dequantizer.attributes:
        return False
    rank = len(value.shape)
    axis = dequantizer.attributes["axis"].as_int() if "axis" in dequantizer.attributes else 1
    if node.op_type == "Conv" and slot == 0:
        return True
    return axis % rank != output_axis(node, slot, rank)


def _dequantizer(value: ir.Value | None, target: Target) -> tuple[ir.Node | None, ir.Node | None]:
    """The FP8 DequantizeLinear that an operand comes from, or the op that hides one."""
    for _ in range(16):
        node = value.producer() if value is not None else None
        if node is None or value is None:
            return None, None
        if node.op_type == "DequantizeLinear":
            return (node, None) if _is_fp8(node.inputs[0]) else (None, None)
        if node.op_type == "Cast":
            source = node.inputs[0]
            if source is None or (source.dtype, value.dtype) not in _CASTS:
                return None, node if _hides(node) else None
        elif node.op_type not in target.through:
            return None, node if _hides(node) else None
        value = node.inputs[0]
    return None, None


def _hides(node: ir.Node) -> bool:
    """Whether the op's first input comes straight from an FP8 DequantizeLinear."""
    value = node.inputs[0] if node.inputs else None
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear" and _is_fp8(producer.inputs[0])


def _is_fp8(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in _FP8
