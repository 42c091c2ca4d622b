"""Move Q/DQ in front of data movement, so that a tensor has one pair and moves as FP8.

With m a movement of elements (Transpose, Reshape, Concat ...):   DQ(Q(m(x), s), s) = m(DQ(Q(x, s), s)),   bit for bit.

What it does   1. Pairs of one scale that stand behind different movements of one tensor, or behind one and on the
                  tensor itself, become one pair on it; the movements stand behind DequantizeLinear.
               2. Where the recipe says `quantize.concat`: a pair behind Concat becomes one on each of its operands,
                  shared with the pair that an operand has already. Planning gives all of them one scale.
               3. Of two QuantizeLinear that give one tensor the same codes, one is left.
               A movement whose result is read by anything but its pair, or returned, stays where it is; so does one in
               another graph, and one that the target's table does not let FP8 pass.
Why            Each QuantizeLinear reads and writes the tensor once more; FP8 moves with half the bytes of fp16. Engines
               keep an op in FP8 with data movement between DQ and the op (tensorrt_rtx 1.7.1, read in engines).
Exactness      exact: rounding element by element commutes with moving elements
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import edit, tensors, walk

# They yield every element of their first input, and no others: its range is theirs.
_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Identity", "DepthToSpace"})
# What a pair does to a value: its scale's bytes, the format, the type that it yields; and the graph in which it does.
Kind = tuple[bytes, ir.DataType, ir.DataType, int]


@dataclass(frozen=True)
class LiftPairs(RewritePass):
    """One pair a tensor, in front of what only moves it."""

    stage: ClassVar[Stage] = Stage.FOLD
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Concat first, which makes pairs on its operands that may then be one with others."""
        work = _Lifting(edit.Names(model), frozenset(ctx.target.through))
        changed = 0
        waiting = list(_pairs(model)) if ctx.recipe.concat else []
        while waiting:
            pair = waiting.pop()
            if work.concat_of(pair) is not None:
                waiting += work.over_concat(pair)
                changed += 1
        return changed + work.join(list(_pairs(model))) + _share_codes(model)


@dataclass(frozen=True)
class _Pair:
    """A QuantizeLinear with a constant scale of rank 0, and the one DequantizeLinear that reads it."""

    quantize: ir.Node
    dequantize: ir.Node
    graph: ir.Graph
    kind: Kind

    @property
    def value(self) -> ir.Value:
        value = self.quantize.inputs[0]
        assert value is not None
        return value


def _pairs(model: ir.Model) -> Iterator[_Pair]:
    for place in list(walk.walk(model)):
        node, graph = place.node, place.graph
        if node.op_type != "QuantizeLinear" or not isinstance(graph, ir.Graph) or node.inputs[0] is None:
            continue
        scale, codes = node.inputs[1], node.outputs[0]
        readers = [user for user, _ in codes.uses()]
        if len(readers) != 1 or readers[0].op_type != "DequantizeLinear" or codes.is_graph_output():
            continue
        result = readers[0].outputs[0]
        same = readers[0].inputs[1] is scale and len(node.inputs) == len(readers[0].inputs) == 2
        if not same or readers[0].graph is not graph or result.is_graph_output() or not tensors.is_constant(scale):
            continue
        assert scale is not None
        if codes.dtype is None or result.dtype is None or tensors.read(scale).ndim:
            continue
        yield _Pair(node, readers[0], graph, (tensors.read(scale).tobytes(), codes.dtype, result.dtype, id(graph)))


def _share_codes(model: ir.Model) -> int:
    """Case 3: where a scale was folded into DequantizeLinear alone, its codes are those of another pair."""
    made: dict[tuple[object, ...], ir.Value] = {}
    changed = 0
    for place in list(walk.walk(model)):
        node = place.node
        if node.op_type != "QuantizeLinear" or len(node.inputs) != 2 or not tensors.is_constant(node.inputs[1]):
            continue
        scale, codes = node.inputs[1], node.outputs[0]
        assert scale is not None
        array = tensors.read(scale)
        attributes = tuple(sorted((name, str(item.value)) for name, item in node.attributes.items()))
        same = (id(place.graph), node.inputs[0], array.tobytes(), array.shape, str(array.dtype), attributes)
        first = made.setdefault(same, codes)
        if first is codes or codes.is_graph_output():
            continue
        codes.replace_all_uses_with(first)
        edit.remove([node])
        edit.drop_unused_initializer(scale)
        changed += 1
    return changed


