"""Even out the channels of what linear layers read, and let their weights make up for it.

What it does   x = LayerNorm(..) or any tensor whose channels can be scaled exactly, y = x w: x / f and f w have the
               same product. f is a power of two for each channel, next to max|x|^alpha / max|w|^(1-alpha), as in
               SmoothQuant, and goes into constants that are there: gain and bias of the normalization (also of one that
               is written out), or the output channels of the product in front. alpha is the one with the least noise of
               all products that read x; tensors where that saves less than `least` of it are left alone.
Why            One scale for a tensor is that of its largest channel. INT8 has no steps left for the others; FP8, whose
               steps are relative, has some until they fall below its smallest normal number.
Needs          data
Codes          FG242 what it saves
Exactness      exact: powers of two; what is quantized rounds elsewhere
"""

from __future__ import annotations

from dataclasses import dataclass

from fp8graph.core.context import OpView
from fp8graph_passes._moving import Moving


@dataclass(frozen=True)
class MigrateChannels(Moving):
    """Channels of what MatMul and Gemm read."""

    def reads(self, op: OpView) -> bool:
        """MatMul and Gemm."""
        return op.node.op_type in ("MatMul", "Gemm")
