"""Extremes of tensors of the main graph, found inside the run: a few numbers leave it, not the tensors.

    v -> max v, min v, sum v    each over everything; the sum tells only whether a NaN was there, for the maxima of
                                ONNX Runtime's kernels hand none on (1.32.0)
    v >= -b -> max v, sum v     behind Relu, Softmax, HardSwish and the like, where a maximum of b or more is the amax
    blocked -> one a channel    what convolutions compute lies in blocks of channels (NCHWc) inside the runtime; of
                                pools and reductions only GlobalMaxPool and GlobalAveragePool read that, for all others
                                the whole tensor is copied

A NaN does not come from nothing: products, sums and pools make none, and no infinity, of numbers below 2^30. Where a
tensor comes by these alone from tensors of which that is known, its sum is left out. Where a number is larger, the
sample is looked at closely.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from fp8graph.graph import edit, tensors
from fp8graph.numerics.ranges import Stat
from fp8graph.runners.base import Outputs

_FLOAT = ir.DataType.FLOAT
_POSITIVE = frozenset({"Relu", "Softmax", "Sigmoid", "HardSigmoid", "Abs", "Exp", "Sqrt", "Softplus"})
# Of functions that hardly go below 0, the least values, rounded away from it.
_LEAST = {"HardSwish": 0.38, "Swish": 0.28, "Gelu": 0.18}
# What these yield is made of elements of their first input, or lies between them.
_HANDED_ON = frozenset(
    {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Reshape", "Transpose", "Flatten", "Squeeze"}
    | {"Unsqueeze", "Identity", "Slice", "Gather", "Expand", "Tile", "Split", "Dropout", "DepthToSpace"}
)
_JOINS = frozenset({"Add", "Sum", "Mul", "Concat", "Max"})
# As ONNX Runtime's NchwcTransformer goes on with blocks (1.32).
_BLOCKED = frozenset(
    {"Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "MaxPool", "AveragePool", "Add", "Mul", "Sum"}
)
_DEEP = 32
MODERATE = 2.0**30
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_WITHIN_ONE = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softmax"})
_FIRST_ALONE = _HANDED_ON | _WITHIN_ONE | {"Clip", "ReduceMean"}
_NO_LARGER = _FIRST_ALONE | {"Relu", "LeakyRelu", "HardSwish", "Gelu", "Abs", "Neg", "Concat", "Max"}
_LARGEST = 120  # in octaves; float32 ends at 2^128


@dataclass(frozen=True)
class Tap:
    """Names of the outputs that tell about one tensor.

    low     None where it cannot be lower than -`floor`
    total   None where it holds no NaN, as long as all others are clear
    size    output with the number of elements; empty where `times` of what `high` holds are as many
    """

    high: str
    low: str | None
    total: str | None
    size: str
    times: int = 1
    floor: float = 0.0

    @property
    def outputs(self) -> list[str]:
        """All of them."""
        return [name for name in (self.high, self.low, self.total, self.size) if name]

    def stat(self, outputs: Outputs) -> Stat | None:
        """The statistic; None where it does not follow from the outputs, so that the tensor has to be looked at: where
        something is not finite or very large, or what may be lower than 0 might reach further down than up."""
        highs = outputs[self.high]
        high = highs.item() if highs.size == 1 else float(highs.max())
        low = 0.0 if self.low is None else outputs[self.low].item()
        if not (low > -MODERATE and high < MODERATE) or high < self.floor:
            return None
        if self.total is not None and math.isnan(float(outputs[self.total].sum())):
            return None
        count = int(outputs[self.size]) if self.size else self.times * highs.size
        return Stat(count, 0, low + 0.0, high + 0.0)  # -0 or 0, as it comes: 0


def expose(view: ir.Model, wanted: Mapping[str, float | None]) -> dict[str, Tap]:
    """Adds outputs to the main graph of `view` (a copy) for float tensors that its nodes compute, by name.

    wanted   by name: how far below 0 it may lie, where its least value is of no interest; None where it is
    """
    values = {value.name: value for node in view.graph for value in node.outputs if value.name}
    names, known = edit.Names(view), _Known(view.graph, wanted)
    made = {name: known.finite(values[name]) for name in wanted}
    return {name: _tapped(view.graph, values[name], names, floor, made[name]) for name, floor in wanted.items()}


class _Known:
    """What is known of tensors that are not looked at: how large they may be, where they hold no NaN.

    sources   tensors whose extremes are found; numbers of all of them, of inputs and of constants are below 2^30
    """

    def __init__(self, graph: ir.Graph, sources: Container[str]) -> None:
        self._inputs, self._sources = set(graph.inputs), sources
        self._found: dict[ir.Value, float | None] = {}

    def finite(self, value: ir.Value) -> bool:
        """Whether a tensor is finite where all others that are known are."""
        return self._made(value) is not None

    def _octaves(self, value: ir.Value, steps: int) -> float | None:
        if value.name in self._sources or value in self._inputs or tensors.is_constant(value):
            return 30 if value.dtype == _FLOAT else None
        if value not in self._found:
            self._found[value] = self._made(value, steps)
        return self._found[value]

    def _made(self, value: ir.Value, steps: int = _DEEP) -> float | None:
        """From what the node of a value reads."""
        node = value.producer()
        if node is None or steps == 0 or node.domain not in ("", "ai.onnx") or not node.inputs:
            return None
        data = node.inputs[:1] if node.op_type in _FIRST_ALONE else node.inputs
        read = [self._octaves(each, steps - 1) for each in data if each is not None]
        known = [each for each in read if each is not None]
        if len(known) < len(read):
            return None
        if node.op_type in _PRODUCTS:
            total = known[0] + known[1] + 31  # of up to 2^30 products, and a bias
        elif node.op_type == "Mul":
            total = known[0] + known[1]
        elif node.op_type in ("Add", "Sub", "Sum"):
            total = max(known) + len(known)
        elif node.op_type in _WITHIN_ONE:
            total = 0
        elif node.op_type in _NO_LARGER:
            total = max(known)
        else:
            return None
        return total if total <= _LARGEST else None


def floor_of(value: ir.Value, steps: int = _DEEP) -> float | None:
    """How far below 0 a value may lie, as what computes it tells; None where that is not bounded, or far."""
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or steps == 0:
        return None
    first = node.inputs[0] if node.inputs else None
    if node.op_type in _JOINS:
        parts = [None if each is None else floor_of(each, steps // 2) for each in node.inputs]
        known = [part for part in parts if part is not None]
        total = sum(known) if node.op_type in ("Add", "Sum") else max(known, default=0.0)
        return total if len(known) == len(parts) and not (node.op_type == "Mul" and total) else None
    if node.op_type in _HANDED_ON:
        return floor_of(first, steps - 1) if first is not None else None
    if node.op_type == "Clip":
        least = node.inputs[1] if len(node.inputs) > 1 else None
        fine = least is not None and tensors.is_constant(least) and bool((tensors.read(least) >= 0).all())
        return 0.0 if fine else None
    alpha = node.attributes.get("alpha")
    usual = node.op_type != "Swish" or alpha is None or alpha.as_float() == 1
    return 0.0 if node.op_type in _POSITIVE else _LEAST.get(node.op_type) if usual else None


def _tapped(graph: ir.Graph, value: ir.Value, names: edit.Names, floor: float | None, finite: bool) -> Tap:
    def op(op_type: str, source: ir.Value, dtype: ir.DataType = _FLOAT, **attributes: int) -> ir.Value:
        node = edit.new_node(
            op_type, [source], names, output="fp8graph_tap", dtype=dtype, attributes=attributes, serves="?"
        )
        graph.append(node)
        return node.outputs[0]

    def told(op_type: str, dtype: ir.DataType = _FLOAT, **attributes: int) -> str:
        found = op(op_type, wide, dtype, **attributes)
        graph.outputs.append(found)
        return found.name or ""

    wide = value if value.dtype == _FLOAT else op("Cast", value, to=int(_FLOAT))
    low = told("ReduceMin", keepdims=0) if floor is None else None
    area = _area(value) if value.dtype == _FLOAT and _blocked(value) else None
    if area is not None:
        total = None if finite else told("GlobalAveragePool")
        return Tap(told("GlobalMaxPool"), low, total, "", area, floor or 0.0)
    high, total = told("ReduceMax", keepdims=0), None if finite else told("ReduceSum", keepdims=0)
    sizes = tensors.dims(value)
    if sizes is not None and None not in sizes:
        return Tap(high, low, total, "", math.prod(size or 0 for size in sizes), floor or 0.0)
    return Tap(high, low, total, told("Size", ir.DataType.INT64), 1, floor or 0.0)


def _area(value: ir.Value) -> int | None:
    """Elements a channel of an image; None where that is open."""
    sizes = tensors.dims(value)
    if sizes is None or len(sizes) != 4 or None in sizes[2:]:
        return None
    return math.prod(size or 0 for size in sizes[2:])


def _blocked(value: ir.Value, steps: int = _DEEP) -> bool:
    """Whether the runtime may hold a value in blocks of channels: it comes from a convolution by what keeps them."""
    node = value.producer()
    if node is None or steps == 0:
        return False
    if node.op_type in _BLOCKED:
        return any(each is not None and _blocked(each, steps - 1) for each in node.inputs)
    return node.op_type == "Conv"
