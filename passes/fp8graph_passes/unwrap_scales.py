"""Give a scale that is a list of one, of a tensor that has one scale, rank 0.

What it does   The scale of a QuantizeLinear or DequantizeLinear, and its zero point, become scalars where they have
               shape [1]; an axis that stood for them goes.
Why            Of a Conv's activation such a scale makes TensorRT-RTX 1.7.1 fall back to high precision, of a Conv's
               weight the builder fails. The standard takes both for one scale.
Exactness      exact: the number is the same
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.core.reading import is_dequantizer, is_quantizer
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.constants import number


@dataclass(frozen=True)
class UnwrapScales(RewritePass):
    """Scalars where a list says nothing more."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every Q and DQ with a constant scale of shape [1]; functions hold no initializers and are left."""
        names, changed = edit.Names(model), 0
        made: dict[ir.Value, ir.Value] = {}
        for place in list(walk.walk(model)):
            node, graph = place.node, place.graph
            if not (is_quantizer(node) or is_dequantizer(node)) or not isinstance(graph, ir.Graph):
                continue
            scale = node.inputs[1] if len(node.inputs) > 1 else None
            array = number(scale)
            if array is None or array.shape != (1,) or "block_size" in node.attributes:
                continue
            for slot in (1, 2):
                changed += _unwrap(node, slot, model.graph, names, made)
            node.attributes.pop("axis", None)
        return changed


def _unwrap(node: ir.Node, slot: int, graph: ir.Graph, names: edit.Names, made: dict[ir.Value, ir.Value]) -> int:
    value = node.inputs[slot] if slot < len(node.inputs) else None
    array = number(value)
    if value is None or array is None or array.shape != (1,):
        return 0
    if value not in made:
        scalar = tensors.constant(names.fresh(f"{value.name}_scalar"), array.reshape(()))
        made[value] = edit.register(graph, scalar)
    edit.replace_input(node, slot, made[value])
    edit.drop_unused_initializer(value)
    return 1
