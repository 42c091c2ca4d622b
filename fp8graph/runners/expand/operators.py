"""Operators that ONNX Runtime does not have, as the functions that ONNX defines them to be."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import inliner

from fp8graph.graph import protos, walk
from fp8graph.graph.protowalk import graphs
from fp8graph.runners.expand.versions import NEWEST
from fp8graph.runners.expand.writing import is_standard

# Older ones that ONNX Runtime (1.31.1, 1.32.0) has no kernel for, nor takes apart by itself.
_MISSING = ("Swish",)


def expand(model: ir.Model) -> ir.Model:
    """A copy without operators that ONNX Runtime does not have and ONNX defines by others, such as SwiGLU, Swish and
    LinearAttention; the model itself where it has none."""
    opset = model.graph.opset_imports.get("", 0)
    while new := {place.node.op_type for place in walk.walk(model) if _is_new(place.node, opset)}:
        model = written_out(model, new)  # a body may hold others of them
    return model


def _is_new(node: ir.Node, opset: int) -> bool:
    if not is_standard(node, node.op_type):
        return False
    if node.op_type in _MISSING:
        return True
    if opset <= NEWEST:
        return False
    if node.op_type == "SpaceToDepth" and "mode" in node.attributes:
        return node.attributes["mode"].as_string() != "DCR"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return _has_body(schema) and not _known(node.op_type, NEWEST)


def _has_body(schema: onnx.defs.OpSchema, *, made_for_a_node: bool = True) -> bool:
    # Attributes of the compiled class that its type hints leave out.
    names = ["has_function", *(["has_context_dependent_function"] if made_for_a_node else [])]
    return any(bool(getattr(schema, name)) for name in names)


def _known(op_type: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


def written_out(model: ir.Model, op_types: set[str]) -> ir.Model:
    """A copy with these standard operators as ONNX itself writes them out. Weights are shared, not read."""
    proto, weights = protos.weightless(model)
    _say_defaults(proto, op_types, model.graph.opset_imports.get("", 1))
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


def _say_defaults(proto: onnx.ModelProto, op_types: set[str], opset: int) -> None:
    """Writes out attributes that are left out: onnx 1.23 takes their defaults for nothing in the bodies of functions.

    Bodies that are made for a node, that of Attention, look themselves at what is said.
    """
    for _, _, graph in graphs(proto):
        for node in graph.node:
            if node.op_type not in op_types or node.domain not in ("", "ai.onnx"):
                continue
            schema = onnx.defs.get_schema(node.op_type, opset, "")
            said = {attribute.name for attribute in node.attribute}
            defaults = [a.default_value for a in schema.attributes.values() if a.name not in said]
            if _has_body(schema, made_for_a_node=False):
                node.attribute.extend(default for default in defaults if default.type)
