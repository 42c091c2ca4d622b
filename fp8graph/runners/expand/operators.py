"""Operators that are newer than ONNX Runtime, as the functions that ONNX defines them to be."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import inliner

from fp8graph.graph import protos, walk
from fp8graph.runners.expand.versions import NEWEST
from fp8graph.runners.expand.writing import is_standard


def expand(model: ir.Model) -> ir.Model:
    """A copy without operators that are new after the newest opset of ONNX Runtime, such as SwiGLU and LinearAttention;
    the model itself where it has none."""
    opset = model.graph.opset_imports.get("", 0)
    if opset <= NEWEST:
        return model
    new = {place.node.op_type for place in walk.walk(model) if _is_new(place.node, opset)}
    return written_out(model, new) if new else model


def _is_new(node: ir.Node, opset: int) -> bool:
    if not is_standard(node, node.op_type):
        return False
    if node.op_type == "SpaceToDepth" and "mode" in node.attributes:
        return node.attributes["mode"].as_string() != "DCR"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    has_body = schema.has_function or schema.has_context_dependent_function
    return bool(has_body) and not _known(node.op_type, NEWEST)


def _known(op_type: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


def written_out(model: ir.Model, op_types: set[str]) -> ir.Model:
    """A copy with these standard operators as ONNX itself writes them out. Weights are shared, not read."""
    proto, weights = protos.weightless(model)
    wanted = [("", op_type) for op_type in sorted(op_types)]
    work = ir.from_proto(inliner.inline_selected_functions(proto, wanted, inline_schema_functions=True))
    inputs = {value.name: value for value in work.graph.inputs}
    kept = {value.name for value in model.graph.inputs}
    for name, weight in weights.items():
        inputs[name].const_value = weight.const_value
    work.graph.inputs[:] = [value for value in work.graph.inputs if value.name in kept]
    for name in weights:
        work.graph.register_initializer(inputs[name])
    return work
