"""Operators that a target does not import, or does not build in the type they have."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from fp8graph.core.check.look import Found, Look
from fp8graph.core.forecast import is_product
from fp8graph.core.reading import ONNX, attribute, given, is_dequantizer, is_quantizer
from fp8graph.graph import tensors, walk

_MICROSOFT = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
# Of fused attention, measured with tensorrt_rtx 1.7.1: keys that FP8 wants, elements of a head, and the length from
# which one head of one sample is worth a kernel (8192 is, 128 is not).
_OPEN = "the number of keys is open"
_LEAST_KEYS, _MOST_HEAD, _LARGE = 32, 256, 8192


def find(look: Look) -> Iterator[Found]:
    """All rules of this file."""
    if not look.table.engine:
        return
    for place in look.places:
        yield from _imported(look, place)
        if place.node.op_type in ("Attention", "TRT_QuantizedAttention") and is_product(place.node):
            yield from _attention(look, place)
        yield from _typed(look, place)


def _imported(look: Look, place: walk.Place) -> Iterator[Found]:
    node, table = place.node, look.table
    if is_quantizer(node) or is_dequantizer(node) or node.op_identifier() in look.model.functions:
        return
    for row in table.refused:
        if node.op_type in row.ops and (node.domain or "") in (row.domain, "ai.onnx"):
            text = f"{node.op_type} is refused: {row.text}"
            do = f"replace it in the model (source: {row.source})"
            yield look.found("FG328", place, text, do, "error")
            return
    if node.domain in ONNX or node.op_type.startswith("TRT_") or onnx.defs.has(node.op_type):
        return
    if node.domain in _MICROSOFT and table.microsoft is not None and node.op_type not in table.microsoft:
        text = f"{node.op_type} is ONNX Runtime's own ({node.domain}), and {look.target.name} does not import it"
        do = "take the model as it was before ONNX Runtime optimised it"
        yield look.found("FG328", place, text, do, "error")
    elif node.domain not in _MICROSOFT:
        text = f"{node.domain}::{node.op_type} is no operator of ONNX: the build needs a library with it"
        yield look.found("FG328", place, text, "build MODEL -o ENGINE --custom-ops LIB.so")


def _attention(look: Look, place: walk.Place) -> Iterator[Found]:
    """The operator Attention has to be a fused kernel: what that cannot do is refused."""
    node = place.node
    dtype = look.reading.dtype(given(node, 0))
    quantized = node.op_type != "Attention"
    why = ""
    if quantized:
        why = _unquantized(look, node)
    elif sum(bool(value.name) for value in node.outputs) > 1:
        why = "it has more than one output"
    elif any(given(node, slot) is not None for slot in (4, 5)):
        why = "it has past keys and values as inputs"
    elif (cap := node.attributes.get("softcap")) is not None and not cap.is_ref() and cap.as_float():
        why = "it has a softcap"
    elif attribute(node, "softmax_precision"):
        why = "it has a softmax_precision"
    if not why and not attribute(node, "TRT_decomposable"):
        why = _unfused(look, node, dtype, least=_LEAST_KEYS if quantized else 1)
    if why.startswith(_OPEN):
        do = "build with --min-shapes that give as many"
        yield look.found("FG327", place, f"{node.op_type} may not be built: {why}", do, "info")
    elif why:
        do = "write it as MatMul, Softmax and MatMul: `optimize` does so, also with --allow-unquantized"
        yield look.found("FG327", place, f"{node.op_type} cannot be built: {why}", do, "error")


def _unquantized(look: Look, node: ir.Node) -> str:
    """Why no FP8 kernel takes a TRT_QuantizedAttention: Q, K and V have to come from Q/DQ."""
    found = look.prophet.operands(node)
    if attribute(node, "TRT_decomposable") or all(each.dequantizer is not None for each in found):
        return ""
    return "Q, K and V have no Q/DQ, all three of them"


def _unfused(look: Look, node: ir.Node, dtype: ir.DataType | None, *, least: int) -> str:
    """Why there is no fused kernel for an Attention, which then has to be `TRT_decomposable`."""
    if dtype is not None and dtype not in tensors.HALF:
        return f"there is no fused kernel in {tensors.FLOATS.get(dtype, dtype.name.lower())}"
    query, keys = (look.prophet.facts.dims(given(node, slot)) for slot in (0, 1))
    if query is None or keys is None or len(query) != 4 or len(keys) != 4:
        return ""
    if query[3] is not None and query[3] > _MOST_HEAD:
        return f"there is no fused kernel for heads of {query[3]}, over {_MOST_HEAD}"
    if query[0] == query[1] == 1 and (query[2] or _LARGE) < _LARGE:
        return "there is no fused kernel for one head of one sample"
    if keys[2] is None and least > 1 and not look.planned:
        return f"{_OPEN}, and its least has to be {least}"
    return f"there is no fused kernel for {keys[2]} keys, below {least}" if (keys[2] or least) < least else ""


def _typed(look: Look, place: walk.Place) -> Iterator[Found]:
    node = place.node
    if node.domain not in ONNX or not look.target.types or node not in look.reading.alive:
        return
    kinds = {look.reading.dtype(value) for value in (*node.outputs, given(node, 0))}
    for dtype in kinds - {None}:
        row = look.target.untyped(node.op_type, tensors.FLOATS.get(dtype, "")) if dtype is not None else None
        if row is not None:
            do = "optimize MODEL -o OUT --high-precision-dtype fp16"
            yield look.found("FG336", place, f"{node.op_type} is not built in this type: {row.text}", do, "error")
            return
