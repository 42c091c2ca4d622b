"""Sparse initialisers, which onnx_ir does not know: dense while we work, sparse again in the file."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from fp8graph.base.errors import InputError

# A sparse tensor that would take more than this as a dense one is refused.
_LIMIT = 1 << 32


def make_dense(proto: onnx.ModelProto, where: str) -> dict[str, onnx.SparseTensorProto]:
    """Puts a dense initialiser in the place of each sparse one of the main graph; returns the sparse ones by name.

    Raises InputError FG106 where indices do not fit, or the dense tensor would be huge.
    """
    kept: dict[str, onnx.SparseTensorProto] = {}
    for sparse in proto.graph.sparse_initializer:
        kept[sparse.values.name] = onnx.SparseTensorProto.FromString(sparse.SerializeToString())
        proto.graph.initializer.append(_dense(sparse, where))
    del proto.graph.sparse_initializer[:]
    return kept


def put_back(proto: onnx.ModelProto, kept: Mapping[str, onnx.SparseTensorProto]) -> None:
    """Puts the sparse ones back in the place of the initialisers that still have their names."""
    if not kept:
        return
    rest = [tensor for tensor in proto.graph.initializer if tensor.name not in kept]
    back = [kept[tensor.name] for tensor in proto.graph.initializer if tensor.name in kept]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(rest)
    proto.graph.sparse_initializer.extend(back)


def _dense(sparse: onnx.SparseTensorProto, where: str) -> onnx.TensorProto:
    name, dims = sparse.values.name, list(sparse.dims)
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        if math.prod(dims) * values.itemsize > _LIMIT:
            raise ValueError(f"it would take {math.prod(dims) * values.itemsize} bytes as a dense tensor")
        dense = np.zeros(math.prod(dims), values.dtype)
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dims)
        if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < dense.size:
            raise ValueError("an index lies outside of its dims")
        dense[flat] = values
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(
            "the model is invalid",
            where=f"{where}, sparse tensor '{name}'",
            why=str(error),
            do="export the model anew",
            code="FG106",
        ) from error
    return numpy_helper.from_array(dense.reshape(dims), name)
