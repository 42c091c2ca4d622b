"""Q and DQ whose value, scale and result are of different types, which opset 23 allows: in fp32, with Casts.

ONNX Runtime 1.31.1 has kernels of QuantizeLinear for one type alone, and fails when it runs; 1.32.0 runs others, too,
and is given the same graph. To divide and multiply in fp32 is what both do where all are fp16. A `precision` of
QuantizeLinear that is less is kept: the quotient is rounded to it.
"""

from __future__ import annotations

import onnx_ir as ir

from fp8graph.graph import edit, protos, walk
from fp8graph.graph.inlining import inline
from fp8graph.runners.expand.writing import FLOAT, Writer, integer, is_standard, made_type

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def expand(model: ir.Model) -> ir.Model:
    """A copy whose Q and DQ are of one type each; the model itself where all are."""
    pairs = [place.node for place in walk.walk(model) if is_standard(place.node, *_OPS)]
    unknown = any(None in _types(node) for node in pairs) and _has_halves(model)
    if not unknown and not any(_mixed(node) for node in pairs):
        return model
    work = model.clone(deep_copy=True)
    inline(work, lambda function: True)  # the values of a function have no types
    protos.infer_types(work)  # a file may leave out what inner values are
    names = edit.Names(work)
    for place in list(walk.walk(work)):
        if is_standard(place.node, *_OPS) and _mixed(place.node) and isinstance(place.graph, ir.Graph):
            _OPS[place.node.op_type](place.node, Writer(place.node, place.graph, names))
    return work


def _has_halves(model: ir.Model) -> bool:
    typed = any(value.dtype in _HALVES for _, graph in walk.graphs(model) for value in walk.values(graph))
    return typed or any(made_type(place.node) in _HALVES for place in walk.walk(model))


def _types(node: ir.Node) -> set[ir.DataType | None]:
    """Types of value and scale, or of scale and result."""
    value, scale = node.inputs[0], node.inputs[1]
    assert value is not None and scale is not None
    if node.op_type == "QuantizeLinear":
        return {value.dtype, scale.dtype}
    said = integer(node, "output_dtype", 0)
    return {scale.dtype, ir.DataType(said)} if said else {scale.dtype}


def _mixed(node: ir.Node) -> bool:
    return len(_types(node) - {None}) > 1


def _quantize(node: ir.Node, writer: Writer) -> None:
    value, scale = node.inputs[0], node.inputs[1]
    assert value is not None and scale is not None
    wide, step = writer.cast(value, FLOAT), writer.cast(scale, FLOAT)
    precision = ir.DataType(integer(node, "precision", 0) or int(FLOAT))
    if precision in _HALVES:
        axis, block = integer(node, "axis", 1), integer(node, "block_size", 0)
        quotient = writer.add("Div", wide, writer.spread(step, wide, axis, block))
        wide, step = writer.cast(writer.cast(quotient, precision), FLOAT), writer.number(1.0)
        node.attributes.pop("block_size", None)
    node.attributes.pop("precision", None)
    edit.replace_input(node, 0, wide)
    edit.replace_input(node, 1, step)
    writer.graph.insert_before(node, writer.nodes)


def _dequantize(node: ir.Node, writer: Writer) -> None:
    scale = node.inputs[1]
    assert scale is not None
    to = ir.DataType(integer(node, "output_dtype", 0) or int(FLOAT))
    kept = {name: value for name, value in node.attributes.items() if name != "output_dtype"}
    product = writer.add(
        "DequantizeLinear", node.inputs[0], writer.cast(scale, FLOAT), *node.inputs[2:], of=FLOAT, **kept
    )
    writer.replace(writer.cast(product, to))


_OPS = {"QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}
