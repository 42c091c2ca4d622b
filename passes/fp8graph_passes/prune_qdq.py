"""Take away Q/DQ that nothing reads, and all but one of those that are alike.

What it does   1. A QuantizeLinear or DequantizeLinear whose result nothing reads goes.
               2. Of several that read the same tensor with the same numbers in one graph, the first serves all.
Why            Other tools write a pair for each reader, and leave some behind: each is one more node to look at, and
               some runtimes run them.
Exactness      exact: what is read is the same
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.core.reading import is_dequantizer, is_quantizer
from fp8graph.graph import edit, walk
from fp8graph.graph.constants import number


@dataclass(frozen=True)
class PruneQDQ(RewritePass):
    """One Q/DQ for each tensor, and none for nobody."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Cases 1 and 2, in bodies and functions, too. A pair that serves a graph output stays."""
        return _merge(model) + _prune(model)


def _merge(model: ir.Model) -> int:
    first: dict[Hashable, ir.Node] = {}
    changed = 0
    # In graph order, so that a Q is merged before the DQs behind it are looked at.
    for place in list(walk.walk(model)):
        node = place.node
        if not (is_quantizer(node) or is_dequantizer(node)) or node.outputs[0].is_graph_output():
            continue
        key = _key(place)
        if key is None:
            continue
        kept = first.setdefault(key, node)
        if kept is not node:
            edit.take_over(node.outputs[0], kept.outputs[0])
            edit.remove([node])
            changed += 1
    return changed


def _key(place: walk.Place) -> Hashable | None:
    """What is alike in two nodes that do the same; None where that cannot be told."""
    node = place.node
    numbers: list[Hashable] = []
    for value in node.inputs[1:]:
        array = number(value)
        if value is not None and array is None:
            return None
        numbers.append(None if array is None else (str(array.dtype), array.shape, array.tobytes()))
    said = sorted((name, str(item.value)) for name, item in node.attributes.items())
    if any(item.is_ref() for item in node.attributes.values()):
        return None
    return (id(place.graph), node.domain, node.op_type, node.inputs[0], tuple(numbers), tuple(said))


def _prune(model: ir.Model) -> int:
    changed = 0
    # Backwards: behind a DQ that goes, its Q has no reader either.
    for place in reversed(list(walk.walk(model))):
        node = place.node
        if not (is_quantizer(node) or is_dequantizer(node)):
            continue
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        constants = [value for value in node.inputs if value is not None]
        edit.remove([node])
        edit.drop_unused_initializers(constants)
        changed += 1
    return changed
