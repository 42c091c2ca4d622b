"""Loading models: mapped, unread, and refused before anything is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.files import sha256_of
from fp8graph.graph import lost, walk
from fp8graph.graph.stages import Kind, Source
from fp8graph.graph.validate import validate

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
        return _from_proto(model, "the ModelProto given", "proto", model)
    if isinstance(model, ir.Model):
        return Source(model.clone(deep_copy=True), "ir", model, lost=lost.of_model(model))
    from fp8graph.graph import gs

    if gs.is_graph(model):
        return _from_proto(gs.to_proto(model), "the Graph given", "graphsurgeon", model)
    raise UsageError(
        f"{type(model).__name__} is no kind of model",
        where="model",
        do="give the path of an ONNX file, or onnx.load('m.onnx')",
        why="accepted are a path, an onnx.ModelProto, an onnx_ir.Model and an onnx_graphsurgeon.Graph",
        code="FG100",
    )


def _from_proto(proto: onnx.ModelProto, where: str, kind: Kind, original: Any) -> Source:
    validate(proto, where)
    readable, kept = lost.take_out(proto, where, own=False)
    return Source(_deserialize(readable, where), kind, original, lost=kept)


def _deserialize(proto: onnx.ModelProto, where: str) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many types on malformed protos
        cause: BaseException = error
        while cause.__cause__ is not None:  # it wraps the reason once for every proto around it
            cause = cause.__cause__
        raise _unreadable(where, f"{type(cause).__name__}: {cause}") from error


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
        raise _unreadable(str(path), _not_onnx(path, error)) from error
    except OSError as error:
        raise _unreadable(str(path), str(error)) from error
    external = validate(proto, str(path), path)
    proto, kept = lost.take_out(proto, str(path), own=True)
    model = _deserialize(proto, str(path))
    for _, graph in walk.graphs(model):
        if not isinstance(graph, ir.Function):
            ir.external_data.set_base_dir(graph, str(path.parent))
    _check_pair(model, path, external)
    return Source(model, "path", path, path, tuple(external), kept)


def _not_onnx(path: Path, error: Exception) -> str:
    """What a file that does not parse is, as far as its first bytes and protobuf's words tell."""
    with path.open("rb") as file:
        begin = file.read(4)
    if begin == b"PK\3\4":
        return "it does not parse: it is a zip archive"
    if begin[:1] == b"\x80" and begin[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "it does not parse: it is a pickle, which is never opened"
    if "Depth" in str(error):
        return "it does not parse: its graphs are nested deeper than protobuf reads (100 messages, 32 Ifs)"
    return "it does not parse as an ONNX protobuf: not an ONNX model, or truncated"


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


def _unreadable(where: str, why: str, do: str = "give an ONNX model") -> InputError:
    return InputError("the model cannot be read", where=where, why=why, do=do, code="FG106")
