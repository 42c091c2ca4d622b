"""fp16 as rounded fp32: what ONNX Runtime's CPU provider does with fp16 depends on what stands beside it.

It has few fp16 kernels, puts Casts around the other ops, and takes Casts away that follow each other: a product of
70000 is then infinite in one graph and finite in another. Here each op that computes in fp16 reads fp32, and its
result is rounded to fp16: the arithmetic of a machine that adds up in fp32 and stores fp16. ONNX Runtime keeps a Cast
to fp16 that stands in the file where the ops at both sides are of one type. Types of inputs and outputs stay.
"""

from __future__ import annotations

import onnx_ir as ir

from fp8graph.graph import edit, protos, tensors, walk
from fp8graph.graph.inlining import inline
from fp8graph.graph.typing import typed_slots

_FP16, _FP32 = ir.DataType.FLOAT16, ir.DataType.FLOAT
# They yield elements that they read: no arithmetic, no rounding.
_MOVES = frozenset(
    {
        *(
            "Cast",
            "Concat",
            "DepthToSpace",
            "Expand",
            "Flatten",
            "Gather",
            "GatherElements",
            "GatherND",
            "Identity",
            "Pad",
        ),
        *(
            "Reshape",
            "ScatterElements",
            "ScatterND",
            "Shape",
            "Size",
            "Slice",
            "SpaceToDepth",
            "Split",
            "Squeeze",
            "Tile",
        ),
        *("Transpose", "Unsqueeze", "Where"),
    }
)


def expand(model: ir.Model) -> ir.Model:
    """A copy whose fp16 ops compute in fp32; the model itself where it has none."""
    halves = any(value.dtype == _FP16 for _, graph in walk.graphs(model) for value in walk.values(graph))
    if not halves and not any(_makes_fp16(place.node) for place in walk.walk(model)):
        return model
    work = model.clone(deep_copy=True)
    inline(work, lambda function: True)  # the values of a function have no types
    protos.infer_types(work)  # a file may leave out what inner values are
    names = edit.Names(work)
    wide: dict[ir.Value, ir.Value] = {}
    for place in list(walk.walk(work)):
        if place.node.op_type not in _MOVES and isinstance(place.graph, ir.Graph):
            _expand(place.node, place.graph, work, names, wide)
    return work


def _makes_fp16(node: ir.Node) -> bool:
    """Whether a Cast says itself that its output is fp16."""
    said = node.attributes.get("to") if node.op_type == "Cast" else None
    return said is not None and not said.is_ref() and said.as_int() == _FP16


def _expand(node: ir.Node, graph: ir.Graph, model: ir.Model, names: edit.Names, wide: dict[ir.Value, ir.Value]) -> None:
    slots = typed_slots(node, model.graph.opset_imports, _FP32)
    for slot, value in enumerate(node.inputs):
        if value is not None and value.dtype == _FP16 and slot in slots.inputs:
            if value not in wide:
                wide[value] = _widened(value, names)
            edit.replace_input(node, slot, wide[value])
    for slot, value in enumerate(node.outputs):
        if value.dtype == _FP16 and slot in slots.outputs:
            _rounded(value, graph, names)


def _widened(value: ir.Value, names: edit.Names) -> ir.Value:
    graph, name = value.graph, f"{value.name}_fp32"
    assert isinstance(graph, ir.Graph)
    if tensors.is_constant(value) and not value.is_graph_input():
        constant = tensors.lazy_from(value, names.fresh(name), lambda array: array.astype("float32"), dtype=_FP32)
        graph.register_initializer(constant)
        return constant
    attributes = {"to": int(_FP32)}
    cast = edit.new_node("Cast", [value], names, output=name, shape=value.shape, dtype=_FP32, attributes=attributes)
    edit.insert_after(value, [cast], graph)
    return cast.outputs[0]


def _rounded(value: ir.Value, graph: ir.Graph, names: edit.Names) -> None:
    """Lets the op yield fp32, and everybody else have it through a Cast to fp16 under the old name."""
    uses, returned, name = list(value.uses()), value.is_graph_output(), value.name
    value.name, value.type = names.fresh(f"{name}_exact"), ir.TensorType(_FP32)
    attributes = {"to": int(_FP16)}
    down = edit.new_node("Cast", [value], names, output=f"{name}_fp16", dtype=_FP16, attributes=attributes)
    result = down.outputs[0]
    result.name, result.shape = name, value.shape
    edit.insert_after(value, [down], graph)
    for user, slot in uses:
        user.replace_input_with(slot, result)
    for index, output in enumerate(graph.outputs) if returned else ():
        if output is value:
            graph.outputs[index] = result
