"""Spell Q/DQ with float32 scales around values of any float type: Cast to float32, Q, DQ, Cast back.

What it does   1. QuantizeLinear on an fp16 or bf16 value reads it through a Cast to float32: one for all that read the
                  value, beside its producer. TensorRT takes Casts of one tensor in both branches of an If in front
                  of it, under one name, and refuses them.
               2. DequantizeLinear that is to yield fp16 or bf16 yields float32, and a Cast follows.
               3. Where the scales of a product's operands came in two types, the one in half precision becomes float32,
                  too: TensorRT-RTX 1.7.1 does not build a Gemm with transB=1 and a scale per output channel otherwise.
Why            A scale in fp16 is zero or inexact for small ranges, and engines multiply by its rounded reciprocal:
               0.3 % (fp16) and 2.5 % (bf16) of the codes then differ from the reference; with float32 none does.
               TensorRT absorbs a Cast from float32 down to fp16 or bf16 between DQ and op, and any Cast before Q.
               ONNX Runtime has no kernel for a value and a scale of different types.
Exactness      exact: the same quotient and the same rounding to the op's type, written out
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import edit, tensors, walk

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BETWEEN = frozenset({"Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})


@dataclass(frozen=True)
class SpellFp32Scales(RewritePass):
    """Casts around Q/DQ in half-precision graphs."""

    stage: ClassVar[Stage] = Stage.LEGALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Pairs whose scale is float32; a pair that came with fp16 scales is left as it is."""
        names, changed = edit.Names(model), 0
        casts: dict[ir.Value, ir.Value] = {}
        for place in walk.walk(model):
            if place.node.op_type in _PRODUCTS and place.node.domain in ("", "ai.onnx"):
                changed += _widen_mixed(place.node, names)
        for place in list(walk.walk(model)):
            node = place.node
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.domain not in ("", "ai.onnx"):
                continue
            scale = node.inputs[1]
            if scale is None or scale.dtype != ir.DataType.FLOAT:
                continue
            if node.op_type == "QuantizeLinear":
                changed += _cast_before(node, names, casts)
            elif "output_dtype" not in node.attributes:
                changed += _cast_behind(node, place.graph, names)
        return changed


def _widen_mixed(node: ir.Node, names: edit.Names) -> int:
    """Case 3: makes the scale of a product's one operand float32 where that of the other is; how many it was."""
    found = [walk.origin(value, _BETWEEN) for value in node.inputs[:2]]
    pairs = [item for item in found if item is not None and item.op_type == "DequantizeLinear"]
    if len({item.inputs[1].dtype for item in pairs if item.inputs[1] is not None}) < 2:
        return 0
    changed = 0
    for item in pairs:
        scale, plain = item.inputs[1], len(item.inputs) == 2 and "output_dtype" not in item.attributes
        if scale is None or scale.dtype not in tensors.HALF or not tensors.is_constant(scale) or not plain:
            continue
        wide = tensors.lazy_from(scale, names.fresh(f"{scale.name}_fp32"), _widened, dtype=ir.DataType.FLOAT)
        assert isinstance(scale.graph, ir.Graph)
        scale.graph.register_initializer(wide)
        edit.replace_input(item, 1, wide)
        edit.drop_unused_initializer(scale)
        changed += 1
    return changed


def _widened(array: tensors.Array) -> tensors.Array:
    return array.astype(np.float32)


def _cast_before(node: ir.Node, names: edit.Names, casts: dict[ir.Value, ir.Value]) -> int:
    value = node.inputs[0]
    if value is None or value.dtype not in tensors.HALF or value.graph is None:
        return 0
    if value not in casts:
        cast = _cast(value, ir.DataType.FLOAT, names, f"{value.name}_fp32", node)
        edit.insert_after(value, [cast], value.graph)
        casts[value] = cast.outputs[0]
    edit.replace_input(node, 0, casts[value])
    return 1


def _cast_behind(node: ir.Node, graph: ir.Graph | ir.Function, names: edit.Names) -> int:
    output = node.outputs[0]
    dtype = output.dtype
    if dtype not in tensors.HALF:
        return 0
    assert dtype is not None
    output.type = ir.TensorType(ir.DataType.FLOAT)
    suffix = "fp16" if dtype == ir.DataType.FLOAT16 else "bf16"
    cast = _cast(output, dtype, names, f"{output.name}_{suffix}", node)
    for user, slot in list(output.uses()):
        if user is not cast:
            user.replace_input_with(slot, cast.outputs[0])
    graph.insert_after(node, [cast])
    return 1


def _cast(value: ir.Value, dtype: ir.DataType, names: edit.Names, name: str, beside: ir.Node) -> ir.Node:
    return edit.new_node(
        "Cast",
        [value],
        names,
        output=name,
        shape=value.shape,
        dtype=dtype,
        attributes={"to": int(dtype)},
        serves=beside.metadata_props.get(walk.FOR, ""),
    )
