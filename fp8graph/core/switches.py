"""One model in which every quantized operand can be switched on and off: what sensitivity is measured in.

Each switch is a boolean input. The quantization of an operand lies in a branch of an If, so that it costs nothing while
it is off:

    a' = If(s_a) { DQ(Q(a)) } else { a }                        an activation
    y  = If(s_w) { op(a', DQ(codes)) } else { op(a', w) }       a weight, which no branch copies
    y  = If(s)   { all that the plan made of the op } else { op(a, w) }     an op that was given another form
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from fp8graph.data.plan import Decision, OpKey, Plan
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.stages import Legal, Normalized

# The longest way from an operand to what the original computes; a dynamic scale in blocks takes about 30 nodes.
_LONGEST = 80
_BOOL = ir.DataType.BOOL
# Adjustments that give the op another form: it is switched as a whole.
_FORMS = ("split", "terms")


@dataclass(frozen=True)
class Switch:
    """One boolean input. `slot` is the operand that it quantizes; None where the op is switched as a whole.
    `weight`: whether that operand is the op's constant one."""

    key: OpKey
    slot: int | None
    name: str
    weight: bool = False


@dataclass(frozen=True)
class Switched:
    """The model with its switches, and the quantized ops that have none."""

    model: ir.Model
    switches: tuple[Switch, ...]
    missing: tuple[OpKey, ...]


class NoWayError(Exception):
    """The op cannot be switched."""


def switched(normalized: Normalized, legal: Legal, plan: Plan) -> Switched:
    """The carried out plan with a switch at every quantized operand. Consumes the model of `legal`.

    An op has no switch where the target's form of it leaves no tensor under the name that it had (an attention that
    became one operator).
    """
    work = Switching(normalized.model, legal.model)
    switches: list[Switch] = []
    missing: list[OpKey] = []
    for key, decision in plan.quantized():
        try:
            switches += work.switch(key, decision)
        except NoWayError:
            missing.append(key)
    TopologicalSortPass()(legal.model)  # a Cast may stand in front of what it reads
    RemoveUnusedNodesPass()(legal.model)
    return Switched(legal.model, tuple(switches), tuple(missing))