class _Lifting:
    def __init__(self, names: edit.Names, through: frozenset[str]) -> None:
        self.names, self.through = names, through

    def join(self, pairs: list[_Pair]) -> int:
        """Case 1: lifts each pair to the nearest value behind which another one of its kind stands, too."""
        behind: dict[tuple[ir.Value, Kind], int] = {}
        for pair in pairs:
            for value in self._sources(pair):
                behind[value, pair.kind] = behind.get((value, pair.kind), 0) + 1
        on: dict[tuple[ir.Value, Kind], _Pair] = {}
        changed = 0
        for pair in sorted(pairs, key=lambda pair: len(self._sources(pair))):
            source = next((v for v in self._sources(pair) if behind[v, pair.kind] > 1), pair.value)
            shared = on.get((source, pair.kind))
            if shared is not None and shared is not pair:
                self._read_from(pair, shared)
                changed += 1
            else:
                if source is not pair.value:
                    pair = self._raised(pair, source)
                    changed += 1
                on[source, pair.kind] = pair
        return changed

    def _sources(self, pair: _Pair) -> list[ir.Value]:
        """The pair's value, and those that it is a movement of, upwards."""
        found, value = [pair.value], pair.value
        while (node := value.producer()) is not None and self._moves(node, value, pair):
            assert node.inputs[0] is not None
            value = node.inputs[0]
            found.append(value)
        return found

    def _moves(self, node: ir.Node, value: ir.Value, pair: _Pair) -> bool:
        """Whether a node only moves its input's elements, for this pair alone."""
        if node.op_type not in _MOVES & self.through or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            return False
        return self._only_for(node, value, pair) and not tensors.is_constant(node.inputs[0])

    def _only_for(self, node: ir.Node, value: ir.Value, pair: _Pair) -> bool:
        return node.graph is pair.graph and len(value.uses()) == 1 and not value.is_graph_output()

    def _raised(self, pair: _Pair, source: ir.Value) -> _Pair:
        """The pair on `source`; what moved `source` for it reads the new one."""
        fresh = self._new(pair, source)
        self._read_from(pair, fresh)
        return fresh

    def _read_from(self, pair: _Pair, other: _Pair) -> None:
        """Takes a pair away; the movements between it and `other` then stand behind that one."""
        bottom, value, dtype = pair.value, pair.value, pair.dequantize.outputs[0].dtype
        assert dtype is not None
        while value is not other.value:
            node = value.producer()
            assert node is not None and node.inputs[0] is not None
            value.type = ir.TensorType(dtype)
            if node.inputs[0] is other.value:
                edit.replace_input(node, 0, other.dequantize.outputs[0])
                break
            value = node.inputs[0]
        result = bottom if bottom is not other.value else other.dequantize.outputs[0]
        self._drop(pair, result)

    @staticmethod
    def _drop(pair: _Pair, result: ir.Value) -> None:
        scale = pair.quantize.inputs[1]
        pair.dequantize.outputs[0].replace_all_uses_with(result)
        edit.remove([pair.dequantize])
        edit.remove([pair.quantize])
        if scale is not None:
            edit.drop_unused_initializer(scale)

    def _new(self, pair: _Pair, value: ir.Value) -> _Pair:
        """A pair like another on another value, with its own nodes and the same scale."""
        scale, dtype = pair.quantize.inputs[1], pair.dequantize.outputs[0].dtype
        serves = pair.quantize.metadata_props.get(walk.FOR, "")
        quantize = edit.new_node(
            "QuantizeLinear",
            [value, scale],
            self.names,
            output=f"{value.name}_q",
            shape=value.shape,
            dtype=pair.kind[1],
            attributes=dict(pair.quantize.attributes),
            serves=serves,
        )
        dequantize = edit.new_node(
            "DequantizeLinear",
            [quantize.outputs[0], scale],
            self.names,
            output=f"{value.name}_dq",
            shape=value.shape,
            dtype=dtype,
            attributes=dict(pair.dequantize.attributes),
            serves=serves,
        )
        edit.insert_after(value, [quantize, dequantize], pair.graph)
        return _Pair(quantize, dequantize, pair.graph, pair.kind)

    def concat_of(self, pair: _Pair) -> ir.Node | None:
        """The Concat that a pair alone reads, where every operand of it can have a pair of its own."""
        node = pair.value.producer()
        if node is None or node.op_type != "Concat" or not self._only_for(node, pair.value, pair):
            return None
        if any(value is None or tensors.is_constant(value) for value in node.inputs):
            return None
        return node

    def over_concat(self, pair: _Pair) -> list[_Pair]:
        """Case 2: a pair on each operand; those that are there twice become one in case 1."""
        node = self.concat_of(pair)
        assert node is not None
        made: dict[ir.Value, _Pair] = {}
        for slot, value in enumerate(list(node.inputs)):
            assert value is not None
            if value not in made:
                made[value] = self._new(pair, value)
            edit.replace_input(node, slot, made[value].dequantize.outputs[0])
        output = node.outputs[0]
        dtype = pair.dequantize.outputs[0].dtype
        assert dtype is not None
        output.type = ir.TensorType(dtype)
        self._drop(pair, output)
        return list(made.values())
