"""Loading models: mapped, unread, and refused before anything is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.files import sha256_of
from fp8graph.graph import walk
from fp8graph.graph.stages import Kind, Source

# Metadata that says which data file belongs to a model: it reveals a pair of files of which one was replaced.
DATA_DIGEST = "fp8graph.data.sha256"


def load(model: Any) -> Source:
    """A model from a path, an onnx.ModelProto, an onnx_ir.Model or an onnx_graphsurgeon.Graph.

    The caller's object is never changed. Raises InputError (status 3) for a file that is no model, external data that
    is missing, short or outside the model's folder; UsageError for any other kind of object.
    """
    if isinstance(model, (str, Path)):
        return _from_path(Path(model))
    if isinstance(model, onnx.ModelProto):
        return Source(_from_proto(model, "the ModelProto given"), "proto", model)
    if isinstance(model, ir.Model):
        return Source(model.clone(deep_copy=True), "ir", model)
    from fp8graph.graph import gs

    if gs.is_graph(model):
        return Source(_from_proto(gs.to_proto(model), "the Graph given"), "graphsurgeon", model)
    raise UsageError(
        f"a {type(model).__name__} is no model",
        why="accepted are a path, an onnx.ModelProto, an onnx_ir.Model and an onnx_graphsurgeon.Graph",
        code="FG100",
    )


def _from_proto(proto: onnx.ModelProto, where: str) -> ir.Model:
    _check_proto(proto, where)
    try:
        return ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many types on malformed protos
        raise _unreadable(where, f"{type(error).__name__}: {error}") from error


def _from_path(path: Path) -> Source:
    if path.is_dir():
        raise _unreadable(str(path), "it is a folder", do="give the .onnx file in it")
    if not path.exists():
        raise InputError("the model does not exist", where=str(path), do="check the path", code="FG106")
    # The absolute path first: relative ones are where checks against leaving the folder were fooled.
    path = path.absolute()
    if path.stat().st_size == 0:
        raise _unreadable(str(path), "it is empty")
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise _unreadable(str(path), "it is no ONNX protobuf, or it is cut off") from error
    except OSError as error:
        raise _unreadable(str(path), str(error)) from error
    _check_proto(proto, str(path))
    external = _check_external(proto, path)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many types on malformed protos
        raise _unreadable(str(path), f"{type(error).__name__}: {error}") from error
    for _, graph in walk.graphs(model):
        if not isinstance(graph, ir.Function):
            ir.external_data.set_base_dir(graph, str(path.parent))
    _check_pair(model, path, external)
    kind: Kind = "path"
    return Source(model, kind, path, path, bool(external))


def _check_proto(proto: onnx.ModelProto, where: str) -> None:
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise _unreadable(where, "it holds no graph")
    if not proto.opset_import:
        raise _unreadable(where, "it imports no opset, so its ops have no meaning")
    newest = onnx.defs.onnx_opset_version()
    for item in proto.opset_import:
        if item.domain in ("", "ai.onnx") and not 1 <= item.version <= newest:
            raise _unreadable(
                where,
                f"opset {item.version} is not known (1 to {newest} are)",
                do="update the onnx package, or export anew",
            )


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.append(attribute.t)
            found.extend(attribute.tensors)
            for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                found.extend(_tensors(body))
    return found


def _check_external(proto: onnx.ModelProto, path: Path) -> list[Path]:
    """Files that hold external data, each checked to lie in the model's folder and to be long enough."""
    folder = path.parent.resolve()
    used: list[Path] = []
    for tensor in _tensors(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = path.parent / location
        if (
            not location
            or Path(location).is_absolute()
            or "\0" in location
            or not file.resolve().is_relative_to(folder)
        ):
            raise _external(
                tensor.name, f"'{location}' leaves the model's folder", path, do="put the data file beside the model"
            )
        if not file.is_file():
            raise _external(tensor.name, f"'{location}' is not there", path, do=f"copy it beside {path.name}")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        except ValueError as error:
            raise _external(tensor.name, "its offset or length is no number", path) from error
        size = file.stat().st_size
        if offset < 0 or length < -1 or offset + max(length, 0) > size:
            raise _external(tensor.name, f"it wants bytes {offset} to {offset + length}, '{location}' has {size}", path)
        if file not in used:
            used.append(file)
    return used


def _check_pair(model: ir.Model, path: Path, external: list[Path]) -> None:
    said = model.metadata_props.get(DATA_DIGEST)
    if said and external and sha256_of(external[0]) != said:
        raise InputError(
            "the model and its data file do not belong together",
            where=f"{path.name} and {external[0].name}",
            why="the data file's digest is not the one in the model: one of the two was replaced",
            do="write both anew",
            code="FG105",
        )


def _external(name: str, why: str, path: Path, do: str = "export the model anew") -> InputError:
    return InputError("external data cannot be used", where=f"{path}, tensor '{name}'", why=why, do=do, code="FG104")


def _unreadable(where: str, why: str, do: str = "give an ONNX model") -> InputError:
    return InputError("the model cannot be read", where=where, why=why, do=do, code="FG106")
