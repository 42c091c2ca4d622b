"""What onnx_ir does not hold: taken out of a proto when it is loaded, put back into the one that is written.

Measured with onnx_ir 1.1; docs/fidelity.md lists what stays different all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import onnx
import onnx_ir as ir

from fp8graph.graph import walk
from fp8graph.graph.protowalk import Body, first, foreign_values, graphs, typed
from fp8graph.graph.sparse import densify_constants, has_sparse, make_dense, put_back_sparse

_M = TypeVar("_M")


@dataclass(frozen=True)
class Scoped:
    """What one graph or function had, by name and in its order.

    None stands for what onnx_ir holds itself: then only its place in the order is put back.
    """

    values: Mapping[str, onnx.ValueInfoProto | None] = field(default_factory=dict)
    annotations: Mapping[str, onnx.TensorAnnotation | None] = field(default_factory=dict)
    types: Mapping[str, onnx.TypeProto] = field(default_factory=dict)
    sparse: Mapping[str, onnx.SparseTensorProto] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """Everything that goes back.

    trailing   empty outputs at a node's end, by scope and first output
    outputs    types of graph outputs that say less than was inferred later: the interface stays as it was said
    """

    scopes: Mapping[str, Scoped] = field(default_factory=dict)
    trailing: Mapping[str, int] = field(default_factory=dict)
    training: tuple[onnx.TrainingInfoProto, ...] = ()
    outputs: Mapping[str, onnx.TypeProto | None] = field(default_factory=dict)


def take_out(proto: onnx.ModelProto, where: str, *, own: bool) -> tuple[onnx.ModelProto, Lost]:
    """The proto as onnx_ir can read it, and what it would lose. One that is not our `own` is copied before a change.

    Raises InputError FG106 for a sparse tensor whose indices do not fit, or that would be huge as a dense one.
    """
    if not own and any(has_sparse(graph) or any(foreign_values(graph)) for _, _, graph in graphs(proto)):
        proto = _copy(proto)
    vague = {
        item.name: _copy(item.type) if item.HasField("type") else None
        for item in proto.graph.output
        if not item.type.tensor_type.HasField("shape")
    }
    scopes, trailing = {}, {}
    for scope, _, graph in graphs(proto):
        densify_constants(graph, where)
        for tensor in _tensors(graph):
            _keep_empty_inside(tensor)
        for node in graph.node:
            if empty := _empty_end(node.output):
                trailing[scope + first(node)] = empty
        scopes[scope] = _scoped(graph, where)
    return proto, Lost(scopes, trailing, tuple(_copy(item) for item in proto.training_info), vague)


def _scoped(graph: Body, where: str) -> Scoped:
    held = _written(graph)
    types = {value.name: _copy(value.type) for value in foreign_values(graph)}
    gone = types.keys() | ({value.name for value in graph.value_info} - (held - _interface(graph)))
    values = {item.name: _copy(item) if item.name in gone else None for item in graph.value_info}
    for value in list(foreign_values(graph)):
        value.ClearField("type")
    if isinstance(graph, onnx.FunctionProto):
        return Scoped(values, types=types)
    held |= {value.name for value in graph.input}
    notes = graph.quantization_annotation
    annotations = {item.tensor_name: None if item.tensor_name in held else _copy(item) for item in notes}
    return Scoped(values, annotations, types, make_dense(graph, where))


def of_model(model: ir.Model) -> Lost:
    """What writing loses of a model that came as onnx_ir's own: empty outputs at a node's end."""
    ends = {
        place.scope + walk.first_output(place.node): _empty_end([output.name or "" for output in place.node.outputs])
        for place in walk.walk(model)
    }
    return Lost(trailing={key: count for key, count in ends.items() if count})


def put_back(proto: onnx.ModelProto, lost: Lost) -> None:
    """Puts back what was lost wherever its graph is still there and nothing else took its name.

    Metadata of tensors, which onnx_ir doubles, is kept once; value infos that only repeat an initialiser, which it
    adds, go.
    """
    everywhere = list(graphs(proto))
    used: dict[str, set[str]] = {}
    for _, family, graph in everywhere:
        used.setdefault(family, set()).update(_written(graph), () if family else (item.name for item in graph.input))
    for scope, family, graph in everywhere:
        kept = lost.scopes.get(scope, Scoped())
        for tensor in _tensors(graph):
            _once(tensor)
        for node in graph.node:
            missing = lost.trailing.get(scope + first(node), 0) - _empty_end(node.output)
            node.output.extend([""] * missing)
        surplus: set[str] = set()
        if isinstance(graph, onnx.GraphProto):
            put_back_sparse(graph, kept.sparse)
            bare = {item.name for item in graph.value_info if not item.doc_string and not item.metadata_props}
            surplus = bare & (_initializers(graph) | set(kept.sparse)) - kept.values.keys()
            _order(graph.quantization_annotation, kept.annotations, used[family])
        taken = used[family] - kept.types.keys() - _interface(graph)
        _order(graph.value_info, kept.values, taken, surplus)
        for value in typed(graph):
            if value.name in kept.types and not value.HasField("type"):
                value.type.CopyFrom(kept.types[value.name])
    for output in proto.graph.output:
        if output.name in lost.outputs:
            output.ClearField("type")
            if (said := lost.outputs[output.name]) is not None:
                output.type.CopyFrom(said)
    if not proto.training_info:
        proto.training_info.extend(lost.training)


def _order(
    items: Any, kept: Mapping[str, Any], used: set[str], surplus: set[str] | frozenset[str] = frozenset()
) -> None:
    """Puts a repeated field in the order of `kept`, new items last, with those that went missing."""
    here: dict[str, Any] = {}
    for item in items:
        name = item.tensor_name if isinstance(item, onnx.TensorAnnotation) else item.name
        if name not in surplus:
            here.setdefault(name, _copy(item))
    back = {name: item for name, item in kept.items() if name not in used}
    wanted = [here.get(name) or back.get(name) for name in kept]
    wanted += [item for name, item in here.items() if name not in kept]
    del items[:]
    items.extend(item for item in wanted if item is not None)


def _empty_end(names: Sequence[str]) -> int:
    return len(names) - max((place + 1 for place, name in enumerate(names) if name), default=len(names))


def _initializers(graph: Body) -> set[str]:
    return {tensor.name for tensor in graph.initializer} if isinstance(graph, onnx.GraphProto) else set()


def _interface(graph: Body) -> set[str]:
    """Names of inputs and outputs, of which onnx_ir keeps no second description."""
    return {value.name for value in (*graph.input, *graph.output)} if isinstance(graph, onnx.GraphProto) else set()


def _written(graph: Body) -> set[str]:
    """Names that nodes and initialisers of a graph write."""
    return _initializers(graph) | {name for node in graph.node for name in node.output}


def _tensors(graph: Body) -> Iterator[onnx.TensorProto]:
    """Tensors of one graph, those of its bodies left out."""
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _keep_empty_inside(tensor: onnx.TensorProto) -> None:
    """A tensor without elements has no data elsewhere: onnx_ir reads such a file once, ONNX Runtime not at all."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL and 0 in tensor.dims:
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        tensor.raw_data = b""


def _once(tensor: onnx.TensorProto) -> None:
    seen = {item.key: item.value for item in tensor.metadata_props}
    if len(seen) != len(tensor.metadata_props):
        del tensor.metadata_props[:]
        tensor.metadata_props.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in seen.items())


def _copy(message: _M) -> _M:
    """A copy that stands alone: a part of a proto keeps the whole of it in memory."""
    made = type(message)()
    made.CopyFrom(message)  # type: ignore[attr-defined]
    return made
