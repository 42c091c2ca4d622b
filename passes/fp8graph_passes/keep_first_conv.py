"""Keep the first Conv on an image: few channels, most of the noise.

What it does   Keeps a Conv on four input channels or fewer that reads the model's input, through data movement and
               constant scaling at most.
Why            Kernels pad its channels, so FP8 gains little; alone it made 63 % (ResNet-20) and 78 % (ResNet-8) of all
               quantization noise when everything was in FP8.
Codes          FG208 kept: first Conv on an image
Exactness      plan only, no arithmetic changes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Opinion, PlanRule
from fp8graph.graph.tensors import is_constant

_THROUGH = frozenset(
    {
        "Transpose",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Identity",
        "Cast",
        "Sub",
        "Div",
        "Mul",
        "Add",
        "Pad",
        "Resize",
        "Slice",
    }
)


@dataclass(frozen=True)
class KeepFirstConv(PlanRule):
    """The Conv that reads the image stays in high precision.

    channels   most input channels that an image has
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"channels": (0, 2**31)}

    channels: int = 4

    def decide(self, op: OpView, ctx: Context) -> Opinion | None:
        """Looks at the channels, then walks up to the model's input."""
        channels = op.facts.get("in_channels")
        if op.node.op_type != "Conv" or not isinstance(channels, int) or channels > self.channels:
            return None
        value = op.input(0)
        for _ in range(16):
            if value is None:
                return None
            producer = value.producer()
            if producer is None:
                text = f"the first Conv on an image (channels: {channels}): padding eats the gain, it makes most noise"
                return Opinion("keep", "FG208", text) if value.is_graph_input() else None
            if producer.op_type not in _THROUGH:
                return None
            value = next((item for item in producer.inputs if item is not None and not is_constant(item)), None)
        return None
