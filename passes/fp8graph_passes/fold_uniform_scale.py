"""Turn a scale vector whose elements are all equal into the one scale that they have in common.

What it does   A DequantizeLinear with one scale per index of an axis, all equal, gets a scale of rank 0 and no axis.
Why            A scale vector costs a kernel behind the product, one scale goes into the product itself.
Exactness      exact: every element is multiplied by the same number as before
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import edit, tensors, walk


@dataclass(frozen=True)
class FoldUniformScale(RewritePass):
    """One scale where the vector says nothing more."""

    stage: ClassVar[Stage] = Stage.FOLD
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """DequantizeLinear without a zero point and with a constant scale vector."""
        names, changed = edit.Names(model), 0
        for place in list(walk.walk(model)):
            node = place.node
            if node.op_type != "DequantizeLinear" or len(node.inputs) > 2 or "block_size" in node.attributes:
                continue
            scale = node.inputs[1]
            graph = scale.graph if scale is not None else None
            if scale is None or not tensors.is_constant(scale) or not isinstance(graph, ir.Graph):
                continue
            array = tensors.read(scale)
            if array.ndim != 1 or array.size == 0 or not (array == array[0]).all():
                continue
            constant = tensors.constant(names.fresh(f"{scale.name}_common"), array[0].reshape(()))
            graph.register_initializer(constant)
            edit.replace_input(node, 1, constant)
            node.attributes.pop("axis", None)
            edit.drop_unused_initializer(scale)
            changed += 1
        return changed
