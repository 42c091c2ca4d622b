"""FP8 through ops that ONNX lets move it and that ONNX Runtime has no kernels for: moved as the floats they are.

They read fp32, and what they give is cast back: exact, for each code is a float. Identity, Transpose and Reshape of FP8
run as they stand (ONNX Runtime 1.31.1, 1.32.0).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fp8graph.graph import edit, walk
from fp8graph.runners.expand.writing import FLOAT, Writer, is_standard, made_type

_FP8 = {
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
}
_MOVES = ("Dropout", "Flatten", "IsInf", "IsNaN", "Pad", "Squeeze", "TensorScatter", "Unsqueeze")
_RUN = ("Identity", "Transpose", "Reshape")


def expand(model: ir.Model) -> ir.Model:
    """A copy in which such ops read floats; the model itself where it has none."""
    if not any(_moved(place.node) for place in walk.walk(model)):
        return model
    work = model.clone()
    names = edit.Names(work)
    # Readers first: they see the types as they were.
    for place in reversed(list(walk.walk(work))):
        kind = _moved(place.node)
        if kind is not None and isinstance(place.graph, ir.Graph):
            _in_floats(place.node, kind, place.graph, names)
    return work


def _moved(node: ir.Node) -> ir.DataType | None:
    """The FP8 type that an op without a kernel reads or makes."""
    if is_standard(node, *_MOVES) and node.inputs and node.inputs[0] is not None:
        return _fp8(node.inputs[0])
    if is_standard(node, "ConstantOfShape"):
        made = made_type(node)
        return made if made in _FP8 else None
    return None


def _fp8(value: ir.Value) -> ir.DataType | None:
    """The FP8 type of a value, also where the file leaves it out; None for others."""
    for _ in range(16):
        node = value.producer()
        if value.dtype is not None or node is None:
            break
        made = made_type(node)
        if made is not None or not is_standard(node, *_MOVES, *_RUN) or node.inputs[0] is None:
            return made if made in _FP8 else None
        value = node.inputs[0]
    return value.dtype if value.dtype in _FP8 else None


def _in_floats(node: ir.Node, kind: ir.DataType, graph: ir.Graph, names: edit.Names) -> None:
    writer = Writer(node, graph, names)
    for slot, value in enumerate(node.inputs):
        if value is not None and _fp8(value) is not None:
            edit.replace_input(node, slot, writer.add("Cast", value, to=int(FLOAT)))
    graph.insert_before(node, writer.nodes)
    if node.op_type == "ConstantOfShape":
        array = node.attributes["value"].as_tensor().numpy().astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
    if node.op_type in ("IsInf", "IsNaN"):
        return
    output = node.outputs[0]
    name, output.name = output.name, names.fresh(f"{output.name}_floats")
    uses, returned = list(output.uses()), output.is_graph_output()
    back = edit.new_node("Cast", [output], names, output=f"{name}_codes", dtype=kind, attributes={"to": int(kind)})
    result = back.outputs[0]
    result.name, result.shape, output.type = name, output.shape, ir.TensorType(FLOAT)
    graph.insert_after(node, [back])
    for user, slot in uses:
        user.replace_input_with(slot, result)
    for index, other in enumerate(graph.outputs) if returned else ():
        if other is output:
            graph.outputs[index] = result