class Switching:
    """The carried out plan beside the model that it was made for."""

    def __init__(self, before: ir.Model, after: ir.Model) -> None:
        self.model, self.names = after, edit.Names(after)
        self._before = {place.key: place.node for place in walk.walk(before) if place.key}
        self._after = {place.key: place for place in walk.walk(after) if place.key}
        self._original = {
            scope: {value.name: value for value in walk.values(graph) if value.name}
            for scope, graph in walk.graphs(before)
        }
        self._here: dict[str, dict[str, ir.Value]] = {}
        for scope, graph in walk.graphs(after):
            self._here[scope] = {value.name: value for value in walk.values(graph) if value.name}
        self._owners = {id(body): place for place in walk.walk(after) for _, body in walk.bodies(place.node)}
        self._weights: dict[tuple[int, ir.DataType | None], ir.Value] = {}

    def switch(self, key: OpKey, decision: Decision) -> list[Switch]:
        """Switches of one op; nothing is changed where it has none."""
        seen = self.found(key)
        if seen is None:
            raise NoWayError
        place, before, result = seen
        ways = self.ways(place, before, result, decision)
        return self._operands(place, before, ways) if ways else self._whole(place, before, result)

    def ways(
        self, place: walk.Place, before: ir.Node, result: ir.Value, decision: Decision
    ) -> dict[int, list[ir.Node]]:
        """For each quantized operand the nodes from what it was to what the op reads (none for a constant); empty
        where the op has another form by now."""
        node = place.node
        alike = (
            node.op_type == before.op_type
            and node.outputs[0] is result
            and len(node.inputs) == len(before.inputs)
            and not any(item.kind in _FORMS for item in decision.adjust)
        )
        ways = {slot: self._way(place, node, before, slot) for slot in decision.inputs} if alike else {}
        return {slot: way for slot, way in ways.items() if way is not None} if None not in ways.values() else {}

    def found(self, key: OpKey) -> tuple[walk.Place, ir.Node, ir.Value] | None:
        """The op as it is and as it was, and its result; None where one of them is not there."""
        place, before = self._after.get(key), self._before.get(key)
        result = self._value(before.outputs[0].name, place) if before is not None and place is not None else None
        if place is None or before is None or result is None or not isinstance(place.graph, ir.Graph):
            return None
        return place, before, _rescaled(result, key)

    def _way(self, place: walk.Place, node: ir.Node, before: ir.Node, slot: int) -> list[ir.Node] | None:
        """The nodes from an operand as it was to what the op reads; None where it is another tensor by then."""
        was, now = before.inputs[slot], node.inputs[slot]
        if was is None or now is None:
            return None
        if tensors.is_constant(was):
            return [] if tensors.dims(was) == tensors.dims(now) else None
        source = self._value(was.name, place)
        nodes, ends = self._behind(place, now)
        same_rank = now.shape is None or was.shape is None or len(now.shape) == len(was.shape)
        return nodes if source is not None and ends == {source} and same_rank else None

    def _operands(self, place: walk.Place, before: ir.Node, ways: dict[int, list[ir.Node]]) -> list[Switch]:
        """Each operand on its own."""
        node, made = place.node, []
        held = [slot for slot in ways if tensors.is_constant(before.inputs[slot])]
        for slot, nodes in ways.items():
            if slot in held:
                continue
            now, was = node.inputs[slot], self._value(_name(before.inputs[slot]), place)
            assert now is not None and was is not None
            switch = self._input(place.key, slot, weight=False)
            then = self._branch(nodes, now)
            other = self._branch([], was, now.dtype)
            chosen = self._if(switch, then, other, now, place)
            edit.replace_input(node, slot, chosen)
            made.append(Switch(place.key, slot, switch.name or ""))
        for slot in held[:1]:
            switch = self._input(place.key, slot, weight=True)
            inputs = [
                value if index in ways and index not in held else self.as_was(before.inputs[index], value, place)
                for index, value in enumerate(node.inputs)
            ]
            result = node.outputs[0]
            then = self._branch([node], result)
            other = self._alone(before, inputs, result)
            self._take_over(switch, then, other, result, place)
            made.append(Switch(place.key, slot, switch.name or "", weight=True))
        return made

    def _whole(self, place: walk.Place, before: ir.Node, result: ir.Value) -> list[Switch]:
        """The op with all that the plan made of it."""
        nodes, _ = self._behind(place, result)
        if place.node not in nodes:
            raise NoWayError
        off: list[ir.Node] = []
        into: dict[ir.Value, ir.Value] = {}
        self._rebuild(before, place, result.dtype, off, into)
        made = into[before.outputs[0]]
        made.type, made.shape = result.type, result.shape
        switch = self._input(place.key, None, weight=False)
        other = ir.Graph([], [made], nodes=off, name=self.names.fresh("off"))
        self._take_over(switch, self._branch(nodes, result), other, result, place)
        return [Switch(place.key, None, switch.name or "")]

    def _rebuild(
        self,
        before: ir.Node,
        place: walk.Place,
        kind: ir.DataType | None,
        made: list[ir.Node],
        into: dict[ir.Value, ir.Value],
    ) -> None:
        """Adds copies of an original node to `made`, behind those of nodes above it that are gone by now."""
        inputs: list[ir.Value | None] = []
        for was in before.inputs:
            gone = was is not None and not tensors.is_constant(was) and self._value(was.name, place) is None
            maker = was.producer() if gone and was is not None else None
            if was is not None and maker is not None and was not in into:
                if len(made) >= _LONGEST or any(True for _ in walk.bodies(maker)):
                    raise NoWayError
                self._rebuild(maker, place, kind, made, into)
            inputs.append(into[was] if was is not None and was in into else self.as_was(was, None, place, kind))
        made.append(self.copied(before, inputs, into))

    def as_was(
        self, was: ir.Value | None, now: ir.Value | None, place: walk.Place, kind: ir.DataType | None = None
    ) -> ir.Value | None:
        """An input of the original op, in the type that the op has now."""
        if was is None:
            return None
        kind = now.dtype if now is not None and now.dtype is not None else kind
        floating = was.dtype in tensors.FLOATS
        if tensors.is_constant(was):
            return self._constant(was, kind if floating else None, place)
        found = self._value(was.name, place)
        if found is None:
            raise NoWayError
        if not floating or kind is None or found.dtype in (None, kind):
            return found
        node = edit.new_node(
            "Cast", [found], self.names, output=f"{found.name}_as", dtype=kind, attributes={"to": int(kind)}
        )
        place.graph.insert_before(place.node, [node])
        return node.outputs[0]

    def _constant(self, was: ir.Value, kind: ir.DataType | None, place: walk.Place) -> ir.Value:
        """A constant of the original, once for each type, in the main graph."""
        seat = (id(was), kind)
        if seat not in self._weights:
            name = self.names.fresh(f"{was.name}_was")
            if kind is None or kind == was.dtype:
                # not the same tensor under another name: writing the model would rename the caller's
                made = tensors.lazy_from(was, name, lambda array: array)
            else:
                numpy = np.dtype(tensors.NUMPY[tensors.FLOATS[kind]])
                made = tensors.lazy_from(was, name, lambda array: array.astype(numpy), dtype=kind)
            edit.register(self.model.graph, made)
            self._weights[seat] = made
        return self._weights[seat]

    def _behind(self, place: walk.Place, value: ir.Value) -> tuple[list[ir.Node], set[ir.Value]]:
        """The nodes of this graph that a value is computed by from what the original has, too, in their order, and the
        latter; constants, and what is made of them alone, stay where they are."""
        found: dict[ir.Node, bool] = {}
        ends: set[ir.Value] = set()

        def moving(each: ir.Value, first: bool) -> bool:
            """Whether it depends on data; its nodes are noted."""
            node = each.producer()
            if tensors.is_constant(each):
                return False
            if (
                node is None
                or node.graph is not place.graph
                or (not first and node is not place.node and self._is_original(each, place))
            ):
                ends.add(each)
                return True
            if node not in found:
                if len(found) >= _LONGEST or any(True for _ in walk.bodies(node)):
                    raise NoWayError
                found[node] = False
                moves = [moving(item, False) for item in node.inputs if item is not None]
                found[node] = any(moves)
            return found[node]

        moving(value, True)
        wanted = {node for node, moves in found.items() if moves}
        return [node for node in place.graph if node in wanted] if wanted else [], ends

    def _is_original(self, value: ir.Value, place: walk.Place) -> bool:
        was = self._original.get(place.scope, {}).get(value.name or "")
        return was is not None and value.dtype in (*tensors.FLOATS, was.dtype)

    def _value(self, name: str | None, place: walk.Place) -> ir.Value | None:
        """A value by its name where the op lies, or around it; None where it holds codes by now."""
        around: walk.Place | None = place
        while name and around is not None:
            found = self._here.get(around.scope, {}).get(name)
            if found is not None:
                return None if _is_code(found) else found
            around = self._owners.get(id(around.graph))
        return None

    def _input(self, key: OpKey, slot: int | None, *, weight: bool) -> ir.Value:
        label = "whole" if slot is None else "weight" if weight else str(slot)
        value = ir.Value(name=self.names.fresh(f"fp8graph_on/{key}/{label}"), shape=ir.Shape([]))
        value.type = ir.TensorType(_BOOL)
        self.model.graph.inputs.append(value)
        return value

    def _branch(self, nodes: Sequence[ir.Node], result: ir.Value, kind: ir.DataType | None = None) -> ir.Graph:
        """Copies of nodes that compute `result`; with none, what is `result` already, in the type `kind`."""
        if not nodes:
            same = kind is None or result.dtype in (None, kind)
            attributes = {} if same or kind is None else {"to": int(kind)}
            node = edit.new_node(
                "Identity" if same else "Cast",
                [result],
                self.names,
                output=f"{result.name}_off",
                shape=result.shape,
                dtype=result.dtype if same else kind,
                attributes=attributes,
            )
            return ir.Graph([], node.outputs, nodes=[node], name=self.names.fresh("off"))
        into: dict[ir.Value, ir.Value] = {}
        copies = [
            self.copied(node, [into.get(v, v) if v is not None else None for v in node.inputs], into) for node in nodes
        ]
        return ir.Graph([], [into[result]], nodes=copies, name=self.names.fresh("on"))

    def _alone(self, before: ir.Node, inputs: Sequence[ir.Value | None], result: ir.Value) -> ir.Graph:
        """The original op on these inputs."""
        into: dict[ir.Value, ir.Value] = {}
        copy = self.copied(before, inputs, into)
        made = copy.outputs[0]
        made.type, made.shape = result.type, result.shape
        return ir.Graph([], [made], nodes=[copy], name=self.names.fresh("off"))

    def copied(self, node: ir.Node, inputs: Iterable[ir.Value | None], into: dict[ir.Value, ir.Value]) -> ir.Node:
        """A copy of a node that reads `inputs`; `into` hears what its outputs became."""
        outputs = []
        for value in node.outputs:
            into[value] = ir.Value(name=self.names.fresh(f"{value.name}_on"), shape=value.shape, type=value.type)
            outputs.append(into[value])
        return ir.Node(
            node.domain,
            node.op_type,
            list(inputs),
            list(node.attributes.values()),
            overload=node.overload,
            outputs=outputs,
            name=self.names.fresh(f"{node.name}_on"),
        )

    def _if(self, switch: ir.Value, then: ir.Graph, other: ir.Graph, like: ir.Value, place: walk.Place) -> ir.Value:
        node = edit.new_node(
            "If",
            [switch],
            self.names,
            output=f"{like.name}_switched",
            shape=like.shape,
            dtype=like.dtype,
            attributes={
                "then_branch": ir.AttrGraph("then_branch", then),
                "else_branch": ir.AttrGraph("else_branch", other),
            },
        )
        place.graph.insert_before(place.node, [node])
        return node.outputs[0]

    def _take_over(
        self, switch: ir.Value, then: ir.Graph, other: ir.Graph, result: ir.Value, place: walk.Place
    ) -> None:
        """The switched result in the place of `result`, under its name."""
        maker = result.producer()
        assert maker is not None
        anchor = walk.Place(maker, place.scope, place.graph)
        chosen = self._if(switch, then, other, result, anchor)
        result.replace_all_uses_with(chosen, replace_graph_outputs=True)
        name, result.name = result.name, self.names.fresh(f"{result.name}_replaced")
        chosen.name = name
        self._here[place.scope][name or ""] = chosen


def _rescaled(result: ir.Value, key: OpKey) -> ir.Value:
    """Behind the products with the scales that operands were divided by, which were inserted for the op."""
    while not result.is_graph_output():
        users = [user for user, _ in result.uses()]
        if len(users) != 1 or users[0].op_type != "Mul" or users[0].metadata_props.get(walk.FOR) != key:
            break
        result = users[0].outputs[0]
    return result


def _is_code(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype not in tensors.FLOATS and value.dtype.itemsize <= 1


def _name(value: ir.Value | None) -> str | None:
    return value.name if value is not None else None
