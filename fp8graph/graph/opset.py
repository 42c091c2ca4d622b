"""Raising the opset with onnx's own converter, and putting back what it loses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from fp8graph import formats
from fp8graph.base.errors import InputError
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.dress import dress
from fp8graph.graph.inlining import inline
from fp8graph.graph.protos import weightless
from fp8graph.graph.protowalk import forget_foreign_types


def opset_of(model: ir.Model) -> int:
    """The opset of the default domain; InputError FG106 where the model names none."""
    version = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx"))
    if version is None:
        raise InputError(
            "the model imports no opset of the default domain", why="its ops have no meaning then", code="FG106"
        )
    return version


def raise_ir_version(model: ir.Model) -> None:
    """Gives a model the first IR version whose files may hold the types of its tensors; a higher one stays."""
    ours = {formats.get(name).onnx_type: formats.get(name).min_ir for name in formats.names()}
    held = {value.dtype for _, graph in walk.graphs(model) for value in walk.values(graph) if value.dtype is not None}
    model.ir_version = max(model.ir_version or 0, *(ours.get(int(dtype), 0) for dtype in held), 0)


def raise_opset(model: ir.Model, least: int) -> bool:
    """Raises the default domain to opset `least` in place; a higher one stays. Whether anything changed.

    The converter drops functions, metadata, annotations and more: all is put back, by scope and name. Functions that
    hold an op of another version then are inlined before. Raises InputError FG106 where an op cannot be converted.
    """
    if opset_of(model) >= least:
        return False
    _inline_outdated(model, least)
    functions = dict(model.functions)
    if 18 <= opset_of(model) < 21 <= least:
        _repeat_group_parameters(model)
    before = dict(walk.graphs(model))
    proto, weights = weightless(model)
    try:
        converted = onnx.version_converter.convert_version(proto, least)
    except Exception as error:  # the converter raises bare RuntimeError and its relatives
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"the model's opset {opset_of(model)} cannot be raised to {least}",
            why=first,
            do=f"export the model at opset {least} or above",
            code="FG106",
        ) from error
    _adopt(model, ir.from_proto(forget_foreign_types(converted)), weights)
    for function in functions.values():
        function.opset_imports[""] = max(least, function.opset_imports.get("", 1))
    model.functions.update(functions)
    dress(model, before)
    _find_again(model, before)
    return True


def _find_again(model: ir.Model, before: Mapping[str, ir.Graph | ir.Function]) -> None:
    """Tells external weights that went through a proto, those of bodies, which folder they lie in."""
    held = [value.const_value for graph in before.values() for value in walk.values(graph)]
    folders = {tensor.base_dir for tensor in held if isinstance(tensor, ir.ExternalTensor) and tensor.base_dir}
    if len(folders) != 1:
        return
    for _, graph in walk.graphs(model):
        if isinstance(graph, ir.Graph):
            ir.external_data.set_base_dir(graph, *folders)


def _inline_outdated(model: ir.Model, least: int) -> None:
    """Inlines functions with an op whose version in their own opset is another than in `least`, and their callers.

    ONNX lets a function import another opset than its model only where no op of it differs.
    """

    def outdated(function: ir.Function) -> bool:
        own = function.opset_imports.get("", 1)
        return own < least and any(
            onnx.defs.has(node.op_type) and _version(node.op_type, own) != _version(node.op_type, least)
            for node in function.all_nodes()
            if node.domain in ("", "ai.onnx")
        )

    inline(model, outdated)


def _version(op_type: str, opset: int) -> int:
    """The version of an op that an opset has; 0 where it has none."""
    try:
        version: int = onnx.defs.get_schema(op_type, opset).since_version
    except onnx.defs.SchemaError:
        return 0
    return version


def _repeat_group_parameters(model: ir.Model) -> None:
    """Gives GroupNormalization a scale and bias for each channel, as from opset 21 on; before it was for each group.

    The converter of onnx 1.23 leaves this undone. Raises InputError FG106 where the channels are not known.
    """
    names = edit.Names(model)
    for place in walk.walk(model):
        node = place.node
        if node.op_type != "GroupNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        shape, groups = tensors.dims(node.inputs[0]), node.attributes["num_groups"].as_int()
        channels = shape[1] if shape is not None and len(shape) > 1 else None
        for slot in (1, 2):
            value = node.inputs[slot]
            graph = value.graph if value is not None else None
            if value is None or channels is None or not tensors.is_constant(value) or not isinstance(graph, ir.Graph):
                raise InputError(
                    "GroupNormalization cannot be raised to opset 21",
                    where=f"op {place.key}",
                    why="its channels are not known, or its scale and bias are computed",
                    do="export the model at opset 21 or above",
                    code="FG106",
                )
            array = tensors.read(value)
            repeated = tensors.constant(names.fresh(f"{value.name}_channels"), np.repeat(array, channels // groups))
            graph.register_initializer(repeated)
            node.replace_input_with(slot, repeated)
            edit.drop_unused_initializer(value)


def _adopt(model: ir.Model, converted: ir.Model, weights: dict[str, ir.Value]) -> None:
    """Moves the converted graph into `model`, with the weights back in their places."""
    graph = converted.graph
    interface = {value.name for value in model.graph.inputs}
    inputs = {value.name: value for value in graph.inputs}
    for name, weight in weights.items():
        value = inputs.get(name)
        if value is None:
            continue
        value.const_value = weight.const_value
        value.metadata_props.update(weight.metadata_props)
    kept = [value for value in graph.inputs if value.name in interface or value.name not in weights]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    for name in weights:
        if name in inputs:
            graph.initializers[name] = inputs[name]
    # The interface stays as it was said: the converter fills in what it infers.
    for before, after in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for old, new in zip(before, after, strict=True):
            new.type, new.shape = old.type, old.shape
    graph.name = model.graph.name
    for domain, version in model.graph.opset_imports.items():
        if domain not in ("", "ai.onnx"):
            graph.opset_imports.setdefault(domain, version)
    model.graph = graph
