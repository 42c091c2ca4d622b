"""Walking a proto as `walk` does a model: the same scopes, so that what is found in one is found in the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

# A graph or a function: both hold nodes and value infos.
Body = Any


def graphs(proto: onnx.ModelProto) -> Iterator[tuple[str, str, Body]]:
    """Every graph and function with its scope, as `walk.graphs` tells it, and the function that it lies in."""

    def inner(graph: Body, scope: str, family: str) -> Iterator[tuple[str, str, Body]]:
        yield scope, family, graph
        for node in graph.node:
            for attribute in node.attribute:
                bodies = [(attribute.name, attribute.g)] if attribute.HasField("g") else []
                bodies += [(f"{attribute.name}{index}", body) for index, body in enumerate(attribute.graphs)]
                for name, body in bodies:
                    yield from inner(body, f"{scope}{first(node)}.{name}/", family)

    yield from inner(proto.graph, "", "")
    for function in proto.functions:
        scope = f"fn:{function.domain}::{function.name}" + (f":{function.overload}" if function.overload else "") + "/"
        yield from inner(function, scope, scope)


def first(node: onnx.NodeProto) -> str:
    """Name of the first named output; empty where there is none."""
    return next((name for name in node.output if name), "")


def typed(graph: Body) -> Iterator[onnx.ValueInfoProto]:
    """Everything in one graph that says a type."""
    yield from graph.value_info
    if isinstance(graph, onnx.GraphProto):
        yield from graph.input
        yield from graph.output


def foreign_values(graph: Body) -> Iterator[onnx.ValueInfoProto]:
    """Values of a type that onnx_ir does not know: maps, which classifiers return."""
    return (value for value in typed(graph) if _foreign(value.type))


def forget_foreign_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The proto, changed in place, without the types that onnx_ir cannot read: onnx's inference fills them in."""
    for _, _, graph in graphs(proto):
        for value in list(foreign_values(graph)):
            value.ClearField("type")
    return proto


def _foreign(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return _foreign(getattr(kind, which).elem_type)
    return which is not None and which not in ("tensor_type", "sparse_tensor_type")
