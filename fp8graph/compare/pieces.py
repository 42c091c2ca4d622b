"""Two models side by side: which of their ops are one layer, and one of the models cut into its layers.

A layer is an op that both have under one key. The second model is cut at the tensors that layers hand on: what lies
between two cuts is one layer with the Q/DQ in front of it, and whatever else only that model has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from fp8graph.graph import edit, keys, tensors, walk
from fp8graph.graph.inlining import inline
from fp8graph.graph.protos import infer_types
from fp8graph.runners.onnxruntime import fill_types

_PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# Weights of these take over a BatchNormalization behind them.
_FOLDING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Layer:
    """One op of both models.

    values   names of its float outputs in A and in B
    """

    key: str
    op_type: str
    name: str
    values: tuple[tuple[str, str], ...]


def prepared(model: ir.Model, libraries: Sequence[str] = ()) -> ir.Model:
    """The model, changed in place as normalization would: its functions inlined, everything named, types inferred."""
    TopologicalSortPass()(model)
    inline(model, lambda function: True)
    keys.name_everything(model)
    infer_types(model)
    if fill_types(model, libraries):
        infer_types(model)
    return model


def layers_of(a: ir.Model, b: ir.Model) -> tuple[list[Layer], dict[str, str]]:
    """The layers in the order of B, and those ops of both that are left out, by key: why.

    Ops go together by key; where A has none of that key, by a node name that is there once, with one op type.
    """
    theirs = {_key(place): place for place in walk.walk(a) if _key(place)}
    inner = {place.key for place in walk.walk(b) if place.scope}
    mine = {_key(place): place for place in walk.walk(b) if not place.scope and _key(place)}
    named = _named(place for key, place in theirs.items() if key not in mine)
    layers: list[Layer] = []
    left = {key: "it lies in a body, whose tensors cannot be had" for key in theirs if key in inner}
    for key, place in mine.items():
        other = theirs.get(key) or named.get((place.node.op_type, place.node.name or ""))
        if other is None or other.scope:
            continue
        pairs, why = _values(_last(other.node, {*mine, *inner}), place.node)
        if pairs:
            shown = other.node if place.node.op_type in _PAIRS else place.node  # a pair that took a name over
            layers.append(Layer(key, shown.op_type, shown.name or "", pairs))
        elif why:
            left[key] = why
    return layers, left


def _key(place: walk.Place) -> str:
    """The key; of what was a function's node, whose key all of its calls share, the name of the output."""
    key = place.key
    return key if not key.startswith("fn:") else place.scope + walk.first_output(place.node)


def _named(places: Iterable[walk.Place]) -> dict[tuple[str, str], walk.Place]:
    return {(place.node.op_type, place.node.name): place for place in places if place.node.name}


def _last(node: ir.Node, known: Set[str]) -> ir.Node:
    """The op of A whose output a product of B gives: a BatchNormalization behind it that only A has."""
    output = node.outputs[0]
    if node.op_type not in _FOLDING or output.is_graph_output() or len(output.uses()) != 1:
        return node
    reader = next(iter(output.uses())).node
    return reader if reader.op_type == "BatchNormalization" and walk.first_output(reader) not in known else node


def _values(a: ir.Node, b: ir.Node) -> tuple[tuple[tuple[str, str], ...], str]:
    """The float outputs of both, and why there are none, where that is worth telling."""
    pairs, why = [], ""
    for one, other in zip(a.outputs, b.outputs, strict=False):
        if not one.name or not other.name or any(_no_tensor(value) for value in (one, other)):
            continue
        if None in (one.dtype, other.dtype):
            why = "the type of its output is not known"
        elif one.dtype in tensors.FLOATS and other.dtype in tensors.FLOATS:
            pairs.append((one.name, other.name))
    return tuple(pairs), why


def _no_tensor(value: ir.Value) -> bool:
    """Whether it is a sequence or an optional, which tell the type of their elements as their own."""
    return value.type is not None and not isinstance(value.type, ir.TensorType)


def exposed(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy whose outputs are these tensors of the main graph, and nothing else."""
    work = model.clone()
    inner = _inner(work)
    work.graph.outputs.clear()
    work.graph.outputs.extend(inner[name] for name in names)
    _prune(work)
    return work


def shaped(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """A copy whose outputs tell the shape of each tensor; output names by tensor."""
    work = model.clone()
    inner, fresh = _inner(work), edit.Names(work)
    work.graph.outputs.clear()
    found = {}
    for name in names:
        node = edit.new_node(
            "Shape", [inner[name]], fresh, output="fp8graph_shape", dtype=ir.DataType.INT64, serves="?"
        )
        work.graph.append(node)
        work.graph.outputs.append(node.outputs[0])
        found[name] = node.outputs[0].name or ""
    _prune(work)
    return work, found


@dataclass(frozen=True)
class Pieces:
    """Layers of B, each alone.

    model    its outputs are those of the layers, under their names in B
    inputs   names of inputs that take a tensor of A: which, and the type it is to have
    feeds    inputs of B itself
    """

    model: ir.Model
    inputs: Mapping[str, tuple[str, ir.DataType]]
    feeds: frozenset[str]


def pieces(b: ir.Model, layers: Sequence[Layer], every: Sequence[Layer]) -> Pieces:
    """`layers` of B, cut at the outputs of `every` layer: what comes from there is fed."""
    work = b.clone()
    inner, fresh = _inner(work), edit.Names(work)
    own = frozenset(value.name or "" for value in work.graph.inputs)
    work.graph.outputs.clear()
    cuts: dict[str, tuple[str, ir.DataType]] = {}
    for layer in every:
        for a_name, b_name in layer.values:
            value = inner[b_name]
            cut = ir.Value(name=fresh.fresh(f"{b_name}_given"), type=value.type, shape=value.shape)
            ir.convenience.replace_all_uses_with(value, cut)
            if cut.name and value.dtype is not None and cut.uses():
                work.graph.inputs.append(cut)
                cuts[cut.name] = (a_name, value.dtype)
    work.graph.outputs.extend(inner[name] for layer in layers for _, name in layer.values)
    _prune(work)
    for value in [value for value in work.graph.inputs if not value.uses()]:
        work.graph.inputs.remove(value)
    left = {value.name for value in work.graph.inputs}
    inputs = {name: given for name, given in cuts.items() if name in left}
    return Pieces(work, inputs, own & {name or "" for name in left})


def _inner(model: ir.Model) -> dict[str, ir.Value]:
    return {value.name: value for node in model.graph for value in node.outputs if value.name}


def _prune(model: ir.Model) -> None:
    RemoveUnusedNodesPass()(model)
