"""Bring attention's split scale together: (q a) (k b)^T = (q ab) k^T.

Exporters multiply both q and k by d^(-1/4). The product of both, d^(-1/2), is a power of two for heads of 16, 64 and
256: it can then go into a scale without a trace (see fold-constant-scale), and one multiplication is saved in any case.

What it does   Where both operands of attention's first product come from Mul by a scalar constant, the Mul on the
               second operand is taken out and the one on the first gets the product of both constants.
Why            Half of the multiplications, and the rest may fold.
Exactness      within 4 units in the last place of the scores: the factors are multiplied in another order
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core import attention
from fp8graph.core.context import Context
from fp8graph.core.passes import Exactness, RewritePass, Stage, Ulps
from fp8graph.graph import edit, tensors

_MOVES = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class MergeAttentionScale(RewritePass):
    """One scale on q instead of two on q and k."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Ulps(4)

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Each attention once."""
        names, changed, stale = edit.Names(model), 0, []
        for item in list(attention.find(model)):
            first, second = (_scale_of(value) for value in item.scores.inputs[:2])
            if first is None or second is None or first[0] is second[0]:
                continue
            (left, left_slot), (right, right_slot) = first, second
            a, b = (tensors.read(_operand(node, slot)) for node, slot in (first, second))
            product = np.asarray(_snap(float(a.item()) * float(b.item()), a.dtype), a.dtype).reshape(a.shape)
            constant = tensors.constant(names.fresh(f"{_operand(left, left_slot).name}_merged"), product)
            graph = left.graph
            if not isinstance(graph, ir.Graph):
                continue
            graph.register_initializer(constant)
            stale += [_operand(left, left_slot), _operand(right, right_slot)]
            left.replace_input_with(left_slot, constant)
            kept = right.inputs[1 - right_slot]
            assert kept is not None
            right.outputs[0].replace_all_uses_with(kept)
            edit.remove([right])
            changed += 1
        edit.drop_unused_initializers(stale)
        return changed


def _operand(node: ir.Node, slot: int) -> ir.Value:
    value = node.inputs[slot]
    assert value is not None
    return value


def _scale_of(value: ir.Value | None) -> tuple[ir.Node, int] | None:
    """The Mul by a scalar constant that an operand comes from, and the constant's slot; movement is walked past."""
    while value is not None:
        node = value.producer()
        if node is None or len(value.uses()) != 1 or value.is_graph_output():
            return None
        if node.op_type == "Mul" and not isinstance(node.graph, ir.Function):
            for slot in (0, 1):
                operand = node.inputs[slot]
                if operand is not None and tensors.is_constant(operand) and operand.const_value is not None:
                    return (node, slot) if operand.const_value.size == 1 and _keeps_rank(node, slot) else None
            return None
        if node.op_type not in _MOVES:
            return None
        value = node.inputs[0]
    return None


def _keeps_rank(node: ir.Node, slot: int) -> bool:
    """Whether the constant in `slot` gives the result no more axes than the other operand has."""
    constant, other = tensors.dims(node.inputs[slot]), tensors.dims(node.inputs[1 - slot])
    return constant is not None and (not constant or (other is not None and len(constant) <= len(other)))


def _snap(value: float, dtype: np.dtype[Any]) -> float:
    """The power of two that `value` is up to rounding of its factors, else `value`."""
    nearest = float(2.0 ** round(np.log2(value))) if value > 0 else value
    tolerance = 4 * float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
    return nearest if abs(value - nearest) <= tolerance * nearest else value
