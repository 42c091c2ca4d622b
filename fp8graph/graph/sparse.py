"""Sparse tensors, which onnx_ir does not know: dense while we work; initialisers are sparse again in the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from fp8graph.base.errors import InputError

# A sparse tensor that would take more than this as a dense one is refused.
_LIMIT = 1 << 32


def has_sparse(graph: Any) -> bool:
    """Whether a graph or function holds sparse tensors of its own, those of its bodies left out."""
    return bool(getattr(graph, "sparse_initializer", ())) or any(_constants(graph))


def make_dense(graph: onnx.GraphProto, where: str) -> dict[str, onnx.SparseTensorProto]:
    """Puts a dense initialiser in the place of each sparse one of a graph; returns the sparse ones by name.

    Raises InputError FG106 where indices do not fit, or the dense tensor would be huge.
    """
    kept: dict[str, onnx.SparseTensorProto] = {}
    for sparse in graph.sparse_initializer:
        kept[sparse.values.name] = onnx.SparseTensorProto.FromString(sparse.SerializeToString())
        graph.initializer.append(_dense(sparse, sparse.values.name, where))
    del graph.sparse_initializer[:]
    return kept


def put_back_sparse(graph: onnx.GraphProto, kept: Mapping[str, onnx.SparseTensorProto]) -> None:
    """Puts the sparse ones back in the place of the initialisers that still have their names."""
    if not kept:
        return
    rest = [tensor for tensor in graph.initializer if tensor.name not in kept]
    back = [kept[tensor.name] for tensor in graph.initializer if tensor.name in kept]
    del graph.initializer[:]
    graph.initializer.extend(rest)
    graph.sparse_initializer.extend(back)


def densify_constants(graph: Any, where: str) -> None:
    """Turns the `sparse_value` of each Constant of a graph or function into a `value`, for good."""
    for node, attribute in list(_constants(graph)):
        name = next(iter(node.output), "")
        made = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, doc_string=attribute.doc_string)
        made.t.CopyFrom(_dense(attribute.sparse_tensor, name, where))
        attribute.CopyFrom(made)


def _constants(graph: Any) -> Any:
    return (
        (node, attribute)
        for node in graph.node
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx")
        for attribute in node.attribute
        if attribute.name == "sparse_value" and attribute.HasField("sparse_tensor")
    )


def _dense(sparse: onnx.SparseTensorProto, name: str, where: str) -> onnx.TensorProto:
    dims = list(sparse.dims)
    try:
        if any(size < 0 for size in dims):
            raise ValueError(f"its dims {dims} hold a negative number")
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
