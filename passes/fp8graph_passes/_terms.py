"""Writes the two terms of an operand (`fp8graph.core.terms`) in front of its op.

    lo     = 16 (x[channels] - DQ(Q(x))[channels])
    op(Concat(DQ(Q(x)), DQ(Q(lo))), Concat(DQ(Q(y)), DQ(Q(y[channels] / 16))))        y a weight: codes alone, longer

Both parts of an operand have one scale, so that Concat yields a tensor in FP8 with that scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.terms import FACTOR
from fp8graph.data.plan import Quant
from fp8graph.graph import edit, tensors, walk


@dataclass(frozen=True)
class Side:
    """One operand as it has been quantized: the float value, what is read now, its scale, its axis of channels."""

    value: ir.Value
    read: ir.Value
    scale: ir.Value
    quant: Quant
    axis: int


class Terms:
    """The nodes of one op, in front of it."""

    def __init__(self, place: walk.Place, names: edit.Names) -> None:
        assert isinstance(place.graph, ir.Graph)
        self.place, self.graph, self.names = place, place.graph, names

    def split(self, side: Side, channels: tensors.Array) -> ir.Value:
        """The operand with the second term of `channels` behind it."""
        exact, rounded = self._picked(side.value, side, channels), self._picked(side.read, side, channels)
        lost = self._add("Sub", side, exact, rounded, shape=exact.shape)
        return self._joined(side, self._times(side, lost, FACTOR))

    def repeated(self, side: Side, channels: tensors.Array) -> ir.Value:
        """The other operand with `channels` once more, smaller."""
        return self._joined(side, self._times(side, self._picked(side.value, side, channels), 1 / FACTOR))

    def _joined(self, side: Side, extra: ir.Value) -> ir.Value:
        form = formats.get(side.quant.format)
        kind = ir.DataType(form.onnx_type)
        codes = self._add("QuantizeLinear", side, extra, side.scale, of=kind, output_dtype=form.onnx_type)
        codes.shape = extra.shape
        again = self._add("DequantizeLinear", side, codes, side.scale, shape=extra.shape)
        return self._add("Concat", side, side.read, again, axis=side.axis)

    def _picked(self, value: ir.Value, side: Side, channels: tensors.Array) -> ir.Value:
        if value.dtype != side.read.dtype and side.read.dtype is not None:
            to = int(side.read.dtype)
            value = self._add("Cast", side, value, of=side.read.dtype, shape=value.shape, to=to)
        sizes = None if value.shape is None else list(value.shape)
        if sizes is not None and sizes[side.axis] == len(channels):
            return value  # all of them, which are in order
        index = self._constant(f"{value.name}_channels", np.asarray(channels, np.int64))
        found = self._add("Gather", side, value, index, axis=side.axis)
        if sizes is not None:
            sizes[side.axis] = len(channels)
            found.shape = ir.Shape(sizes)
        return found

    def _times(self, side: Side, value: ir.Value, factor: float) -> ir.Value:
        kind = (value.dtype or ir.DataType.FLOAT).numpy()
        return self._add("Mul", side, value, self._constant("term", np.asarray(factor, kind)), shape=value.shape)

    def _constant(self, name: str, array: tensors.Array) -> ir.Value:
        constant = tensors.constant(self.names.fresh(name), array)
        self.graph.register_initializer(constant)
        return constant

    def _add(
        self,
        op_type: str,
        side: Side,
        *inputs: ir.Value,
        of: ir.DataType | None = None,
        shape: ir.Shape | None = None,
        **attributes: int,
    ) -> ir.Value:
        node = edit.new_node(
            op_type,
            inputs,
            self.names,
            output=f"{side.value.name}_{op_type.lower()}",
            shape=shape,
            dtype=of or side.read.dtype,
            attributes=attributes,
            serves=self.place.key,
        )
        self.graph.insert_before(self.place.node, [node])
        return node.outputs[0]
