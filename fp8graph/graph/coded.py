"""Inputs and outputs that hold codes: their scale and the type that they stand for, in the metadata of the value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from fp8graph.base.canon import nearest_float32, shortest_float32
from fp8graph.graph import tensors

SCALE, STANDS_FOR = "fp8graph.scale", "fp8graph.stands_for"


@dataclass(frozen=True)
class Coded:
    """What the codes of an input or output stand for: times `scale` (float32), in the type `dtype`."""

    scale: float
    dtype: ir.DataType


def mark(value: ir.Value, scale: float, dtype: ir.DataType) -> None:
    """Writes down what the codes of a value stand for."""
    value.metadata_props[SCALE] = str(shortest_float32(scale))
    value.metadata_props[STANDS_FOR] = tensors.FLOATS[dtype]


def mark_type(value: ir.Value, dtype: ir.DataType) -> None:
    """Writes down the type that an input or output had before it was given another."""
    value.metadata_props[STANDS_FOR] = tensors.FLOATS[dtype]


def retyped(values: Iterable[ir.Value]) -> dict[str, ir.DataType]:
    """Those values that had another float type and hold no codes, by name, with that type."""
    kinds = {value: tensors.ONNX.get(value.metadata_props.get(STANDS_FOR, "")) for value in values}
    return {
        value.name: kind
        for value, kind in kinds.items()
        if kind is not None and value.name and SCALE not in value.metadata_props and value.dtype in tensors.FLOATS
    }


def marked(values: Iterable[ir.Value]) -> dict[str, Coded]:
    """Those values that hold codes and say what these stand for, by name; damaged marks are none."""
    found = {}
    for value in values:
        said, kind = value.metadata_props.get(SCALE, ""), value.metadata_props.get(STANDS_FOR, "")
        try:
            scale = nearest_float32(float(said)) if said else 0.0
        except (ValueError, OverflowError):
            continue
        if scale > 0 and kind in tensors.ONNX and value.name:
            found[value.name] = Coded(scale, tensors.ONNX[kind])
    return found
