"""TensorRT's operator TRT_QuantizedAttention as the standard ops that it stands for: no other runtime has it.

Inputs Q, K and V (rank 4: batch, heads, length, head size), mask (boolean, or added to the scores) or nothing, and the
scale of the probabilities; attributes `scale`, `is_causal` is not written by fp8graph and not read here.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fp8graph.base.errors import InputError
from fp8graph.graph import edit, tensors, walk

DOMAIN, OP_TYPE = "trt", "TRT_QuantizedAttention"


def expand(model: ir.Model) -> ir.Model:
    """A copy without the operator; the model itself where it has none. Raises InputError FG140 for a form of the
    operator that is not known here."""
    if not any(_is_one(place.node) for place in walk.walk(model)):
        return model
    work = model.clone()
    names = edit.Names(work)
    for place in list(walk.walk(work)):
        if _is_one(place.node):
            _write_out(place, names)
    return work


def _is_one(node: ir.Node) -> bool:
    return node.op_type == OP_TYPE and node.domain in (DOMAIN, "")


def _write_out(place: walk.Place, names: edit.Names) -> None:
    node, graph = place.node, place.graph
    q, k, v, mask, scale = [*node.inputs, *[None] * 5][:5]
    causal = node.attributes.get("is_causal")
    factor = node.attributes.get("scale")
    known = all(value is not None and value.dtype in tensors.FLOATS for value in (q, k, v, scale))
    if not known or factor is None or isinstance(graph, ir.Function) or (causal is not None and causal.as_int()):
        raise InputError(
            "a TRT_QuantizedAttention is of a form that the reference does not know",
            where=f'op {place.key}  (name "{node.name}")',
            why="it reads Q, K, V, mask and the scale of the probabilities, has the attribute scale, and is not causal",
            do="compare a model made with --attention auto",
            code="FG140",
        )
    assert q is not None and q.dtype is not None and scale is not None
    dtype, made = q.dtype, list[ir.Node]()

    def add(
        op_type: str, *inputs: ir.Value | None, of: ir.DataType = dtype, **attributes: edit.AttributeValue
    ) -> ir.Value:
        fresh = edit.new_node(op_type, inputs, names, output=f"{place.key}_{op_type}", dtype=of, attributes=attributes)
        made.append(fresh)
        return fresh.outputs[0]

    def number(value: float) -> ir.Value:
        array = np.asarray(value, tensors.NUMPY[tensors.FLOATS[dtype]])
        return edit.register(graph, tensors.constant(names.fresh(f"{place.key}_number"), array))

    scores = add("MatMul", q, add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = add("Mul", scores, number(factor.as_float()))
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        scores = add("Where", mask, scores, number(-1e4))
    elif mask is not None:
        scores = add("Add", scores, mask)
    wide = add("Cast", add("Softmax", scores, axis=-1), of=ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
    step = scale if scale.dtype == ir.DataType.FLOAT else add("Cast", scale, of=ir.DataType.FLOAT, to=1)
    fp8 = ir.DataType.FLOAT8E4M3FN
    codes = add("QuantizeLinear", wide, step, of=fp8, output_dtype=int(fp8))
    rounded = add("Cast", add("DequantizeLinear", codes, step, of=ir.DataType.FLOAT), to=int(dtype))
    add("MatMul", rounded, v)
    # The products are the ops that the operator stood for.
    products = [one for one in made if one.op_type == "MatMul"]
    for product, key in zip(products, (node.metadata_props.get(walk.ALSO, ""), walk.node_key(node)), strict=True):
        if key:
            product.metadata_props[walk.KEY] = key
    graph.insert_before(node, made)
    old = node.outputs[0]
    edit.take_over(old, made[-1].outputs[0], rename=True)
    edit.remove([node])
