"""Multiply by the scale of a dynamically quantized activation behind the product, and not in front of it.

    op(DQ(Q(x / s, c), c) s, W) = op(DQ(Q(x / s, c), c), W) s

What it does   1. The Mul between DequantizeLinear and a MatMul or Gemm whose weight is quantized, too, moves behind the
                  product (in front of the bias), where its factor is computed, and the same along the axis that is
                  summed over: one number, or one for each token.
               2. Where the division is by the very factor, both take 512 times it, and the pair 1/512 of its scale:
                  codes stay, and what is multiplied is below 1, so that sums fit fp16.
Why            torch writes its dynamic FP8 so. FP8 ends at the Mul: the product would run in high precision.
Exactness      approximate: sums are rounded before they are scaled, and not behind
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.core.quants import contraction_axis
from fp8graph.core.reading import ONNX, given, is_dequantizer, is_quantizer
from fp8graph.graph import edit, tensors, walk
from fp8graph_passes._dynamic import Dynamic

_STEP = np.float32(512)
_MOVES = frozenset({"Transpose", "Reshape", "Cast", "Identity"})


@dataclass(frozen=True)
class HoistDynamicScales(RewritePass):
    """Factors in front of a product go behind it."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Approximate("sums are rounded before they are scaled, not behind")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Cases 1 and 2 for every product whose both operands came quantized; not in functions."""
        names, changed = edit.Names(model), 0
        for place in list(walk.walk(model)):
            found = _found(place.node) if isinstance(place.graph, ir.Graph) else None
            if found is None:
                continue
            multiply, dequantize, factor = found
            factor = _stepped(dequantize, factor, names) or factor
            place.node.replace_input_with(0, dequantize.outputs[0])
            work = Dynamic(place, names, ctx.target.scales)
            work.rescaled([factor])
            for node in work.nodes:  # ops of the model's own, which the plan names
                node.metadata_props.pop(walk.FOR, None)
            edit.remove_unread(multiply)
            changed += 1
        return changed


def _found(node: ir.Node) -> tuple[ir.Node, ir.Node, ir.Value] | None:
    """The Mul in front of a product, the DequantizeLinear that it reads, and its factor."""
    value, weight = given(node, 0), given(node, 1)
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ONNX or value is None:
        return None
    multiply = value.producer()
    if multiply is None or multiply.op_type != "Mul" or multiply.domain not in ONNX:
        return None
    if not is_dequantizer(walk.origin(weight, _MOVES)) or node.outputs[0].dtype not in tensors.PLAIN:
        return None
    for slot in (0, 1):
        source, factor = multiply.inputs[slot], multiply.inputs[1 - slot]
        maker = source.producer() if source is not None else None
        if maker is None or not is_dequantizer(maker) or factor is None or tensors.is_constant(factor):
            continue
        codes = given(maker, 0)
        if codes is not None and is_quantizer(codes.producer()) and _commutes(node, value, factor):
            return multiply, maker, factor
    return None


def _commutes(node: ir.Node, value: ir.Value, factor: ir.Value) -> bool:
    """Whether a factor is one number, or the same along the axis that is summed over."""
    shape, of = tensors.dims(factor), tensors.dims(value)
    if shape is None or of is None or len(shape) > len(of):
        return False
    if all(size == 1 for size in shape):
        return True
    along = contraction_axis(node, 0, len(of)) - (len(of) - len(shape))
    # Behind a transposed Gemm rows are columns.
    return along == len(shape) - 1 and shape[along] == 1


def _stepped(dequantize: ir.Node, factor: ir.Value, names: edit.Names) -> ir.Value | None:
    """Case 2: the larger factor; None where it is not what was divided by, or others read along the way."""
    codes, scale = dequantize.inputs[0], dequantize.inputs[1]
    quantize = codes.producer() if codes is not None else None
    source = quantize.inputs[0] if quantize is not None else None
    divide = source.producer() if source is not None else None
    if divide is None or divide.op_type != "Div" or divide.inputs[1] is not factor or scale is None:
        return None
    alone = all(len(list(value.uses())) == 1 for value in (source, codes, dequantize.outputs[0]) if value is not None)
    own = quantize is not None and quantize.inputs[1] is scale and scale.dtype == ir.DataType.FLOAT
    graph = divide.graph
    if not alone or not own or not tensors.is_constant(scale) or not isinstance(graph, ir.Graph):
        return None
    assert quantize is not None and factor.dtype is not None
    if factor.dtype != ir.DataType.FLOAT:  # 512 times it may not fit
        return None
    smaller = edit.register(graph, tensors.constant(names.fresh(f"{scale.name}_step"), tensors.read(scale) / _STEP))
    step = edit.register(graph, tensors.constant(names.fresh("step"), np.asarray(_STEP)))
    node = edit.new_node(
        "Mul", [factor, step], names, output=f"{factor.name}_large", shape=factor.shape, dtype=factor.dtype
    )
    graph.insert_before(divide, [node])
    divide.replace_input_with(1, node.outputs[0])
    quantize.replace_input_with(1, smaller)
    dequantize.replace_input_with(1, smaller)
    edit.drop_unused_initializer(scale)
    return node.outputs[0]
