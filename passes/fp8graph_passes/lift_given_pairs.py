"""Take the Q/DQ off products that came wholly quantized: planning has their scales, and the graph is a float one again.

    x -> QuantizeLinear(s) -> DequantizeLinear(s) -> [movement] -> MatMul     becomes     x -> [movement] -> MatMul

What it does   1. An operand that comes from a pair with one constant scale, in the recipe's format or in FP8 that the
                  target does not read, reads what the pair read, and the product knows format and scale. Its other
                  operand has to be such a one, too, or a weight that `lift-given-weights` takes.
               2. Data movement between the two, Concat of operands of one scale too, comes to read what the pair read
                  where nothing but such products reads it.
               3. With `given = "recalibrate"` in the recipe, a pair may have any format, and the other operand may be
                  one that is not quantized.
               What else reads the pair goes on doing so.
Why            A quantized model, an imported checkpoint and a float model then go one way: the plan says what becomes
               of each op, honours the numbers that came, and what it keeps loses its Q/DQ.
Limits         Not in functions, not with a zero point other than 0.
Exactness      approximate: what the pair rounded is not rounded until the plan is carried out, with the same scale
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.given_weights import stored
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.core.reading import ONNX, given
from fp8graph.formats import family
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.given import MOVES, Pair, dequantizer, hold, pair, stand
from fp8graph_passes._given import PRODUCTS, alike, codes, of_products, turned

Edge = tuple[ir.Node, int]


@dataclass(frozen=True)
class LiftGivenPairs(RewritePass):
    """Scales that activations came with leave the graph for planning."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Approximate("Q/DQ is put back as the plan says, with the same scale")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every such operand, in bodies, too; none where the recipe quantizes no activations."""
        if all(way.activations.format == "none" for way in ctx.recipe.ways):
            return 0
        work = _Lifting(model, ctx)
        work.settle()
        for edge, road in work.roads.items():
            hold(*edge, road.pair)
        for road in work.roads.values():
            work.reroute(road)
        return len(work.roads)


@dataclass(frozen=True)
class _Road:
    """From the pairs to an operand: who reads a DequantizeLinear, and the nodes that move what it yields."""

    pair: Pair
    doors: tuple[Edge, ...]
    moves: frozenset[ir.Node]


