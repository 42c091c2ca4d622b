"""bf16 as rounded fp32: ONNX Runtime's CPU provider has hardly a kernel for it.

Each op that yields bf16 computes in fp32, and its result passes Cast to bf16 and back: the rounding of a machine that
computes in fp32 and stores in bf16. ONNX Runtime keeps such pairs of Casts at every level.
"""

from __future__ import annotations

import onnx_ir as ir

from fp8graph.graph import edit, tensors, walk

_BF16, _FP32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def expand(model: ir.Model) -> ir.Model:
    """A copy without bf16 arithmetic; the model itself where it has none. Graph inputs and outputs keep their types."""
    if not _has_bfloat16(model):
        return model
    work = model.clone(deep_copy=True)
    names = edit.Names(work)
    for _, graph in walk.graphs(work):
        if isinstance(graph, ir.Function):
            continue
        for value in list(graph.initializers.values()):
            if value.dtype == _BF16 and value.name is not None and not value.is_graph_input():
                wide = tensors.lazy_from(
                    value, names.fresh(f"{value.name}_fp32"), lambda a: a.astype("float32"), dtype=_FP32
                )
                graph.register_initializer(wide)
                value.replace_all_uses_with(wide)
                edit.drop_unused_initializer(value)
        inputs = [value for value in graph.inputs if value.dtype == _BF16]
        nodes = list(graph)
        for value in inputs:
            uses = list(value.uses())
            node = edit.new_node(
                "Cast", [value], names, output=f"{value.name}_fp32", dtype=_FP32, attributes={"to": int(_FP32)}
            )
            edit.insert_after(value, [node], graph)
            for user, slot in uses:
                user.replace_input_with(slot, node.outputs[0])
        for node in nodes:
            _round(node, graph, names)
    return work


def _round(node: ir.Node, graph: ir.Graph, names: edit.Names) -> None:
    """Lets the node yield fp32, rounded to bf16 by a pair of Casts."""
    for output in node.outputs:
        if output.dtype != _BF16:
            continue
        uses, returned = list(output.uses()), output.is_graph_output()
        down = node if node.op_type == "Cast" else None  # a Cast rounds by itself
        if down is None:
            output.type = ir.TensorType(_FP32)
            down = edit.new_node(
                "Cast", [output], names, output=f"{output.name}_bf16", dtype=_BF16, attributes={"to": int(_BF16)}
            )
            graph.insert_after(node, [down])
        narrow = down.outputs[0]
        up = edit.new_node(
            "Cast", [narrow], names, output=f"{output.name}_fp32", dtype=_FP32, attributes={"to": int(_FP32)}
        )
        graph.insert_after(down, [up])
        for user, slot in uses:
            user.replace_input_with(slot, up.outputs[0])
        if returned and down is not node:
            name = output.name
            output.name, narrow.name = narrow.name, name
            for index, value in enumerate(graph.outputs):
                if value is output:
                    graph.outputs[index] = narrow


def _has_bfloat16(model: ir.Model) -> bool:
    return any(value.dtype == _BF16 for _, graph in walk.graphs(model) for value in walk.values(graph))
