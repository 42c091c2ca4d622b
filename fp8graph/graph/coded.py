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