class _Lifting:
    """All operands that could be taken off their pairs, until each is one that can."""

    def __init__(self, model: ir.Model, ctx: Context) -> None:
        self.ctx, self.names = ctx, edit.Names(model)
        self.made: dict[tuple[ir.Value, object], ir.Value] = {}
        self.roads: dict[Edge, _Road] = {}
        for place in walk.walk(model):
            node = place.node
            if node.op_type in PRODUCTS and node.domain in ONNX and isinstance(place.graph, ir.Graph):
                for slot in (0, 1):
                    road = self._road((node, slot))
                    if road is not None and self._wanted(road.pair):
                        self.roads[node, slot] = road

    def _wanted(self, found: Pair) -> bool:
        formats = {way.activations.format for way in self.ctx.recipe.ways}
        if self.ctx.anew or found.format in formats:
            return True
        return "fp8" in {family(format) for format in formats} and not stored(self.ctx.target, found.format)

    def _road(self, edge: Edge) -> _Road | None:
        """The way up from an operand, where it ends at pairs of one scale; None where it does not."""
        doors, moves, found, waiting = list[Edge](), set[ir.Node](), set[Pair](), [edge]
        while waiting:
            node, slot = waiting.pop()
            value = given(node, slot)
            maker = value.producer() if value is not None else None
            if maker is None or maker.domain not in ONNX:
                return None
            if maker.op_type == "DequantizeLinear":
                held, source = pair(value), _read(maker)
                if held is None or source is None or dequantizer(source) is not None:
                    return None
                found.add(held)
                doors.append((node, slot))
            elif maker.op_type == "Concat":
                waiting += [(maker, index) for index in range(len(maker.inputs))] if maker not in moves else []
                moves.add(maker)
            elif maker.op_type in MOVES:
                waiting.append((maker, 0))
                moves.add(maker)
            else:
                return None
        return _Road(found.pop(), tuple(doors), frozenset(moves)) if len(found) == 1 else None

    def settle(self) -> None:
        """Drops operands until every one left can be taken off: dropping one may hold back others."""
        while True:
            moves = {move for road in self.roads.values() for move in road.moves}
            bad = [edge for edge, road in self.roads.items() if not self._fits(edge, road, moves)]
            if not bad:
                return
            for edge in bad:
                del self.roads[edge]

    def _fits(self, edge: Edge, road: _Road, moves: set[ir.Node]) -> bool:
        """Whether nothing else reads the movement, and the other operand is off its pair, or a weight."""
        node, slot = edge
        for output in (move.outputs[0] for move in road.moves):
            alone = all(user in moves or (user, index) in self.roads for user, index in output.uses())
            if output.is_graph_output() or not alone:
                return False
        if (node, 1 - slot) in self.roads or self._beside_weight(node, 1 - slot):
            return True
        return self.ctx.anew and dequantizer(given(node, 1 - slot)) is None

    def _beside_weight(self, node: ir.Node, slot: int) -> bool:
        """Whether an operand is stored codes that become a weight once their products are off their pairs."""
        value = given(node, slot)
        maker = value.producer() if value is not None else None
        while maker is not None and turned(maker) is not None:
            value = maker.inputs[0]
            maker = value.producer() if value is not None else None
        if maker is None or (found := codes(maker)) is None:
            return False
        return alike(found, self.ctx.recipe) and of_products(maker.outputs[0], self._is_off)

    def _is_off(self, node: ir.Node, slot: int) -> bool:
        return (node, slot) in self.roads or dequantizer(given(node, slot)) is None

    def reroute(self, road: _Road) -> None:
        """What read a DequantizeLinear reads what was quantized, in the type in which it did."""
        for node, slot in road.doors:
            value = node.inputs[slot]
            maker = value.producer() if value is not None else None
            if value is None or maker is None or maker.op_type != "DequantizeLinear":
                continue  # another operand's road goes through the same door
            source = _read(maker)
            assert source is not None and value.dtype is not None and value.name is not None
            if road.pair.factor != 1:
                source = self._times(source, road.pair.factor, value.name.removesuffix("_dq"))
            edit.replace_input(node, slot, self._typed(source, value.dtype))
            edit.remove_unread(maker)
            if node in road.moves and node.op_type == "Cast":
                stand(node)
                self._skip(node)

    def _skip(self, cast: ir.Node) -> None:
        """Takes away a Cast to the type that another one in front of it came from."""
        narrow, wide = cast.outputs[0], cast.inputs[0]
        source = _before(wide, narrow.dtype) if wide is not None and narrow.dtype is not None else None
        if source is not None:
            narrow.replace_all_uses_with(source)
            edit.remove_unread(cast)

    def _typed(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        found = value if value.dtype == dtype else _before(value, dtype) or self.made.get((value, dtype))
        if found is None:
            name = f"{value.name}_{tensors.FLOATS[dtype]}"
            node = self._behind(value, "Cast", [value], name, dtype, to=int(dtype))
            stand(node)
            found = self.made[value, dtype] = node.outputs[0]
        return found

    def _times(self, value: ir.Value, factor: float, name: str) -> ir.Value:
        """A power of two times a value: what `fold-constant-scale` had put into the scale."""
        assert value.dtype is not None and isinstance(value.graph, ir.Graph)
        if (value, factor) not in self.made:
            kind = tensors.NUMPY[tensors.FLOATS[value.dtype]]
            number = tensors.constant(self.names.fresh(f"{name}_factor"), np.asarray(factor, kind))
            edit.register(value.graph, number)
            self.made[value, factor] = self._behind(value, "Mul", [value, number], name, value.dtype).outputs[0]
        return self.made[value, factor]

    def _behind(
        self, value: ir.Value, op_type: str, inputs: list[ir.Value], name: str, dtype: ir.DataType, **attributes: int
    ) -> ir.Node:
        assert isinstance(value.graph, ir.Graph)
        node = edit.new_node(
            op_type, inputs, self.names, output=name, shape=value.shape, dtype=dtype, attributes=attributes
        )
        edit.insert_after(value, [node], value.graph)
        return node


def _before(value: ir.Value, dtype: ir.DataType) -> ir.Value | None:
    """The value of a type in half precision that a Cast has made a float32 one; None for any other."""
    maker = value.producer()
    source = maker.inputs[0] if maker is not None and maker.op_type == "Cast" and maker.domain in ONNX else None
    widened = source is not None and source.dtype == dtype and dtype in tensors.HALF
    return source if widened and value.dtype == ir.DataType.FLOAT else None


def _read(dequantize: ir.Node) -> ir.Value | None:
    """What the pair of a DequantizeLinear reads, where it is computed floats; None for any other."""
    codes = dequantize.inputs[0]
    quantize = codes.producer() if codes is not None else None
    source = quantize.inputs[0] if quantize is not None else None
    plain = source is not None and source.dtype in tensors.PLAIN and dequantize.outputs[0].dtype in tensors.PLAIN
    return source if source is not None and plain and not tensors.is_constant(source) else None
