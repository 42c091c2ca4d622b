"""A product with one constant operand as rows that are multiplied: which slot is which, and how the weight lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fp8graph.core.quants import contraction_axis
from fp8graph.graph import tensors
from fp8graph.numerics.windows import Window

Array = NDArray[Any]


_SAME: Mapping[str, Literal["upper", "lower"]] = {"SAME_UPPER": "upper", "SAME_LOWER": "lower"}


@dataclass(frozen=True)
class Product:
    """One product: the slots of its activation and its weight, and how it reads the activation.

    out   axis of the weight that runs along output channels
    """

    activation: int
    weight: int
    window: Window
    out: int

    def rows(self, weight: Array) -> Array:
        """The weight as [output channels, K], as `Window.rows` has the activation."""
        turned = np.moveaxis(weight, self.out, 0)
        return turned.reshape(len(turned), -1)

    def back(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """The weight of that shape from its rows."""
        turned = (shape[self.out], *shape[: self.out], *shape[self.out + 1 :])
        return np.ascontiguousarray(np.moveaxis(rows.reshape(turned), 0, self.out))


def product_of(node: ir.Node) -> Product | None:
    """The product that a Conv, MatMul or Gemm is; None where no operand or both are constant, or the weight is no
    matrix."""
    if node.op_type not in ("Conv", "MatMul", "Gemm") or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    constant = [slot for slot in (0, 1) if node.inputs[slot] is not None and tensors.is_constant(node.inputs[slot])]
    if len(constant) != 1:
        return None
    weight = constant[0]
    value = node.inputs[weight]
    shape = tensors.dims(value)
    assert value is not None
    if shape is None or None in shape:
        return None
    rank = len(shape)
    if node.op_type == "Conv":
        window = _window(node, [int(size) for size in shape[2:] if size is not None]) if weight == 1 else None
        return None if window is None else Product(0, 1, window, 0)
    if rank != 2:
        return None
    summed = contraction_axis(node, 1 - weight, 2)
    # Negative: the rank of a MatMul's activation may not be known here; that of a vector is.
    known = tensors.dims(node.inputs[1 - weight])
    along = -1 if known is not None and len(known) == 1 else summed - 2
    return Product(1 - weight, weight, Window(along), 1 - contraction_axis(node, weight, 2))


def _window(node: ir.Node, kernel: list[int]) -> Window | None:
    rank = len(kernel)
    padding = node.attributes.get("auto_pad")
    same: Literal["", "upper", "lower"] = _SAME.get(padding.as_string(), "") if padding is not None else ""
    if not rank:
        return None

    def numbers(name: str, default: int, times: int = 1) -> tuple[int, ...]:
        attribute = node.attributes.get(name)
        return tuple(attribute.as_ints()) if attribute is not None else (default,) * rank * times

    pads = numbers("pads", 0, 2)
    if min(pads) < 0:
        return None
    group = node.attributes.get("group")
    groups = 1 if group is None else group.as_int()
    return Window(1, tuple(kernel), numbers("strides", 1), numbers("dilations", 1), pads, groups, same)
