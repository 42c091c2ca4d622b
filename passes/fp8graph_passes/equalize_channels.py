"""Even out the channels between convolutions.

What it does   Conv -> Relu, LeakyRelu, Clip from 0, pools -> Conv: the output channels of the first are divided by
               powers of two, the input channels of the second, depthwise or not, are multiplied by them. They are found
               as in migrate-channels.
Why            Where a depthwise Conv reads the tensor, its scales per output channel take the factors up without a
               loss, so that all channels of the tensor may have one range.
Needs          data
Codes          FG242 what it saves
Exactness      exact: powers of two; what is quantized rounds elsewhere
"""

from __future__ import annotations

from dataclasses import dataclass

from fp8graph.core.context import OpView
from fp8graph_passes._moving import Moving


@dataclass(frozen=True)
class EqualizeChannels(Moving):
    """Channels of what Conv reads."""

    def reads(self, op: OpView) -> bool:
        """Conv."""
        return op.node.op_type == "Conv"
