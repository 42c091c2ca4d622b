"""Write FP8 attention as TensorRT's own TRT_QuantizedAttention, whose fusion cannot be lost in silence.

    Y = DQ(Q(Softmax(scale Q K^T + mask), 1/448)) V

What it does   Where `--attention must-fuse` was asked for: two products around a Softmax, all quantized, become one
               node of the domain `trt`. K is read as it was before it was turned; constant factors between the
               products become the attribute `scale`, an added mask or a Where with a large negative number the mask.
Why            An attention in Q/DQ form that fuses today may fall apart into some hundred kernels under another profile
               or release, and no builder says so. This operator is a build error where no fused kernel is found.
Names          The node takes over the name and the key of the product with V; the key of the other product stands in
               its metadata (`fp8graph.also`).
Limits         ONNX Runtime has no such operator: comparisons run in the reference, which writes it out again.
               Operands of rank 4, in fp16 or bf16.
Codes          FG233 an attention that must fuse cannot be written as one operator (an error, status 2)
Exactness      the same sums and roundings; factors are applied to the sum, where they may have been on an operand
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core import attention
from fp8graph.core.context import Context
from fp8graph.core.passes import Exactness, RewritePass, Stage, Ulps
from fp8graph.graph import edit, tensors, walk

DOMAIN, OP_TYPE = "trt", "TRT_QuantizedAttention"
# A mask's number for "hidden": exp of it is zero beside any other score. Where it is told: -1e4 is -9984 in bf16.
_LEAST, _HIDDEN = -1e4, -9900.0
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class WriteQuantizedAttention(RewritePass):
    """One TRT_QuantizedAttention for each attention."""

    stage: ClassVar[Stage] = Stage.LEGALIZE
    exact: ClassVar[Exactness] = Ulps(4)

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every attention once. Raises UsageError FG233 for the first that cannot be written so."""
        if ctx.plan is None or ctx.plan.asked.get("attention") != "must-fuse":
            return 0
        names, found = edit.Names(model), list(attention.find(model))
        for place in walk.walk(model):
            if place.node.op_type == "Attention" and place.node.domain in ("", "ai.onnx"):
                raise attention.unfused(
                    place.key, "the operator Attention was left fused, and runs in half precision only"
                )
        for item in found:
            key = walk.node_key(item.context)
            decisions = [ctx.plan.ops.get(walk.node_key(node)) for node in (item.scores, item.context)]
            kept = next((one for one in decisions if one is None or one.do == "keep"), None)
            if kept is not None:
                raise attention.unfused(key, kept.why.text)
            form = _form(item)
            if isinstance(form, str):
                raise attention.unfused(key, form)
            _write(item, form, names)
        if found:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return len(found)


@dataclass
class _Form:
    """What lies between the products: `scale` times the scores, then `mask`."""

    scale: float = 1.0
    mask: ir.Value | None = None


def _form(item: attention.Attention) -> _Form | str:
    """The form of an attention, walked up from Softmax to the scores; or what stands in the way."""
    values = (*item.scores.inputs, item.context.inputs[1])
    if any(value is None or value.dtype not in _HALF for value in values):
        return "its operands are not in fp16 or bf16: --high-precision-dtype fp16 makes them so"
    if any(value is None or value.shape is None or len(value.shape) != 4 for value in values):
        return "its operands are not of rank 4 (batch, heads, length, head size)"
    if item.probability_slot != 0:
        return "the probabilities are the right operand of the product with V"
    if item.guarded:
        return "something lies between its Softmax and the product with V"
    axis = item.softmax.attributes.get("axis")
    if axis is not None and axis.as_int() not in (-1, 3):
        return "its Softmax is not over the last axis"
    form, value = _Form(), item.softmax.inputs[0]
    while value is not None and (node := value.producer()) is not None and node is not item.scores:
        step = _step(node, item.scores, form)
        if isinstance(step, str):
            return step
        value = step
    return form if math.isfinite(form.scale) and form.scale > 0 else f"its scale is {form.scale}"


def _step(node: ir.Node, scores: ir.Node, form: _Form) -> ir.Value | str:
    """Takes one node between the products into the form, from below; gives the operand that leads on to the scores."""
    value = next((one for one in node.inputs if one is not None and _leads(one, scores)), None)
    other = next((one for one in node.inputs if one is not None and one is not value), None)
    strange = f"'{node.name}' ({node.op_type}) lies between its products"
    if value is None or (value.is_graph_output() or len(value.uses()) != 1):
        return strange
    if node.op_type in ("Cast", "Identity"):
        return value
    number = _number(other)
    if node.op_type in ("Mul", "Div") and number and (node.op_type == "Mul" or other is node.inputs[1]):
        form.scale *= number if node.op_type == "Mul" else 1 / number
        return value
    if node.op_type == "Add" and other is not None:
        mask: ir.Value | None = other
    elif node.op_type == "Where" and value is node.inputs[1] and (_number(node.inputs[2]) or 0.0) <= _HIDDEN:
        mask = node.inputs[0]
    else:
        return strange
    if form.mask is not None or form.scale != 1.0:
        return f"{strange}, and a mask or a factor behind it"
    form.mask = mask
    return value


