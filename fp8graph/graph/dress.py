"""What a graph says beside its arithmetic, carried over to a copy that lost it: by scope and name."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from fp8graph.graph import walk

_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS


def dress(model: ir.Model, before: Mapping[str, ir.Graph | ir.Function]) -> None:
    """Gives graphs, nodes, values and attributes the doc strings, metadata, annotations and denotations that they had.

    `before` are the old graphs by scope. Attributes and initialisers whose contents are the same become the old ones.
    """
    for scope, graph in walk.graphs(model):
        old = before.get(scope)
        if old is None or old is graph:
            continue
        graph.doc_string = old.doc_string
        graph.metadata_props.update(old.metadata_props)
        values = {value.name: value for value in walk.values(old)}
        for value in walk.values(graph):
            if value.name in values:
                _dress_value(value, values[value.name])
        nodes = {walk.first_output(node): node for node in old}
        for node in graph:
            twin = nodes.get(walk.first_output(node))
            if twin is not None and twin.op_identifier() == node.op_identifier():
                _dress_node(node, twin)


def _dress_value(value: ir.Value, old: ir.Value) -> None:
    value.doc_string = old.doc_string
    value.metadata_props.update(old.metadata_props)
    value.meta.update(old.meta)
    if old.type is not None and (value.type is None or value.dtype == old.dtype):
        value.type = old.type
    if old.shape is not None and (value.shape is None or list(value.shape) == list(old.shape)):
        value.shape = old.shape
    new, tensor = value.const_value, old.const_value
    if new is None or tensor is None or new is tensor:
        return
    if isinstance(new, ir.ExternalTensor) and isinstance(tensor, ir.ExternalTensor):
        value.const_value = tensor  # the copy does not know the folder
        return
    same = (new.dtype, list(new.shape)) == (tensor.dtype, list(tensor.shape))
    if same and _contents(new) == _contents(tensor):
        value.const_value = tensor


def _contents(tensor: ir.TensorProtocol) -> bytes | list[bytes]:
    return list(tensor.string_data()) if isinstance(tensor, ir.StringTensor) else tensor.tobytes()


def _dress_node(node: ir.Node, old: ir.Node) -> None:
    node.doc_string = old.doc_string
    node.metadata_props.update(old.metadata_props)
    node.device_configurations = old.device_configurations
    for name, attribute in list(node.attributes.items()):
        twin = old.attributes.get(name)
        if twin is None or twin.type != attribute.type:
            continue
        if attribute.type == _GRAPH and not attribute.is_ref():
            node.attributes[name] = ir.AttrGraph(name, attribute.as_graph(), doc_string=twin.doc_string)
        elif attribute.type == _GRAPHS and not attribute.is_ref():
            node.attributes[name] = ir.AttrGraphs(name, list(attribute.as_graphs()), doc_string=twin.doc_string)
        elif _bare(attribute) == _bare(twin):
            node.attributes[name] = twin


def _bare(attribute: ir.Attr) -> bytes:
    """The attribute without what it says beside its contents."""
    proto: onnx.AttributeProto = ir.to_proto(attribute)
    proto.ClearField("doc_string")
    for tensor in [proto.t] if proto.HasField("t") else proto.tensors:
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    return bytes(proto.SerializeToString(deterministic=True))
