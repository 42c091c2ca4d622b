"""The ends of a model from some node on: where only a late op is changed, nothing before it has to run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fp8graph.graph import walk


@dataclass(frozen=True)
class Tail:
    """The model from a place on. `inputs` are the values before it that it reads, by name, beside the model's own
    inputs; `share` is its part of the model's work, 0 to 1."""

    model: ir.Model
    start: int
    inputs: tuple[str, ...]
    share: float


def tails(model: ir.Model, work: Mapping[str, float], number: int) -> list[Tail]:
    """Up to `number` ends that begin after 1/n, 2/n ... of the work, the longest first; `work` is by the name of the
    value that a node of the main graph computes. The model is not changed."""
    costs = [sum(work.get(value.name or "", 0.0) for value in node.outputs) for node in model.graph]
    total = sum(costs)
    found: list[Tail] = []
    done, wanted = 0.0, 1
    for place, cost in enumerate(costs):
        if total > 0 and wanted <= number and done >= wanted * total / (number + 1):
            tail = _tail(model, place, 1 - done / total)
            found += [tail] if tail is not None else []
            wanted = int(done * (number + 1) / total) + 1
        done += cost
    return found


def starts(model: ir.Model) -> dict[str, int]:
    """The place in the main graph of the node in which an input of the model is read first, by the input's name."""
    places: dict[str, int] = {}
    for place, node in enumerate(model.graph):
        for value in _read(node):
            if value.is_graph_input() and value.name:
                places.setdefault(value.name, place)
    return places


def _read(node: ir.Node) -> list[ir.Value]:
    """What a node reads, in its bodies, too."""
    found = [value for value in node.inputs if value is not None]
    for _, body in walk.bodies(node):
        found.extend(body.outputs)
        for inner in body:
            found += _read(inner)
    return found


def _tail(model: ir.Model, start: int, share: float) -> Tail | None:
    """The model from its `start`-th node on; None where a value in between has no known type, or no output is left."""
    copy = model.clone()
    graph = copy.graph
    nodes = list(graph)
    before = set(nodes[:start])
    live: dict[ir.Value, None] = {}
    for node in nodes[start:]:
        live.update((value, None) for value in _read(node) if value.producer() in before)
    if any(value.dtype is None or not isinstance(value.type, ir.TensorType) for value in live):
        return None
    names = tuple(value.name or "" for value in live)
    kept = [value for value in graph.outputs if value.producer() not in before]
    if not kept or not all(names):
        return None
    graph.outputs.clear()
    graph.outputs.extend(kept)
    for value in live:
        given = ir.Value(name=value.name, shape=value.shape, type=value.type)
        value.replace_all_uses_with(given)
        value.name = f"{value.name}_before"
        graph.inputs.append(given)
    _remove(graph, nodes[:start])
    RemoveUnusedNodesPass()(copy)
    read = {value.name for node in graph for value in _read(node)}
    wanted = [value for value in graph.inputs if value.name in read]
    graph.inputs.clear()
    graph.inputs.extend(wanted)
    return Tail(copy, start, names, share)


def _remove(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    for node in nodes:
        _detach(node)
    for node in nodes:
        graph.remove(node)


def _detach(node: ir.Node) -> None:
    """Lets a node read nothing any more, nor its bodies."""
    for slot in range(len(node.inputs)):
        node.replace_input_with(slot, None)
    for _, body in walk.bodies(node):
        for inner in body:
            _detach(inner)
