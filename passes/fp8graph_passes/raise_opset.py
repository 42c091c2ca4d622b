"""Raise the default opset to what FP8 and the target want; a higher one stays.

What it does   Converts the model with onnx's version converter where its opset is below the target's.
Why            FP8 Q/DQ is legal ONNX from opset 19, `output_dtype` from 21: the form that runtimes do not break.
Exactness      the converter keeps the meaning of every op; node metadata and other domains are put back
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import opset

# The first opset whose Conv, pooling and normalization take bf16.
BF16_OPSET = 22


@dataclass(frozen=True)
class RaiseOpset(RewritePass):
    """Raise the opset, and the IR version with it."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Converts once, to the target's opset."""
        own = [formats.get(name).min_opset for name in ctx.recipe.formats]
        least = max(ctx.target.opset, BF16_OPSET if ctx.high == "bf16" else 0, *own)
        changed = int(opset.raise_opset(model, least))
        # IR 10 is the first that knows opset 21's types; runtimes refuse versions above the target's.
        wanted = min(max(model.ir_version, 10), ctx.target.ir_version)
        if model.ir_version != wanted:
            model.ir_version = wanted
            changed += 1
        return changed
