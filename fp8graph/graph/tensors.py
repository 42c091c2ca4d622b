"""Weights as lazy tensors: each is read, changed and written one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fp8graph import formats

Array = np.ndarray[Any, np.dtype[Any]]

FLOATS = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.DOUBLE: "fp64",
}
NUMPY: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
ONNX = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
PLAIN = (ir.DataType.FLOAT, *HALF)
# Types of codes that are no format of ours.
_OTHER_CODES = (ir.DataType.UINT4, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)


@cache
def _words() -> dict[int, str]:
    ours = {formats.get(name).onnx_type: name for name in formats.names()}
    return {int(kind): kind.name.lower() for kind in _OTHER_CODES} | ours


def word(dtype: ir.DataType | None) -> str:
    """The name of a low-precision type as recipes spell it; empty for any other.   FLOAT8E4M3FN -> e4m3fn"""
    return _words().get(int(dtype), "") if dtype is not None else ""


def read(value: ir.Value) -> Array:
    """The array of a constant value. Raises ValueError where the value is none."""
    if value.const_value is None:
        raise ValueError(f"'{value.name}' is no constant")
    return value.const_value.numpy()


def release(value: ir.Value) -> None:
    """Unmaps an external weight after it was read, so that memory holds one weight at a time."""
    if value.const_value is not None:
        _unmap(value.const_value)


def _unmap(tensor: ir.TensorProtocol) -> None:
    """Lets go of the mapping of an external tensor; arrays that were read from it keep it until they are gone."""
    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):  # an array of it is alive
            tensor.release()
        tensor.raw = None


def constant(name: str, array: Array) -> ir.Value:
    """A small constant as a value that can be registered as an initializer."""
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


def lazy(name: str, shape: tuple[int, ...], dtype: ir.DataType, compute: Callable[[], Array]) -> ir.Value:
    """A constant whose array is computed when it is written, and not kept.

    `compute` returns an array of this shape whose numpy dtype is that of `dtype` (for FP8 the ml_dtypes type).
    """

    def tensor() -> ir.TensorProtocol:
        return ir.Tensor(compute(), dtype=dtype, name=name)

    made = ir.LazyTensor(tensor, dtype, ir.Shape(shape), name=name)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=made)


def lazy_from(
    source: ir.Value,
    name: str,
    change: Callable[[Array], Array],
    *,
    shape: Sequence[int] | None = None,
    dtype: ir.DataType | None = None,
) -> ir.Value:
    """One more lazy function on top of a constant: `change` maps its array to one of `shape`, None: of the same."""
    if source.const_value is None or source.dtype is None:
        raise ValueError(f"'{source.name}' is no constant")
    tensor = source.const_value

    def compute() -> Array:
        out = change(tensor.numpy())
        _unmap(tensor)
        return out

    return lazy(name, tuple(tensor.shape.numpy() if shape is None else shape), dtype or source.dtype, compute)


def moved(source: ir.Value, perm: Sequence[int]) -> ir.Value:
    """A constant with its axes in another order, of the same name; it is not read before it is asked for."""
    if source.const_value is None or source.dtype is None:
        raise ValueError(f"'{source.name}' is no constant")
    tensor = source.const_value
    shape = tuple(tensor.shape.numpy()[axis] for axis in perm)

    def compute() -> Array:
        out = np.ascontiguousarray(tensor.numpy().transpose(perm))
        _unmap(tensor)
        return out

    return lazy(source.name or "", shape, source.dtype, compute)


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is an initializer that nothing can override at run time."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The dimensions of a value, None for each that is not a number; None where even the rank is unknown.

    Old exporters write -1 for a dimension that is open.
    """
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) and d >= 0 else None for d in value.shape)
