"""Following an operand of a product upwards: to the DequantizeLinear that it comes from, or to what hides one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fp8graph.core.reading import ONNX, Reading, attribute, given, is_dequantizer
from fp8graph.data.qdq import Qdq
from fp8graph.graph import tensors

_STEPS = 64  # longest chain between an op and its DQ that is followed
_DEEP = 8  # Concats, functions behind one another
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Attention", "TRT_QuantizedAttention"})
# FP8 does not pass these; looking past them tells that the op was meant to be quantized.
_BREAKERS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Upsample", "Pad", "Cast", "Concat"}
    | {"Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSwish", "HardSigmoid", "Gelu", "Elu", "Tanh", "Mul", "Div"}
)
UNKNOWN = -1  # an axis that cannot be told


@dataclass(frozen=True)
class Operand:
    """One operand of an op.

    dequantizer  the DQ that it comes from; None where there is none
    format       what that DQ reads: e4m3fn, e5m2, int8, ...
    steps        nodes in between, the op's side first
    obstacle     the first of them that FP8 does not pass
    axis         the axis of the operand that a vector of scales lies along; UNKNOWN where it cannot be told
    """

    value: ir.Value
    dequantizer: ir.Node | None = None
    format: str = ""
    steps: tuple[ir.Node, ...] = ()
    obstacle: ir.Node | None = None
    axis: int | None = None

    @property
    def scale(self) -> ir.Value | None:
        """The scale of its DQ."""
        return given(self.dequantizer, 1) if self.dequantizer is not None else None


class Follower:
    """Follows operands of one model as the Q/DQ table of a target says."""

    def __init__(self, reading: Reading, table: Qdq, through: Sequence[str]) -> None:
        self.reading, self.table, self.through = reading, table, frozenset(through)

    def operand(self, op: ir.Node, slot: int) -> Operand | None:
        """The operand in a slot; None where it is left out."""
        value = given(op, slot)
        if value is None:
            return None
        found = self._follow(value, op, _DEEP)
        if found.dequantizer is None or not self.scale_is_vector(found.dequantizer):
            return found
        return replace(found, axis=self._axis(found))

    def scale_is_vector(self, dequantizer: ir.Node) -> bool:
        """Whether a DQ has more than one scale."""
        shape = self.reading.shape(given(dequantizer, 1))
        return shape is not None and math.prod(size or 2 for size in shape) > 1

    def _follow(self, value: ir.Value, op: ir.Node, deep: int) -> Operand:
        first, obstacle = value, None
        steps: list[ir.Node] = []
        calls: list[ir.Node] = []
        for _ in range(_STEPS):
            node = value.producer()
            if node is None:
                outer = self._outer(value, calls)
                if len(outer) != 1:
                    return self._worst(first, [self._follow(each, op, deep - 1) for each in outer] if deep else [])
                value = outer[0]
                continue
            if is_dequantizer(node):
                return Operand(first, node, self.reading.format(node), tuple(steps), obstacle)
            if node.op_identifier() in self.reading.model.functions:
                function = self.reading.model.functions[node.op_identifier()]
                calls.append(node)
                value = function.outputs[list(node.outputs).index(value)]
                continue
            upper = self._data(node, op, deep)
            if upper is None or not (self.known(node) or _reads_dequantized(node)):
                break
            if obstacle is None and not self._passes(node, op, deep):
                obstacle = node
            steps.append(node)
            value = upper
        return Operand(first)

    def _outer(self, value: ir.Value, calls: list[ir.Node]) -> list[ir.Value]:
        if not calls:
            return self.reading.argument(value)
        node = calls.pop()
        inputs = list(self.reading.model.functions[node.op_identifier()].inputs)
        index = next((i for i, each in enumerate(inputs) if each is value), -1)
        actual = given(node, index) if index >= 0 else None
        return [actual] if actual is not None else []

    def _worst(self, value: ir.Value, found: Sequence[Operand]) -> Operand:
        """What holds for every call of a function."""
        if not found or any(each.dequantizer is None for each in found):
            return Operand(value)
        return replace(next((each for each in found if each.obstacle is not None), found[0]), value=value)

    def known(self, node: ir.Node) -> bool:
        """Whether a node may stand between a DQ and its op: one that FP8 passes, or one that is known to break it."""
        return node.domain in ONNX and (node.op_type in self.through or node.op_type in _BREAKERS)

    def _data(self, node: ir.Node, op: ir.Node, deep: int) -> ir.Value | None:
        """The input that the data comes from: the first; of Mul and Div, that which is no constant scalar."""
        if node.op_type in ("Mul", "Div") and len(node.inputs) == 2:
            left, right = node.inputs
            if left is None or right is None:
                return None
            return right if self._is_number(left) and not self._is_number(right) else left
        if node.op_type == "Concat" and deep:
            found = [self._follow(value, op, deep - 1) for value in node.inputs if value is not None]
            return next((each.value for each in found if each.dequantizer is not None), None)
        return given(node, 0)

    def _is_number(self, value: ir.Value) -> bool:
        """Whether a value is a constant of one element."""
        shape = self.reading.shape(value)
        return self.reading.constant(value) and shape is not None and all(size == 1 for size in shape)

    def _passes(self, node: ir.Node, op: ir.Node, deep: int) -> bool:
        if node.domain not in ONNX:
            return False
        if node.op_type == "Cast":
            source, made = self.reading.dtype(given(node, 0)), self.reading.dtype(node.outputs[0])
            kinds = tuple(tensors.FLOATS.get(kind, "?") if kind is not None else "?" for kind in (source, made))
            return kinds[0] == kinds[1] != "?" or self.table.casts is None or kinds in self.table.casts
        if node.op_type in ("Mul", "Div"):
            return any(value is not None and self._is_number(value) for value in node.inputs)
        if node.op_type == "Concat":
            return self._joins(node, op, deep)
        if node.op_type == "Pad":
            return "Pad" in self.through or (op.op_type in self.table.pads and self._pads_zeros(node))
        return node.op_type in self.through

    def _joins(self, concat: ir.Node, op: ir.Node, deep: int) -> bool:
        """Whether all inputs of a Concat come from DQs of one format and one scale."""
        if not deep:
            return False
        found = [self._follow(value, op, deep - 1) for value in concat.inputs if value is not None]
        if any(each.dequantizer is None or each.obstacle is not None for each in found):
            return False
        if len({each.format for each in found}) > 1:
            return False
        scales = [self.reading.number(each.scale) for each in found]
        first = scales[0]
        equal = all(scale is not None and first is not None and np.array_equal(scale, first) for scale in scales)
        return equal and first is not None and first.size == 1

    def _pads_zeros(self, pad: ir.Node) -> bool:
        """Whether a Pad adds zeros, or values of the tensor, along the axes behind the channels."""
        pads, value = self.reading.number(given(pad, 1)), self.reading.number(given(pad, 2))
        mode = pad.attributes.get("mode")
        constant = mode is None or mode.is_ref() or mode.as_string() == "constant"
        if pads is None or given(pad, 3) is not None or (constant and value is not None and np.any(value)):
            return False
        rank = pads.size // 2
        return not (pads[:2].any() or pads[rank : rank + 2].any())

    def _axis(self, operand: Operand) -> int:
        """Where the axis of a vector of scales has gone, moved along the steps from DQ to op."""
        assert operand.dequantizer is not None
        shape = self.reading.shape(operand.dequantizer.outputs[0])
        if shape is None:
            return UNKNOWN
        axis = attribute(operand.dequantizer, "axis", 1)
        axis = axis + len(shape) if axis < 0 else axis
        scales = self.reading.shape(operand.scale)
        if scales is not None and len(scales) == len(shape) > 1:
            # Of blocks: the axis along which there are several.
            axis = next((index for index, size in enumerate(scales) if size != 1), axis)
        for node in reversed(operand.steps):
            made = self.reading.shape(node.outputs[0])
            if made is None or axis >= len(shape):
                return UNKNOWN
            axis = _moved(node, axis, shape, made)
            if axis == UNKNOWN:
                return UNKNOWN
            shape = made
        return axis


def _reads_dequantized(node: ir.Node) -> bool:
    """Whether an op that is no product reads directly from a DQ: what it does hides the pair from its reader."""
    value = given(node, 0)
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "Cast":
        value = given(maker, 0)
        maker = value.producer() if value is not None else None
    return node.op_type not in PRODUCTS and is_dequantizer(maker)


def _moved(node: ir.Node, axis: int, before: Sequence[int | None], after: Sequence[int | None]) -> int:
    """The axis behind one move; UNKNOWN where it is split, joined with others, or cannot be told."""
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        order = list(perm.as_ints()) if perm is not None else list(range(len(before)))[::-1]
        return order.index(axis) if axis in order else UNKNOWN
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        # The axis stays whole where as many elements lie before it as after the move, and it is as long.
        if None in before or None in after:
            return axis if len(before) == len(after) and before[axis] == after[axis] is not None else UNKNOWN
        sizes, made = [size or 0 for size in before], [size or 0 for size in after]
        lead = math.prod(sizes[:axis])
        for index, size in enumerate(made):
            if math.prod(made[:index]) == lead and size == sizes[axis] and size > 1:
                return index
        return UNKNOWN
    if node.op_type == "Expand":
        return axis + len(after) - len(before)
    if node.op_type in ("Gather", "GatherND", "GatherElements"):
        return UNKNOWN if len(before) != len(after) or before[axis] != after[axis] else axis
    return axis if len(before) == len(after) else UNKNOWN
