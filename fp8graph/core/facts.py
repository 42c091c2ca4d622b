"""What rows of a target's table may ask about an op: a closed list of facts, computed from the graph and its shapes.

Conv      kernel_elements, in_channels, out_channels, group, channels_per_group, depthwise
MatMul    vector (an operand of rank 1), packed_qkv, attention; of attention keys (the least number of them), queries
          (the most of them), head_size, guarded (a guard against NaN behind Softmax
          is what keeps it from fusing)
Gemm      vector, packed_qkv
all       high (`half` or `single`)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property

import onnx_ir as ir

from fp8graph.core import attention
from fp8graph.data.plan import Shapes
from fp8graph.data.target import Fact
from fp8graph.graph import protos, walk
from fp8graph.graph.tensors import dims, is_constant

Dims = tuple[int | None, ...]
# A QuantizeLinear on the way, as other tools write it, ends the product's kernel: behind it nothing falls back.
_MOVES = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Cast"})


class Facts:
    """Facts about the ops of one model under the least shapes it will see.

    `shapes` maps a value's scope and name to its dimensions (`graph.protos.concrete_shapes`); what is not there is
    taken from the value itself. `largest` gives those under the largest shapes, and is called only where it matters.
    """

    def __init__(
        self, model: ir.Model, shapes: Mapping[str, Dims], largest: Callable[[], Mapping[str, Dims]] = dict
    ) -> None:
        self._model = model
        self._shapes = shapes
        self._largest = largest
        self._scopes = walk.scope_table(model)

    def dims(self, value: ir.Value | None) -> Dims | None:
        """Dimensions of a value; None for each that is not known, None where the rank is not."""
        if value is None:
            return None
        if is_constant(value):
            return dims(value)
        known = self._shapes.get(walk.qualified(value, self._scopes))
        return known if known is not None else dims(value)

    def most(self, value: ir.Value) -> Dims | None:
        """Dimensions of a value under the largest shapes."""
        return self._most.get(self.qualified(value)) or self.dims(value)

    @cached_property
    def _most(self) -> Mapping[str, Dims]:
        return self._largest()

    @cached_property
    def _depths(self) -> dict[int, int]:
        depths = {id(graph): 0 for graph in (self._model.graph, *self._model.functions.values())}
        for place in walk.walk(self._model):
            for _, body in walk.bodies(place.node):
                depths[id(body)] = depths[id(place.graph)] + 1
        return depths

    def captured_depth(self, value: ir.Value, graph: ir.Graph | ir.Function) -> int:
        """How many bodies lie between a value and a graph that reads it; 0 where it is the graph's own."""
        return self._depths.get(id(graph), 0) - self._depths.get(id(value.graph), 0)

    def qualified(self, value: ir.Value) -> str:
        """Scope and name of a value: what a Quant calls it."""
        return walk.qualified(value, self._scopes)

    @cached_property
    def attentions(self) -> dict[ir.Node, attention.Attention]:
        """The attention that a product or Softmax belongs to."""
        return {
            node: item for item in attention.find(self._model) for node in (item.scores, item.softmax, item.context)
        }

    def of(self, node: ir.Node, *, half: bool) -> dict[str, Fact]:
        """The facts of one op; those that are not known are left out. `half`: fp16 or bf16 around it."""
        facts: dict[str, Fact] = {"high": "half" if half else "single"}
        if node.op_type in ("Conv", "ConvTranspose"):
            facts |= self._conv(node)
        elif node.op_type in ("MatMul", "Gemm"):
            facts |= self._product(node)
        return facts

    def _conv(self, node: ir.Node) -> dict[str, Fact]:
        attribute = node.attributes.get("group")
        group = attribute.as_int() if attribute is not None else 1
        facts: dict[str, Fact] = {"group": group}
        weight = self.dims(node.inputs[1] if len(node.inputs) > 1 else None)
        if weight is None or len(weight) < 3 or None in weight:
            return facts
        sizes = [size for size in weight if size is not None]
        transposed = node.op_type == "ConvTranspose"
        per_group = sizes[0] // group if transposed else sizes[1]
        facts["kernel_elements"] = math.prod(sizes[2:])
        facts["in_channels"] = per_group * group
        facts["out_channels"] = sizes[1] * group if transposed else sizes[0]
        facts["channels_per_group"] = per_group
        facts["depthwise"] = group > 1 and per_group == 1
        return facts

    def _product(self, node: ir.Node) -> dict[str, Fact]:
        operands = [self.dims(value) for value in node.inputs[:2]]
        facts: dict[str, Fact] = {
            "vector": any(operand is not None and len(operand) < 2 for operand in operands),
            "packed_qkv": self._packed(node),
            "attention": node in self.attentions,
        }
        item = self.attentions.get(node)
        return facts | self._attention(item) if item is not None else facts

    def _attention(self, item: attention.Attention) -> dict[str, Fact]:
        facts: dict[str, Fact] = {"guarded": item.guarded and not item.exposed}
        scores = self.dims(item.scores.outputs[0])
        query = self.dims(item.scores.inputs[0])
        if scores and scores[-1] is not None:
            facts["keys"] = scores[-1]
        if scores and len(scores) > 1 and scores[-2] is not None:
            most = scores if scores[-2] > 1 else self._most.get(self.qualified(item.scores.outputs[0]), scores)
            facts["queries"] = most[-2] or scores[-2]
        if query and query[-1] is not None:
            facts["head_size"] = query[-1]
        return facts

    def _packed(self, node: ir.Node) -> bool:
        """Whether the product's result is split into three or more parts after data movement (packed qkv)."""
        if not any(attention.is_weight(value) for value in node.inputs[:2]):
            return False
        value, steps = node.outputs[0], 0
        while steps < 12:
            users = [user for user, _ in value.uses()]
            takers = [user for user in users if user.op_type in ("Gather", "Slice")]
            if len(takers) >= 3:
                return True
            if len(users) != 1:
                return False
            user = users[0]
            if user.op_type == "Split":
                return len(user.outputs) >= 3
            if user.op_type not in _MOVES and not (
                user.op_type == "Add" and any(attention.is_weight(operand) for operand in user.inputs)
            ):
                return False
            value, steps = user.outputs[0], steps + 1
        return False


def facts_for(model: ir.Model, shapes: Shapes) -> Facts:
    """Facts under the least shapes of the profiles, which is where legality is tightest."""
    valued = walk.shape_inputs(model)
    sized = {name: profile for name, profile in shapes.items() if name not in valued}
    if not sized:
        return Facts(model, {})
    least = {name: profile.min for name, profile in sized.items()}
    most = {name: profile.max for name, profile in sized.items()}
    shaped = protos.concrete_shapes(model, least)
    return Facts(model, shaped, lambda: shaped if most == least else protos.concrete_shapes(model, most))
