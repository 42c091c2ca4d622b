"""Saving: into a staged folder, weights computed one at a time as they are written."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from fp8graph.base.errors import Fp8GraphError
from fp8graph.base.files import sha256_of
from fp8graph.graph import gs, tensors, walk
from fp8graph.graph.load import DATA_DIGEST
from fp8graph.graph.lost import Lost, put_back
from fp8graph.graph.stages import Legal

log = logging.getLogger(__name__)
# protobuf ends at 2 GiB; a model file that grows near it is split before.
_EMBEDDED_LIMIT = 1_500_000_000


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers as they would be written; nothing is read."""
    return sum(
        value.const_value.nbytes
        for _, graph in walk.graphs(model)
        if not isinstance(graph, ir.Function)
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def save(legal: Legal, folder: Path, name: str, *, threshold: int | None = None) -> list[Path]:
    """Writes the model as `folder/name`, and `name.data` where weights are external. Returns the files.

    Weights are external where they were in the source, where they would not fit a protobuf, or where `threshold`
    (bytes of one tensor) is given.
    """
    model = legal.model
    path = folder / name
    if threshold is None and not legal.source.external and weight_bytes(model) < _EMBEDDED_LIMIT:
        path.write_bytes(to_proto(model, legal.source.lost).SerializeToString(deterministic=True))
        return [path]
    data = folder / f"{name}.data"
    with _read_in(model):
        ir.save(model, path, external_data=data.name, size_threshold_bytes=1024 if threshold is None else threshold)
    if data.exists() and not data.stat().st_size:  # every tensor lies below the threshold
        data.unlink()
    proto = onnx.load(str(path), load_external_data=False)
    put_back(proto, legal.source.lost)
    kept = [item for item in proto.metadata_props if item.key != DATA_DIGEST]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    if data.exists():
        proto.metadata_props.add(key=DATA_DIGEST, value=sha256_of(data))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return [path, data] if data.exists() else [path]


def to_proto(model: ir.Model, lost: Lost | None = None) -> onnx.ModelProto:
    """The model as a proto with its weights inside; `lost` is what its source had that onnx_ir does not hold."""
    with _read_in(model):
        proto = ir.to_proto(model)
    put_back(proto, lost or Lost())
    return proto


@contextlib.contextmanager
def _read_in(model: ir.Model) -> Iterator[None]:
    """Lets external weights be read as they are serialized: a proto would name their file, and not its folder.

    An error of ours, of the disk or of memory comes out as itself.
    """
    held = [
        (value, value.const_value)
        for _, graph in walk.graphs(model)
        if not isinstance(graph, ir.Function)
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]
    for value, stored in held:
        read = tensors.lazy_from(value, value.name or "", lambda array: array).const_value
        assert read is not None
        read.doc_string = stored.doc_string
        read.metadata_props.update(stored.metadata_props)
        value.const_value = read
    try:
        yield
    except ir.serde.SerdeError as error:
        # Weights are computed as they are written: what failed there is wrapped once for every proto around it.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, (Fp8GraphError, OSError, MemoryError)):
            raise cause from None
        raise
    finally:
        for value, tensor in held:
            value.const_value = tensor


def like_source(legal: Legal) -> Any:
    """The model as the kind of object that came in; a path becomes an onnx.ModelProto here."""
    if legal.source.kind == "ir":
        return legal.model
    proto = to_proto(legal.model, legal.source.lost)
    return gs.from_proto(proto) if legal.source.kind == "graphsurgeon" else proto
