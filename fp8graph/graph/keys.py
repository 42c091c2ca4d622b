"""Op keys: given after normalization, the plan's rows, the engine's way back to the plan."""

from __future__ import annotations

import hashlib
from typing import Any

import onnx_ir as ir

from fp8graph.base.canon import digest
from fp8graph.graph import walk

# Integer constants up to this size are structure (shapes, axes, indices), larger ones are weights.
_STRUCTURE_BYTES = 1024


def name_everything(model: ir.Model) -> None:
    """Names every unnamed output and makes empty or repeated node names unique; all other names stay.

    Engines speak of node names: two nodes of one name cannot be told apart in them.
    """
    taken = {value.name for _, graph in walk.graphs(model) for value in walk.values(graph) if value.name}
    node_names = {place.node.name for place in walk.walk(model) if place.node.name}
    seen: set[str] = set()
    for place in walk.walk(model):
        node = place.node
        if not any(output.name for output in node.outputs):
            for output in node.outputs:
                if output.uses() or output.is_graph_output() or output is node.outputs[0]:
                    output.name = _fresh(f"{node.op_type}_out", taken)
        if not node.name or node.name in seen:
            base = node.name or f"{node.op_type}_{walk.first_output(node)}"
            node.name = base if not node.name and base not in node_names else _fresh(base, node_names)
            node_names.add(node.name)
        seen.add(node.name)


def adopt(model: ir.Model) -> None:
    """Makes ops of their own of what an earlier optimization inserted for others: here they came with the model."""
    for place in walk.walk(model):
        place.node.metadata_props.pop(walk.FOR, None)


def write_keys(model: ir.Model) -> None:
    """Stores a key in every node, the one that it has where that is no other's already.

    Two nodes can ask for one key where names look like scopes, or metadata was copied. A function's node names are
    shared by its calls.
    """
    taken: set[str] = set()
    for place in walk.walk(model):
        if walk.FOR not in place.node.metadata_props:
            place.node.metadata_props[walk.KEY] = _fresh(place.key, taken)


def structure_digest(model: ir.Model) -> str:
    """Digest of ops, wiring, shapes and attributes, weights left out: equal for a fine-tuned model."""
    return digest([[scope, _graph_structure(graph)] for scope, graph in walk.graphs(model)])


def _graph_structure(graph: ir.Graph | ir.Function) -> list[Any]:
    initializers = [] if isinstance(graph, ir.Function) else list(graph.initializers.values())
    return [
        [[value.name, _type(value)] for value in graph.inputs],
        [
            [value.name, _type(value), _small(value.const_value)]
            for value in sorted(initializers, key=lambda v: v.name or "")
        ],
        [
            [
                node.domain,
                node.op_type,
                node.overload,
                [value.name if value is not None else "" for value in node.inputs],
                [value.name for value in node.outputs],
                sorted([name, _attribute(attribute)] for name, attribute in node.attributes.items()),
            ]
            for node in graph
        ],
        [value.name for value in graph.outputs],
    ]


def _type(value: ir.Value) -> list[Any]:
    shape = None if value.shape is None else [str(d) for d in value.shape]
    return [str(value.type), shape]


def _small(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or tensor.nbytes > _STRUCTURE_BYTES:
        return ""
    return hashlib.sha256(tensor.tobytes()).hexdigest()


def _attribute(attribute: ir.Attr) -> Any:
    if attribute.is_ref():
        return ["ref", attribute.ref_attr_name]
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "body"
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return [str(tensor.dtype), [str(d) for d in tensor.shape], _small(tensor)]
    return str(attribute.value)


def _fresh(base: str, taken: set[Any]) -> str:
    name, index = base, 0
    while name in taken:
        index += 1
        name = f"{base}_{index}"
    taken.add(name)
    return name
