"""Let a multiplication by a power of two beside a Q or DQ go into its scale.

With c a power of two and x c a normal number:   Q(x c, s) = Q(x, s / c)   and   DQ(q, s) c = DQ(q, s c),   bit for bit.
With any other c the product rounds once more, and the codes would differ: such a Mul stays.

What it does   1. Mul or Div of an activation by a scalar constant that only QuantizeLinear reads: into Q's scale.
               2. Mul or Div by a scalar constant that alone reads a DequantizeLinear: into DQ's scale.
Why            A kernel less; attention's scale is a power of two for heads of 16, 64 and 256.
Exactness      exact: a power of two moves the exponent only
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import edit, tensors, walk


@dataclass(frozen=True)
class FoldConstantScale(RewritePass):
    """Powers of two beside Q/DQ become part of the scale."""

    stage: ClassVar[Stage] = Stage.FOLD
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Cases 1 and 2, each Mul or Div once."""
        names, changed, stale = edit.Names(model), 0, []
        for place in list(walk.walk(model)):
            factor = _factor(place.node)
            if factor is None or isinstance(place.graph, ir.Function):
                continue
            slot, value = factor
            operand, output = place.node.inputs[1 - slot], place.node.outputs[0]
            if operand is None or output.is_graph_output() or not output.uses():
                continue
            constant = place.node.inputs[slot]
            if all(user.op_type == "QuantizeLinear" and index == 0 for user, index in output.uses()):
                pairs, by = [user for user, _ in output.uses()], 1 / value
            else:
                producer = operand.producer()
                if producer is None or producer.op_type != "DequantizeLinear" or len(operand.uses()) != 1:
                    continue
                if operand.is_graph_output():
                    continue
                pairs, by = [producer], value
            scales = [_rescaled(node, by) for node in pairs]
            exact = [scale for scale in scales if scale is not None]
            if len(exact) < len(pairs):  # all or none: the node stays for those that cannot
                continue
            for node, scale in zip(pairs, exact, strict=True):
                _rescale(node, scale, names)
            output.replace_all_uses_with(operand)
            edit.remove([place.node])
            stale += [constant] if constant is not None else []
            changed += 1
        edit.drop_unused_initializers(stale)
        return changed


def _factor(node: ir.Node) -> tuple[int, float] | None:
    """Slot and value of the scalar power of two that a Mul or Div applies; a Div's is inverted."""
    if node.op_type not in ("Mul", "Div") or node.domain not in ("", "ai.onnx"):
        return None
    for slot in (1,) if node.op_type == "Div" else (1, 0):
        value, other = node.inputs[slot], node.inputs[1 - slot]
        if value is None or value.const_value is None or not tensors.is_constant(value) or value.const_value.size != 1:
            continue
        # A constant of higher rank than the operand would give the result more axes.
        if other is None or other.shape is None or len(value.const_value.shape) > len(other.shape):
            continue
        number = float(tensors.read(value).reshape(()))
        if number > 0 and math.isfinite(number) and math.frexp(number)[0] == 0.5:
            return slot, 1 / number if node.op_type == "Div" else number
    return None


def _rescaled(node: ir.Node, factor: float) -> tensors.Array | None:
    """The scale of a Q or DQ times `factor`; None where that would not be exact, or it is no constant."""
    scale = node.inputs[1]
    if scale is None or not tensors.is_constant(scale) or not isinstance(scale.graph, ir.Graph):
        return None
    old = tensors.read(scale)
    with np.errstate(over="ignore"):
        new = (old * old.dtype.type(factor)).astype(old.dtype)
    # Below the least normal a product loses bits, above the largest it is infinite.
    least = ml_dtypes.finfo(old.dtype).smallest_normal  # type: ignore[no-untyped-call]
    return new if (np.isfinite(new) & (new >= least)).all() else None


def _rescale(node: ir.Node, array: tensors.Array, names: edit.Names) -> None:
    """Gives a Q or DQ a scale of its own."""
    scale = node.inputs[1]
    assert scale is not None and isinstance(scale.graph, ir.Graph)
    constant = tensors.constant(names.fresh(f"{scale.name}_folded"), array)
    scale.graph.register_initializer(constant)
    edit.replace_input(node, 1, constant)
    edit.drop_unused_initializer(scale)
