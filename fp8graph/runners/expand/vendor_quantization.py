"""TensorRT's quantization operators as standard ones.

    TRT_FP8QuantizeLinear, TRT_FP8DequantizeLinear       Q and DQ of E4M3FN; codes may be said to be uint8
    TRT_INT4QuantizeLinear, TRT_INT4DequantizeLinear     Q and DQ of INT4, blocks by the scale's shape
    TRT_MXFP8QuantizeLinear, TRT_MXFP8DequantizeLinear   Q and DQ of E4M3FN with powers of two (E8M0, also as uint8)
    TRT_MXFP8DynamicQuantize   s = E8M0 at or above amax / 448 of each block; q = Q(x, s)
    TRT_FP4DynamicQuantize     s = Q(amax / 6 of each block, outer) in E4M3FN; q = Q(x, DQ(s, outer)) in E2M1
    trt::QuantizeLinear, trt::DequantizeLinear           ONNX's own, in the domain that ModelOpt first writes them in

They stand in the domain `trt` or in none; where the model defines a function of such a name, that is called. Defaults
are those of the parser: blocks of 32 (MXFP8) and 16 (FP4), axis -1 of MXFP8 and 1 of the others. A block of zeros has
the FP4 scale 0, and codes 0: what it stands for is 0 whatever the codes, and 0 / 0 is not computed.

Source: onnx-tensorrt 10.x, parser of these operators; TensorRT documentation, operator DynamicQuantize and
"Quantization Schemes"; rounding of MXFP8 scales: NVIDIA, Recipes for Pre-training LLMs with MXFP8, 2025.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.graph import edit, opset, protos, tensors, walk
from fp8graph.graph.inlining import inline
from fp8graph.numerics import cast
from fp8graph.runners.expand.writing import FLOAT, Writer, integer, is_standard

DOMAIN = "trt"
_E4M3FN, _E8M0, _E2M1 = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E8M0, ir.DataType.FLOAT4E2M1
_INT4, _UINT8 = ir.DataType.INT4, ir.DataType.UINT8
# The least opset whose standard operators say the same.
_OPSETS = {
    "TRT_FP8QuantizeLinear": 21,
    "TRT_FP8DequantizeLinear": 21,
    "TRT_INT4QuantizeLinear": 21,
    "TRT_INT4DequantizeLinear": 21,
    "TRT_FP4DynamicQuantize": 23,
    "TRT_MXFP8QuantizeLinear": 24,
    "TRT_MXFP8DequantizeLinear": 24,
    "TRT_MXFP8DynamicQuantize": 24,
}
_PLAIN = ("QuantizeLinear", "DequantizeLinear")
_MOVES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


def expand(model: ir.Model) -> ir.Model:
    """A copy without these operators; the model itself where it has none. Raises InputError FG106 where the opset of
    the model cannot be raised to one that has their standard forms."""
    found = [place.node for place in walk.walk(model) if _is_one(place.node, model)]
    if not found:
        return model
    work = model.clone()
    inline(work, lambda function: any(_is_one(node, work) for node in function.all_nodes()))
    for node in [place.node for place in walk.walk(work)]:
        if _is_one(node, work):
            node.domain = DOMAIN  # the converter keeps what is of a domain of its own
    work.graph.opset_imports.setdefault(DOMAIN, 1)
    opset.raise_opset(work, max(_OPSETS.get(node.op_type, 13) for node in found))
    protos.infer_types(work)  # a file may leave out what inner values are
    names = edit.Names(work)
    for place in list(walk.walk(work)):
        if _is_one(place.node, work) and isinstance(place.graph, ir.Graph):
            _write_out(place.node, Writer(place.node, place.graph, names))
    return work


def _is_one(node: ir.Node, model: ir.Model) -> bool:
    named = node.op_type in _OPSETS and (node.domain == DOMAIN or is_standard(node, node.op_type))
    plain = node.op_type in _PLAIN and node.domain == DOMAIN
    return (named or plain) and node.op_identifier() not in model.functions


def _write_out(node: ir.Node, writer: Writer) -> None:
    if node.op_type in _PLAIN:
        node.domain = ""
    elif node.op_type == "TRT_MXFP8DynamicQuantize":
        _mxfp8(node, writer)
    elif node.op_type == "TRT_FP4DynamicQuantize":
        _nvfp4(node, writer)
    else:
        _linear(node, writer)


def _linear(node: ir.Node, writer: Writer) -> None:
    value, scale = node.inputs[0], node.inputs[1]
    assert value is not None and scale is not None
    code = _INT4 if "INT4" in node.op_type else _E4M3FN
    powers = "MXFP8" in node.op_type
    if powers:
        scale = _bytes_as(scale, _E8M0, writer)
    attributes = _granularity(node, value, scale)
    if node.op_type.endswith("DequantizeLinear"):
        said = ir.DataType(integer(node, "output_dtype", 0))
        made = said if said in tensors.FLOATS else (FLOAT if powers else (scale.dtype or FLOAT))
        if said in tensors.FLOATS or powers:
            attributes["output_dtype"] = int(made)
        value = _bytes_as(value, code, writer) if code == _E4M3FN else value
        writer.replace(writer.add("DequantizeLinear", value, scale, of=made, **attributes))
        return
    attributes["output_dtype"] = int(code)
    _hand_over(writer, writer.add("QuantizeLinear", value, scale, of=code, **attributes))


def _granularity(node: ir.Node, value: ir.Value, scale: ir.Value) -> dict[str, edit.AttributeValue]:
    """Axis and block size; where the operator leaves them out, as the shapes of tensor and scale say."""
    axis, block = integer(node, "axis", 1), integer(node, "block_size", 0)
    shape, blocks = tensors.dims(value), tensors.dims(scale)
    if not block and shape and blocks and len(shape) == len(blocks) > 1:
        for index, (length, count) in enumerate(zip(shape, blocks, strict=True)):
            if length is not None and count is not None and length != count:
                axis, block = index, -(-length // count)
    return {"axis": axis, "block_size": block} if block else {"axis": axis}


def _bytes_as(value: ir.Value, dtype: ir.DataType, writer: Writer) -> ir.Value:
    """Codes that are stored as uint8, in their own type: initializers lazily, what is computed from a table."""
    if value.dtype != _UINT8:
        return value
    form = next(form for form in map(formats.get, formats.names()) if form.onnx_type == int(dtype))
    if tensors.is_constant(value):
        own = cast.ml_dtype(form)
        codes = tensors.lazy_from(
            value, writer.names.fresh(f"{value.name}_{form}"), lambda array: array.view(own), dtype=dtype
        )
        return edit.register(writer.graph, codes)
    numbers = cast.decode(np.arange(256, dtype=np.uint8), form)
    index = writer.cast(value, ir.DataType.INT32)
    return writer.cast(writer.add("Gather", writer.constant(numbers), index), dtype)


def _block_amax(node: ir.Node, axis: int, block: int, writer: Writer) -> ir.Value:
    """The largest absolute value of each block along one axis, whatever the rank, in float32."""
    value, of = node.inputs[0], ir.DataType.INT64
    assert value is not None
    magnitude = writer.add("Abs", writer.cast(value, FLOAT))
    split = [writer.constant(np.array([-1, block], np.int64))]
    split.insert(0, writer.add("Shape", magnitude, of=of, start=0, end=axis))
    if axis != -1:
        split.append(writer.add("Shape", magnitude, of=of, start=axis + 1))
    parted = writer.add("Reshape", magnitude, writer.add("Concat", *split, of=of, axis=0))
    within = np.array([axis + 1 if axis >= 0 else axis], np.int64)
    return writer.add("ReduceMax", parted, writer.constant(within), keepdims=0)


def _mxfp8(node: ir.Node, writer: Writer) -> None:
    axis, block = integer(node, "axis", -1), integer(node, "block_size", 32)
    largest = float(formats.get("e4m3fn").max)
    ratio = writer.add("Div", _block_amax(node, axis, block, writer), writer.number(largest))
    scale = writer.add("Cast", ratio, of=_E8M0, to=int(_E8M0), round_mode="up")
    attributes = {"axis": axis, "block_size": block, "output_dtype": int(_E4M3FN)}
    codes = writer.add("QuantizeLinear", node.inputs[0], scale, of=_E4M3FN, **attributes)
    _hand_over(writer, codes, scale)


def _nvfp4(node: ir.Node, writer: Writer) -> None:
    axis, block = integer(node, "axis", 1), integer(node, "block_size", 16)
    outer = node.inputs[1]
    assert outer is not None
    outer = writer.cast(outer, FLOAT)
    largest = float(formats.get("e2m1").max)
    ratio = writer.add("Div", _block_amax(node, axis, block, writer), writer.number(largest))
    scale = writer.add("QuantizeLinear", ratio, outer, of=_E4M3FN, output_dtype=int(_E4M3FN))
    step = writer.add("DequantizeLinear", scale, outer)
    nothing = writer.add("Equal", step, writer.number(0.0), of=ir.DataType.BOOL)
    step = writer.add("Where", nothing, writer.number(1.0), step)
    value = node.inputs[0]
    assert value is not None
    attributes = {"axis": axis, "block_size": block, "output_dtype": int(_E2M1)}
    codes = writer.add("QuantizeLinear", writer.cast(value, FLOAT), step, of=_E2M1, **attributes)
    _hand_over(writer, codes, scale)


def _hand_over(writer: Writer, *results: ir.Value) -> None:
    """Replaces the node; values that are moved on may have been said to be uint8, and are of the type of the codes."""
    kinds = [result.dtype for result in results]
    writer.replace(*results)
    for result, kind in zip(results, kinds, strict=True):
        pending = [result]
        while pending:
            value = pending.pop()
            value.type = ir.TensorType(kind) if kind is not None else None
            pending += [user.outputs[0] for user, slot in value.uses() if slot == 0 and is_standard(user, *_MOVES)]
