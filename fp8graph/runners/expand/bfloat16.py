"""bf16 as rounded fp32: ONNX Runtime's CPU provider has hardly a kernel for it, and numpy no such type.

Each op that yields bf16 computes in fp32, and its result passes Cast to bf16 and back: the rounding of a machine that
computes in fp32 and stores in bf16. ONNX Runtime keeps such pairs of Casts at every level. Inputs and outputs of type
bf16 become float32 that hold bf16 values.
"""

from __future__ import annotations

import onnx_ir as ir

from fp8graph.graph import edit, tensors, walk

_BF16, _FP32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def expand(model: ir.Model) -> ir.Model:
    """A copy without bf16 arithmetic; the model itself where it has none."""
    if not any(value.dtype == _BF16 for _, graph in walk.graphs(model) for value in walk.values(graph)):
        return model
    work = model.clone(deep_copy=True)
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
        for output in node.outputs:
            if output.dtype == _BF16:
                _rounded(output, graph, names)
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _BF16:
            node.attributes["to"] = ir.AttrInt64("to", int(_FP32))


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
