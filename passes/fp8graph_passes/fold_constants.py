"""Compute what depends on small constants alone: shapes, axes, scales that tracing exporters leave in the graph.

What it does   Runs onnxscript's constant folding with limits on input and output size; Q/DQ, weights and large
               tables are left alone.
Why            An attention scale that is computed from a shape is found as a number, and engines get fewer nodes.
Exactness      exact: the ops are computed by ONNX's reference implementation
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import walk

_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class FoldConstants(RewritePass):
    """Fold nodes whose inputs are small constants.

    limit          most elements of a constant that is read
    output_limit   most elements of a constant that is made
    """

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"limit": (0, 2**31), "output_limit": (0, 2**31)}

    limit: int = 1024
    output_limit: int = 65536

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Works on a copy that is taken over when the library went through."""
        before = sum(1 for _ in walk.walk(model))
        if not any(_constant_inputs(place.node) for place in walk.walk(model)):
            return 0
        from onnxscript.optimizer import fold_constants

        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        work = model.clone()
        fold_constants(work, input_size_limit=self.limit, output_size_limit=self.output_limit, should_fold=self._decide)
        changed = before - sum(1 for _ in walk.walk(work))
        if changed <= 0:
            return 0
        model.graph = work.graph
        model.functions.clear()
        model.functions.update(work.functions)
        return changed

    def _decide(self, node: ir.Node) -> bool | None:
        """False for what stays; without it the library would transpose weights of any size, in memory."""
        sizes = [value.const_value.size for value in node.inputs if value is not None and value.const_value is not None]
        return False if node.op_type in _KEPT or any(size > self.limit for size in sizes) else None


def _constant_inputs(node: ir.Node) -> bool:
    """Whether folding could touch the node: shapes, or inputs that are constants throughout."""
    if node.op_type in ("Shape", "Size", "Dropout", "CastLike", "If"):
        return True
    given = [value for value in node.inputs if value is not None]
    return bool(given) and all(value.const_value is not None for value in given) and node.op_type not in _KEPT
