"""Walking a model from the top: main graph, bodies of If, Loop and Scan, functions."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import onnx_ir as ir

KEY = "fp8graph.key"
FOR = "fp8graph.for"
# The key of a further op that the node stands for.
ALSO = "fp8graph.also"
# Why an op stays in high precision where nobody says otherwise: what the model came from says so.
HIGH = "fp8graph.high"


@dataclass(frozen=True)
class Place:
    """A node and where it lies. `scope` ends in `/` inside a body or function, and is empty in the main graph."""

    node: ir.Node
    scope: str
    graph: ir.Graph | ir.Function

    @property
    def key(self) -> str:
        """The op key: scope and first named output. Stable under rewriting that keeps output names.

        A node that was inserted for another is no op of its own: it has no key.
        """
        if FOR in self.node.metadata_props:
            return ""
        return node_key(self.node) or self.scope + first_output(self.node)


def first_output(node: ir.Node) -> str:
    """Name of the first named output; empty where there is none."""
    return next((output.name for output in node.outputs if output.name), "")


def node_key(node: ir.Node) -> str:
    """The key that normalization wrote into the node, or empty."""
    return node.metadata_props.get(KEY, "")


def keys(place: Place) -> list[str]:
    """The op key, and those of further ops that the node stands for."""
    also = place.node.metadata_props.get(ALSO, "")
    return [place.key, also] if also else [place.key]


def bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """Attribute name and graph of each body of a node."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for index, graph in enumerate(attribute.as_graphs()):
                yield f"{attribute.name}{index}", graph


def reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads of the graph that it lies in, its bodies included."""
    values = [value for value in node.inputs if value is not None]
    for _, body in bodies(node):
        inner = [value for one in body.all_nodes() for value in one.inputs if value is not None]
        for value in (*inner, *body.outputs):
            maker = value.producer()
            if (maker is not None and maker.graph is node.graph) or (maker is None and value.graph is node.graph):
                values.append(value)
    return values


def walk(model: ir.Model) -> Iterator[Place]:
    """Every node once, owners before their bodies, functions last."""
    yield from _walk(model.graph, "")
    for identifier, function in model.functions.items():
        domain, name, overload = identifier
        label = f"fn:{domain}::{name}" + (f":{overload}" if overload else "")
        yield from _walk(function, label + "/")


def _walk(graph: ir.Graph | ir.Function, scope: str) -> Iterator[Place]:
    for node in graph:
        place = Place(node, scope, graph)
        yield place
        for name, body in bodies(node):
            yield from _walk(body, f"{scope}{first_output(node)}.{name}/")


def graphs(model: ir.Model) -> Iterator[tuple[str, ir.Graph | ir.Function]]:
    """Every graph with its scope: the main graph, then bodies and functions."""
    yield "", model.graph
    for place in walk(model):
        for name, body in bodies(place.node):
            yield f"{place.scope}{first_output(place.node)}.{name}/", body
    for (domain, name, overload), function in model.functions.items():
        yield f"fn:{domain}::{name}" + (f":{overload}" if overload else "") + "/", function


def origin(value: ir.Value | None, through: Container[str], steps: int = 16) -> ir.Node | None:
    """The node that a value comes from, walked up through ops of the types `through` along their first input."""
    for _ in range(steps):
        node = value.producer() if value is not None else None
        if node is None or node.op_type not in through or not node.inputs:
            return node
        value = node.inputs[0]
    return None


def values(graph: ir.Graph | ir.Function) -> list[ir.Value]:
    """Inputs, initializers and node outputs of one graph, in this order."""
    initializers = [] if isinstance(graph, ir.Function) else list(graph.initializers.values())
    return [*graph.inputs, *initializers, *(output for node in graph for output in node.outputs)]


# Slots that ops read as shapes, lengths, axes or trip counts.
_SHAPE_SLOTS = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Slice": (1, 2, 3, 4), "Range": (0, 1, 2),
    "Loop": (0,), "Resize": (3,), "Pad": (1,), "TopK": (1,), "OneHot": (1,), "Split": (1,), "Unsqueeze": (1,),
}  # fmt: skip
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


def shape_inputs(model: ir.Model) -> set[str]:
    """Graph inputs that are read as shapes, a trip count among them: an engine is built for their values."""
    small = [
        value
        for value in model.graph.inputs
        if value.dtype in _INTEGERS and value.shape is not None and len(value.shape) <= 1
    ]
    return {
        value.name or ""
        for value in small
        if any(slot in _SHAPE_SLOTS.get(user.op_type, ()) for user, slot in value.uses())
    }


def scope_of(value: ir.Value, scopes: dict[int, str]) -> str:
    """The scope of the graph that a value belongs to; `scopes` maps id(graph) to scope."""
    graph = value.graph
    return scopes.get(id(graph), "") if graph is not None else ""


def qualified(value: ir.Value, scopes: dict[int, str]) -> str:
    """The value's name with its scope: unique in the model, where names are unique in each graph."""
    return scope_of(value, scopes) + (value.name or "")


def scope_table(model: ir.Model) -> dict[int, str]:
    """id of each graph to its scope, for `qualified`."""
    table: dict[int, str] = {}
    for scope, graph in graphs(model):
        table[id(graph)] = scope
        if isinstance(graph, ir.Function):
            table[id(graph.graph)] = scope
    return table
