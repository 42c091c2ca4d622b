"""Protos without weights, for the parts of onnx that want a proto: shape inference, version conversion, checking."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from fp8graph.graph import walk
from fp8graph.graph.protowalk import forget_foreign_types, graphs, typed

log = logging.getLogger(__name__)
# Constants up to this size travel with the proto: shape inference and the version converter look at them.
_KEPT_BYTES = 4096


def weightless(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.Value]]:
    """The model as a proto whose large initializers of the main graph are graph inputs instead; and these by name.

    Works for models of any size: no weight is read.
    """
    clone = model.clone()
    taken: dict[str, ir.Value] = {}
    inputs = {value.name for value in clone.graph.inputs}
    for name, value in list(clone.graph.initializers.items()):
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes <= _KEPT_BYTES:
            # A proto would name the file alone, and not the folder that it lies in.
            value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.dtype, name=name)
        if value.const_value is not None and value.const_value.nbytes > _KEPT_BYTES:
            taken[name] = model.graph.initializers[name]
            del clone.graph.initializers[name]
            if name not in inputs:
                clone.graph.inputs.append(value)
    return ir.to_proto(clone), taken


def infer_types(model: ir.Model) -> None:
    """Fills in dtypes and shapes that values lack, as far as onnx can infer them; what is there is not overwritten."""
    proto, _ = weightless(model)
    said = {
        scope: {value.name: value for value in typed(graph)}
        for scope, _, graph in graphs(forget_foreign_types(_inferred(proto)))
        if isinstance(graph, onnx.GraphProto)
    }
    for scope, graph in walk.graphs(model):
        if isinstance(graph, ir.Function) or scope not in said:
            continue
        for value in [output for node in graph for output in node.outputs]:
            found = said[scope].get(value.name or "")
            if found is None or (value.type is not None and value.shape is not None):
                continue
            twin = ir.serde.deserialize_value_info_proto(found, None)
            value.type = value.type or twin.type
            value.shape = value.shape or twin.shape


def concrete_shapes(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> dict[str, tuple[int | None, ...]]:
    """Dimensions of every value, keyed by scope and name, when the graph inputs have these shapes.

    A dimension that cannot be inferred is None; a value whose rank is unknown is left out. Inputs that are not named
    keep their own shapes.
    """
    proto, _ = weightless(model)
    for value in proto.graph.input:
        shape = inputs.get(value.name)
        tensor = value.type.tensor_type
        if shape is None or not value.type.HasField("tensor_type"):
            continue
        del tensor.shape.dim[:]
        for size in shape:
            tensor.shape.dim.add().dim_value = size
    # What the file says of inner values holds for every shape; with concrete inputs it is inferred anew.
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    shapes = _shapes(proto)
    named = {name for node in proto.graph.node for name in node.output if name}
    if any(None in dims for dims in shapes.values()) or not named <= shapes.keys():
        # Lengths that are added up in the graph, as with a cache of keys, are beyond onnx's inference: they are folded.
        for name, dims in _shapes(_folded(proto)).items():
            if None in shapes.get(name, (None,)):
                shapes[name] = dims
    return shapes


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    shapes: dict[str, tuple[int | None, ...]] = {}
    for scope, _, graph in graphs(_inferred(proto)):
        held = graph.initializer if isinstance(graph, onnx.GraphProto) else ()
        shapes.update((scope + tensor.name, tuple(tensor.dims)) for tensor in held)
        for value in typed(graph):
            kind = value.type.tensor_type
            if kind.HasField("shape"):
                dims = (dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
                shapes[scope + value.name] = tuple(dims)
    return shapes


def _folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its arithmetic on shapes computed, as far as that goes; as it is where the library fails."""
    from onnxscript.optimizer import fold_constants

    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    work = ir.from_proto(proto)
    try:
        fold_constants(work, onnx_shape_inference=True, input_size_limit=1024, output_size_limit=4096)
    except Exception:  # whatever it raises on an op that it does not know: the shapes stay unknown
        return proto
    return ir.to_proto(work)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The proto with what onnx can infer; as it is where onnx gives up: the runtime says more of what is wrong."""
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    except Exception as error:  # InferenceError, and bare errors of the C++ side
        log.debug("onnx infers no types: %s", error)
        return proto
