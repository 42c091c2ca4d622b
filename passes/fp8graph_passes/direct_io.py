"""Give inputs and outputs of the model the high-precision type that its operators compute in.

What it does   1. An input that an operator reads in the type, through a Cast or through Q/DQ, becomes of that type: the
                  Casts go. Readers that want the old type get a Cast.
               2. An output that a Cast brings back to the model's type becomes what is in front of that Cast.
               The type that they had stands in the metadata, so that comparisons go on feeding and reading it.
               3. What no operator reads or computes in the type stays as it is (a range that does not fit fp16).
Why            An application that has half precision at hand saves a Cast at each end, and half of the copying.
Where          With `--direct-io-types`, where fp16 or bf16 was asked for.
Exactness      exact on inputs that were of that type before; others are rounded by the caller, not by a Cast
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.graph import coded, edit, tensors


@dataclass(frozen=True)
class DirectIo(RewritePass):
    """Let inputs and outputs be of the high-precision type."""

    stage: ClassVar[Stage] = Stage.FOLD
    exact: ClassVar[Exactness] = Approximate("inputs and outputs are of another type")
    retypes: ClassVar[bool] = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every input and output of the main graph once; what stays is noted (FG234)."""
        wanted = tensors.ONNX.get(ctx.high) if ctx.high != "keep" else None
        if wanted is None or wanted == ir.DataType.FLOAT:
            return 0
        names, changes = edit.Names(model), 0
        for value in list(model.graph.inputs):
            if value.dtype in tensors.PLAIN and value.dtype != wanted and value.name not in model.graph.initializers:
                changes += _input(value, wanted, model.graph, names) or _stays(ctx, value, ctx.high)
        for index, value in enumerate(model.graph.outputs):
            if value.dtype in tensors.PLAIN and value.dtype != wanted and not value.is_graph_input():
                changes += _output(index, value, wanted, model.graph, names) or _stays(ctx, value, ctx.high)
        return changes


def _stays(ctx: Context, value: ir.Value, high: str) -> int:
    end = "input" if value.is_graph_input() else "output"
    kind = "reads" if end == "input" else "computes"
    text = f"the {end} '{value.name}' keeps its type: no operator {kind} it in {high}"
    ctx.note("FG234", "", text, severity="warning")
    return 0


def _input(value: ir.Value, wanted: ir.DataType, graph: ir.Graph, names: edit.Names) -> int:
    before = value.dtype
    assert before is not None
    readers = list(value.uses())
    casts = [node for node, _ in readers if _is_cast(node, wanted)]
    takers = [*casts, *(node for node, _ in readers if _quantizes(node, wanted))]
    if not takers:
        return 0
    others = [(node, slot) for node, slot in readers if node not in takers and node.op_type != "Shape"]
    value.type = ir.TensorType(wanted)
    coded.mark_type(value, before)
    for node in casts:
        made = node.outputs[0]
        if made.is_graph_output():  # a name of the interface: the Cast stays, to the same type
            continue
        for user, slot in list(made.uses()):
            edit.replace_input(user, slot, value)
        edit.remove([node])
    if others:
        back = edit.new_node(
            "Cast",
            [value],
            names,
            output=f"{value.name}_{tensors.FLOATS[before]}",
            shape=value.shape,
            dtype=before,
            attributes={"to": int(before)},
            serves=value.name or "?",
        )
        edit.insert_after(value, [back], graph)
        for node, slot in others:
            edit.replace_input(node, slot, back.outputs[0])
    return 1


def _output(index: int, value: ir.Value, wanted: ir.DataType, graph: ir.Graph, names: edit.Names) -> int:
    cast, before = value.producer(), value.dtype
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" and cast.domain == "" else None
    if cast is None or before is None or source is None or source.dtype != wanted:
        return 0
    if source.is_graph_input() or source.is_graph_output() or list(value.uses()) or source.graph is not graph:
        return 0
    name = value.name or ""
    graph.outputs[index] = source
    value.name = names.fresh(f"{name}_{tensors.FLOATS[before]}")
    source.doc_string = value.doc_string
    source.metadata_props.update(value.metadata_props)
    edit.remove([cast])
    source.name = name
    coded.mark_type(source, before)
    return 1


def _is_cast(node: ir.Node, wanted: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.domain == "" and node.outputs[0].dtype == wanted


def _quantizes(node: ir.Node, wanted: ir.DataType) -> bool:
    """Whether a node quantizes for an operator of the type."""
    if node.op_type != "QuantizeLinear" or node.domain != "":
        return False
    return any(
        user.op_type == "DequantizeLinear" and user.outputs[0].dtype == wanted for user, _ in node.outputs[0].uses()
    )
