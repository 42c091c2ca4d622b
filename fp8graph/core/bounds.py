"""What a value can be at least and at most, as far as the graph says: enough to tell a finite mask from one of -inf.

Interval arithmetic on constants, conditions and masks. Scores are activations: what a product yields is taken to lie
within +-ACTIVATION, for the graph does not say, and a model whose scores overflow is broken whatever is done to it.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from fp8graph.graph import tensors

# Far above any score that Softmax can tell apart, and below the largest number of every float type.
ACTIVATION = 2.0**14
Bounds = tuple[float, float]
UNKNOWN: Bounds = (-math.inf, math.inf)

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "Einsum"})
# They yield elements of their first input.
_MOVES = frozenset(
    {
        "Identity",
        "Reshape",
        "Transpose",
        "Expand",
        "Unsqueeze",
        "Squeeze",
        "Slice",
        "Gather",
        "Flatten",
        "Split",
        "Tile",
    }
)
# They yield elements of these inputs; a constant 0 beside them is Trilu's own.
_CHOICES = {"Where": slice(1, 3), "Concat": slice(None), "Trilu": slice(1)}
_BOUNDED: dict[str, Bounds] = {"Tanh": (-1.0, 1.0), "Sigmoid": (0.0, 1.0)}
_PAIRS = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min"})
_DEPTH = 64


def bounds(value: ir.Value | None) -> Bounds:
    """Least and largest element of `value`: infinite where it can be infinite, or where nothing is known of it.

    NaN comes of infinities alone, which are then bounds; one that is fed in, or computed by an op unknown here and then
    clipped, is not seen.
    """
    return _of(value, {}, _DEPTH)


def finite(found: Bounds) -> bool:
    """Whether neither bound is infinite."""
    return math.isfinite(found[0]) and math.isfinite(found[1])


def in_type(found: Bounds, dtype: ir.DataType) -> Bounds:
    """The bounds rounded to a float type, infinite where they overflow it; any other type leaves them as they are."""
    kind = tensors.FLOATS.get(dtype, "fp64")
    if kind == "fp64":
        return found
    with np.errstate(over="ignore"):
        low, high = np.asarray(found).astype(tensors.NUMPY[kind]).astype(np.float64)
    return float(low), float(high)


def _of(value: ir.Value | None, known: dict[ir.Value, Bounds], depth: int) -> Bounds:
    if value is None or value.dtype is None or depth == 0:
        return UNKNOWN
    if value not in known:
        known[value] = in_type(_computed(value, known, depth), value.dtype)
    return known[value]


def _computed(value: ir.Value, known: dict[ir.Value, Bounds], depth: int) -> Bounds:
    if tensors.is_constant(value):
        return _of_constant(value)
    if value.dtype == ir.DataType.BOOL:
        return 0.0, 1.0
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return UNKNOWN
    kind = node.op_type
    if kind in _PRODUCTS:
        return -ACTIVATION, ACTIVATION
    if kind in _BOUNDED:
        return _BOUNDED[kind]
    if kind in _MOVES or kind == "Cast":
        return _of(node.inputs[0], known, depth - 1)
    if kind in _CHOICES:
        found = [_of(operand, known, depth - 1) for operand in node.inputs[_CHOICES[kind]]]
        found += [(0.0, 0.0)] if kind == "Trilu" else []
        return min(low for low, _ in found), max(high for _, high in found)
    if kind in _PAIRS and len(node.inputs) == 2:
        return _paired(kind, *(_of(operand, known, depth - 1) for operand in node.inputs))
    return UNKNOWN


def _of_constant(value: ir.Value) -> Bounds:
    array = tensors.read(value)
    if array.size == 0 or array.dtype.kind in "OSU":
        return UNKNOWN
    low, high = float(array.min()), float(array.max())
    tensors.release(value)
    return UNKNOWN if math.isnan(low) or math.isnan(high) else (low, high)


def _paired(kind: str, a: Bounds, b: Bounds) -> Bounds:
    """What two intervals give; unknown where an infinity could become a NaN."""
    if kind in ("Max", "Min"):
        choose = max if kind == "Max" else min
        return choose(a[0], b[0]), choose(a[1], b[1])
    if not (finite(a) and finite(b)) or (kind == "Div" and b[0] <= 0 <= b[1]):
        return UNKNOWN
    if kind == "Add":
        return a[0] + b[0], a[1] + b[1]
    if kind == "Sub":
        return a[0] - b[1], a[1] - b[0]
    corners = [x * y if kind == "Mul" else x / y for x in a for y in b]
    return min(corners), max(corners)
