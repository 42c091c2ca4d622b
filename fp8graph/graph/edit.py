"""Editing that keeps names: everything a pass needs to insert, replace and remove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from fp8graph.graph import walk

AttributeValue = int | float | str | Sequence[int] | Sequence[float] | ir.Attr


class Names:
    """Fresh names for values and nodes, unique over the whole model; made once a pass, so that passes stay linear."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        for _, graph in walk.graphs(model):
            self._taken.update(value.name or "" for value in walk.values(graph))
            self._taken.update(node.name or "" for node in graph)

    def fresh(self, base: str) -> str:
        """`base`, or `base_1`, `base_2` ... where it is taken."""
        index = self._next.get(base, 0)
        name = f"{base}_{index}" if index else base
        while name in self._taken:
            index += 1
            name = f"{base}_{index}"
        self._taken.add(name)
        self._next[base] = index
        return name


def new_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    names: Names,
    *,
    output: str,
    shape: ir.Shape | None = None,
    dtype: ir.DataType | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    serves: str = "",
) -> ir.Node:
    """A node with one output, named after it; `serves` is the key of the op that it was inserted for."""
    name = names.fresh(output)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype) if dtype is not None else None)
    node = ir.node(
        op_type, list(inputs), attributes=dict(attributes or {}), outputs=[value], name=names.fresh(f"{name}_node")
    )
    if serves:
        node.metadata_props[walk.FOR] = serves
    return node


def register(graph: ir.Graph | ir.Function, value: ir.Value) -> ir.Value:
    """Makes a constant value an initializer of the graph; a function has none, so its owner must be a graph."""
    if isinstance(graph, ir.Function):
        raise ValueError("a function holds no initializers")
    graph.register_initializer(value)
    return value


def insert_after(value: ir.Value, nodes: Sequence[ir.Node], graph: ir.Graph | ir.Function) -> None:
    """Puts nodes right behind the value's producer, or at the begin of `graph` where that lies elsewhere."""
    producer = value.producer()
    if producer is not None and producer.graph is _nodes_of(graph):
        graph.insert_after(producer, nodes)
        return
    first = next(iter(graph), None)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)


def _nodes_of(graph: ir.Graph | ir.Function) -> ir.Graph:
    return graph.graph if isinstance(graph, ir.Function) else graph


def replace_input(node: ir.Node, slot: int, value: ir.Value) -> None:
    """Wires another value into one input slot."""
    node.replace_input_with(slot, value)


def take_over(old: ir.Value, new: ir.Value, *, rename: bool = False) -> None:
    """Lets `new` stand for `old` everywhere: under the old name where that is a graph output, or with `rename`."""
    if rename or old.is_graph_output():
        name = old.name
        old.name = f"{name}_replaced"
        new.name = name
        new.shape = new.shape or old.shape
        new.type = new.type or old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def remove(nodes: Iterable[ir.Node]) -> None:
    """Removes nodes that nothing uses any more."""
    for node in nodes:
        if node.graph is not None:
            node.graph.remove(node, safe=True)


def remove_unread(node: ir.Node) -> None:
    """Removes a node that nobody reads, and upwards whatever nobody reads any more, initializers included."""
    waiting = [node]
    while waiting:
        dead = waiting.pop()
        if dead.graph is None or any(output.uses() or output.is_graph_output() for output in dead.outputs):
            continue
        above = [value for value in dead.inputs if value is not None]
        remove([dead])
        drop_unused_initializers(above)
        waiting.extend(one for value in above if (one := value.producer()) is not None)


def drop_unused_initializers(candidates: Iterable[ir.Value]) -> None:
    """Removes those candidates that no node reads and no graph returns; whatever else was unused stays."""
    for value in candidates:
        drop_unused_initializer(value)


def drop_unused_initializer(value: ir.Value) -> None:
    """Removes one initializer where nothing uses it any more."""
    graph = value.graph
    if not isinstance(graph, ir.Graph) or value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    if graph.initializers.get(value.name or "") is value:
        del graph.initializers[value.name or ""]