def _leads(value: ir.Value, scores: ir.Node) -> bool:
    """Whether a value comes from the scores through what may lie between the products."""
    for _ in range(16):
        node = value.producer()
        if node is None or node is scores:
            return node is scores
        operands = node.inputs[1:2] if node.op_type == "Where" else node.inputs
        moving = [one for one in operands if one is not None and not tensors.is_constant(one)]
        if len(moving) > 1:
            return any(_leads(one, scores) for one in moving)
        if not moving:
            return False
        value = moving[0]
    return False


def _number(value: ir.Value | None) -> float | None:
    """The number of a constant of one element."""
    if value is None or not tensors.is_constant(value) or value.const_value is None or value.const_value.size != 1:
        return None
    return float(np.asarray(tensors.read(value), np.float64).reshape(()))


def _write(item: attention.Attention, form: _Form, names: edit.Names) -> None:
    """Puts the operator in the place of the product with V, and removes what it stands for."""
    context, graph = item.context, item.context.graph
    assert graph is not None
    old = context.outputs[0]
    q, v = item.scores.inputs[0], context.inputs[1]
    assert q is not None and q.dtype is not None
    before: list[ir.Node] = []
    k = _unturned(item.scores, names, before)
    mask = _mask(form.mask, q.dtype, names, before)
    scale = _probability_scale(context.inputs[0])
    attributes: dict[str, edit.AttributeValue] = {
        "scale": form.scale,
        "normalization_quantize_to_type": int(ir.DataType.FLOAT8E4M3FN),
    }
    node = edit.new_node(
        OP_TYPE,
        [q, k, v, mask, scale],
        names,
        output=f"{old.name}_fused",
        shape=old.shape,
        dtype=old.dtype,
        attributes=attributes,
    )
    node.domain, node.name = DOMAIN, context.name
    node.metadata_props.update(context.metadata_props)
    node.metadata_props[walk.ALSO] = walk.node_key(item.scores)
    graph.insert_before(context, [*before, node])
    edit.take_over(old, node.outputs[0], rename=True)
    edit.remove_unread(context)


def _unturned(scores: ir.Node, names: edit.Names, before: list[ir.Node]) -> ir.Value:
    """K as [batch, heads, length, head size], behind its DQ: as it was before a Transpose, or turned back."""
    k = scores.inputs[1]
    assert k is not None and k.shape is not None
    shape = ir.Shape([k.shape[axis] for axis in (0, 1, 3, 2)])
    back = edit.new_node(
        "Transpose",
        [k],
        names,
        output=f"{k.name}_back",
        shape=shape,
        dtype=k.dtype,
        attributes={"perm": [0, 1, 3, 2]},
        serves=walk.node_key(scores),
    )
    before.append(back)
    return back.outputs[0]


def _mask(mask: ir.Value | None, dtype: ir.DataType, names: edit.Names, before: list[ir.Node]) -> ir.Value | None:
    """The mask as it is where it is boolean or of the type of Q, else raised to what fp16 holds and cast."""
    if mask is None or mask.dtype in (ir.DataType.BOOL, dtype):
        return mask
    assert mask.dtype is not None and mask.name
    least = tensors.constant(
        names.fresh(f"{mask.name}_least"), np.asarray(_LEAST, tensors.NUMPY[tensors.FLOATS[mask.dtype]])
    )
    graph = mask.graph
    assert isinstance(graph, ir.Graph)
    graph.register_initializer(least)
    raised = edit.new_node(
        "Max", [mask, least], names, output=f"{mask.name}_raised", shape=mask.shape, dtype=mask.dtype
    )
    cast = edit.new_node(
        "Cast",
        [raised.outputs[0]],
        names,
        output=f"{mask.name}_cast",
        shape=mask.shape,
        dtype=dtype,
        attributes={"to": int(dtype)},
    )
    before += [raised, cast]
    return cast.outputs[0]


def _probability_scale(value: ir.Value | None) -> ir.Value:
    """The scale of the pair behind Softmax."""
    node = walk.origin(value, ("Cast", "Identity"))
    scale = node.inputs[1] if node is not None and node.op_type == "DequantizeLinear" else None
    assert scale is not None
    return scale
