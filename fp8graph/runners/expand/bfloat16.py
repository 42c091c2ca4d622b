"""bf16 as rounded fp32: ONNX Runtime's CPU provider has hardly a kernel for it, and numpy no such type.

Each op that yields bf16 computes in fp32, and its result passes Cast to bf16 and back: the rounding of a machine that
computes in fp32 and stores in bf16. ONNX Runtime keeps such pairs of Casts at every level. Inputs and outputs of type
bf16 become float32 that hold bf16 values.
"""

from __future__ import annotations

import onnx_ir as ir

from fp8graph.graph import edit, protos, tensors, walk

_BF16, _FP32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def expand(model: ir.Model) -> ir.Model:
    """A copy without bf16 arithmetic; the model itself where it has none."""
    typed = any(value.dtype == _BF16 for _, graph in walk.graphs(model) for value in walk.values(graph))
    if not typed and not any(_makes_bf16(place.node) for place in walk.walk(model)):
        return model
    work = model.clone(deep_copy=True)
    protos.infer_types(work)  # a file may leave out what inner values are
    names = edit.Names(work)
    for _, graph in walk.graphs(work):
        if isinstance(graph, ir.Graph):
            _expand_graph(graph, names)
    return work


def _expand_graph(graph: ir.Graph, names: edit.Names) -> None:
    nodes = list(graph)
    for value in list(graph.initializers.values()):
        if value.dtype == _BF16 and value.name is not None and not value.is_graph_input():
            wide = tensors.lazy_from(value, names.fresh(f"{value.name}_fp32"), _widen, dtype=_FP32)
            graph.register_initializer(wide)
            value.replace_all_uses_with(wide)
            edit.drop_unused_initializer(value)
    for value in graph.inputs:
        if value.dtype == _BF16:
            _rounded(value, graph, names)
    for node in nodes:
        if node.op_type == "Constant" and _makes_bf16(node):
            array = _widen(node.attributes["value"].as_tensor().numpy())
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
        for output in node.outputs:
            if output.dtype == _BF16:
                _rounded(output, graph, names)
        if node.op_type == "Cast" and _makes_bf16(node):
            node.attributes["to"] = ir.AttrInt64("to", int(_FP32))
        for name in ("output_dtype", "precision"):  # of Q and DQ: they read and make fp32
            said = node.attributes.get(name)
            if said is not None and said.type == ir.AttributeType.INT and not said.is_ref() and said.as_int() == _BF16:
                del node.attributes[name]


def _makes_bf16(node: ir.Node) -> bool:
    """Whether a Cast or Constant says itself that its output is bf16."""
    said = node.attributes.get({"Cast": "to", "Constant": "value"}.get(node.op_type, ""))
    if said is None or said.is_ref():
        return False
    if said.type == ir.AttributeType.TENSOR:
        return said.as_tensor().dtype == _BF16
    return said.type == ir.AttributeType.INT and said.as_int() == _BF16


def _widen(array: tensors.Array) -> tensors.Array:
    return array.astype("float32")


def _rounded(value: ir.Value, graph: ir.Graph, names: edit.Names) -> None:
    """Makes the value fp32 and lets its readers, and the graph's caller, have it through Cast to bf16 and back."""
    uses, returned, name = list(value.uses()), value.is_graph_output(), value.name
    value.type = ir.TensorType(_FP32)
    down = edit.new_node("Cast", [value], names, output=f"{name}_bf16", dtype=_BF16, attributes={"to": int(_BF16)})
    up = edit.new_node("Cast", down.outputs, names, output=f"{name}_fp32", dtype=_FP32, attributes={"to": int(_FP32)})
    edit.insert_after(value, [down, up], graph)
    for user, slot in uses:
        user.replace_input_with(slot, up.outputs[0])
    if not returned:
        return
    value.name, up.outputs[0].name = up.outputs[0].name, name
    up.outputs[0].shape = value.shape
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = up.outputs[0]
