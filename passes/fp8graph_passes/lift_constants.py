"""Turn Constant nodes into initializers, and let readers of an Identity on a constant read the constant.

What it does   1. A Constant node of the main graph or a body becomes an initializer of the same name.
               2. Identity(initializer) is passed by.
Why            Weights and scales are then found in one place; exporters of the older kind write hundreds of Constants.
Exactness      exact: no value changes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import edit, walk
from fp8graph.graph.tensors import is_constant


@dataclass(frozen=True)
class LiftConstants(RewritePass):
    """Constants become initializers."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Cases 1 and 2, in all graphs; functions hold no initializers and stay as they are."""
        before = sum(1 for _ in walk.walk(model))
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        changed = before - sum(1 for _ in walk.walk(model))
        for place in list(walk.walk(model)):
            node = place.node
            if node.op_type != "Identity" or node.domain not in ("", "ai.onnx") or not is_constant(node.inputs[0]):
                continue
            output, constant = node.outputs[0], node.inputs[0]
            if output.is_graph_output() or constant is None:
                continue
            output.replace_all_uses_with(constant)
            edit.remove([node])
            changed += 1
        return changed
