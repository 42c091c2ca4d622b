"""Scales of activations that are found in the graph, from the values of each run.

Per tensor and per token: `x` is divided by its largest value, and the product multiplied by it. TensorRT-RTX 1.7.1
computes this form in FP8, a computed scale on Q it does not:

    a = max |x|     y = op(DQ(Q(x / a, 1 / max(format)), 1 / max(format)), ..) * a

Per block (a scale lies in the sum, so that it stays on Q and DQ):

    s = stored(max |x| of each block / max(format))     DQ(Q(x, s), s)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.core import quants
from fp8graph.data.plan import Quant
from fp8graph.formats.spec import Format
from fp8graph.graph import edit, tensors, walk
from fp8graph.numerics.scale import SMALLEST_SCALE

_FLOAT = ir.DataType.FLOAT


class Dynamic:
    """Writes the nodes of one op; all arithmetic is float32."""

    def __init__(self, place: walk.Place, names: edit.Names, scales: Sequence[str]) -> None:
        self.scales = scales
        assert isinstance(place.graph, ir.Graph)
        self.place, self.graph, self.names = place, place.graph, names
        self.nodes: list[ir.Node] = []

    def factored(self, value: ir.Value, quant: Quant, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
        """The operand divided by its largest value, behind Q/DQ, in `dtype`; and that value, float32, of the shape []
        or of `value` with 1 along the axis that is summed over.

        Nothing is above 1 then, so that sums of products of two such operands stay in fp16.
        """
        form, rank = formats.get(quant.format), len(value.shape or ())
        wide = self._cast(value, _FLOAT)
        axes = sorted(set(range(rank)) - {axis % rank for axis, _ in quant.granularity.blocks}) if rank else []
        per_token = bool(quant.granularity.blocks)
        size = self.add("Abs", wide)
        peak = self.add("ReduceMax", size, self._integers(axes) if per_token else None, keepdims=int(per_token))
        peak = self.add("Max", peak, self._number(float(SMALLEST_SCALE)))
        small = self.add("Div", wide, peak, shape=value.shape)
        step = self._number(quants.unit_scale(form.name))
        codes = self.add("QuantizeLinear", small, step, of=ir.DataType(form.onnx_type), output_dtype=form.onnx_type)
        codes.shape = value.shape
        return self._cast(self.add("DequantizeLinear", codes, step, shape=value.shape), dtype), peak

    def blocked(self, value: ir.Value, quant: Quant, dtype: ir.DataType) -> ir.Value:
        """The operand behind blocked Q/DQ with scales of this run, in `dtype`."""
        form = formats.get(quant.format)
        (axis, size), *more = [(axis, size) for axis, size in quant.granularity.blocks if size > 1]
        rank = len(value.shape or ())
        assert not more and value.shape is not None
        wide = self._cast(value, _FLOAT)
        axis %= rank
        cut = self._cut(self.add("Abs", wide), value.shape, axis, size)
        peak = self.add("ReduceMax", cut, self._integers([axis + 1]), keepdims=0)
        scale = self._stored(peak, form, quant)
        how: dict[str, Any] = {"axis": axis, "block_size": size}
        codes = self.add(
            "QuantizeLinear", wide, scale, of=ir.DataType(form.onnx_type), output_dtype=form.onnx_type, **how
        )
        codes.shape = value.shape
        if scale.dtype != _FLOAT:
            how["output_dtype"] = int(_FLOAT)  # else it would be that of the scales
        return self._cast(self.add("DequantizeLinear", codes, scale, shape=value.shape, **how), dtype)

    def _cut(self, absolute: ir.Value, shape: ir.Shape, axis: int, size: int) -> ir.Value:
        """Absolute values, their axis cut into blocks: the last is the rest, whose largest value zeros do not raise."""
        rank, length = len(shape), shape[axis]
        if not isinstance(length, int):
            return self._cut_open(absolute, rank, axis, size)
        missing = -length % size
        if missing:
            ends = [0] * rank + [missing if i == axis else 0 for i in range(rank)]
            absolute = self.add("Pad", absolute, self._integers(ends))
        # 0 takes a length over from the same place, which those behind the axis have left: one of them may be open.
        behind = [-1] if rank - axis == 2 else [int(str(n)) for n in shape[axis + 1 :]]
        return self.add("Reshape", absolute, self._integers([0] * axis + [(length + missing) // size, size, *behind]))

    def _cut_open(self, absolute: ir.Value, rank: int, axis: int, size: int) -> ir.Value:
        """The same for an axis whose length the graph finds."""
        whole = ir.DataType.INT64
        length = self.add("Shape", absolute, of=whole, start=axis, end=axis + 1)
        missing = self.add("Mod", self.add("Neg", length, of=whole), self._integers([size]), of=whole)
        before, after = self._integers([0] * (rank + axis)), self._integers([0] * (rank - axis - 1))
        ends = self.add("Concat", before, missing, after, of=whole, axis=0)
        filled = self.add("Pad", absolute, ends)
        heads = self.add("Shape", absolute, of=whole, start=0, end=axis)
        tails = self.add("Shape", absolute, of=whole, start=axis + 1, end=rank)
        lengths = self.add("Concat", heads, self._integers([-1, size]), tails, of=whole, axis=0)
        return self.add("Reshape", filled, lengths)

    def _stored(self, peak: ir.Value, form: Format, quant: Quant) -> ir.Value:
        """The scales of blocks, as they are stored."""
        stored = quant.scale.stored
        if stored.format is None:
            return self._ratio(peak, form)
        kind = formats.get(stored.format)
        if kind.kind == "exponent":
            divisor = 2.0**form.emax if stored.rule == "ocp" else float(form.max)
            ratio = self.add("Div", peak, self._number(divisor))
            ratio = self.add("Max", ratio, self._number(float(SMALLEST_SCALE)))
            mode = "down" if stored.rule == "ocp" else "up"
            codes = self.add("Cast", ratio, of=ir.DataType(kind.onnx_type), to=kind.onnx_type, round_mode=mode)
            return codes if stored.format in self.scales else self.add("Cast", codes, to=int(_FLOAT))
        assert quant.scale.value is not None
        outer = self._number(quant.scale.value)
        ratio = self.add("Div", peak, self._number(float(form.max)))
        least = float(kind.smallest_subnormal) * quant.scale.value
        ratio = self.add("Max", ratio, self._number(least))
        codes = self.add("QuantizeLinear", ratio, outer, of=ir.DataType(kind.onnx_type), output_dtype=kind.onnx_type)
        return self.add("DequantizeLinear", codes, outer)

    def rescaled(self, scales: Sequence[ir.Value]) -> None:
        """Multiplies the op's result by the scales of its operands, before its bias is added."""
        node = self.place.node
        out = node.outputs[0]
        bias = node.inputs[2] if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2 else None
        dtype = out.dtype
        assert dtype is not None
        self.nodes = []
        value = self._cast(out, _FLOAT)
        for scale in scales:
            value = self.add("Mul", value, scale, shape=out.shape)
        if bias is not None:
            node.replace_input_with(2, None)
            node.resize_inputs(2)  # builders take no empty input at the end
            value = self.add(
                "Add", value, self._bias(node, self._cast(bias, _FLOAT), len(out.shape or ())), shape=out.shape
            )
        last = self._cast(value, dtype)
        own = set(self.nodes)
        for user, slot in list(out.uses()):
            if user not in own:
                user.replace_input_with(slot, last)
        self.graph.insert_after(node, self.nodes)
        if out.is_graph_output():
            name = out.name
            out.name = self.names.fresh(f"{name}_unscaled")
            last.name, last.doc_string, last.shape = name, out.doc_string, out.shape
            last.metadata_props.update(out.metadata_props)
            for index, returned in enumerate(self.graph.outputs):
                if returned is out:
                    self.graph.outputs[index] = last

    def _bias(self, node: ir.Node, bias: ir.Value, rank: int) -> ir.Value:
        if node.op_type == "Gemm":
            beta = node.attributes.get("beta")
            factor = 1.0 if beta is None else beta.as_float()
            return bias if factor == 1.0 else self.add("Mul", bias, self._number(factor))
        return self.add("Reshape", bias, self._integers([1, -1, *[1] * (rank - 2)]))

    def _ratio(self, peak: ir.Value, form: Format) -> ir.Value:
        ratio = self.add("Div", peak, self._number(float(form.max)))
        return self.add("Max", ratio, self._number(float(SMALLEST_SCALE)))

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return value if value.dtype == dtype else self.add("Cast", value, of=dtype, shape=value.shape, to=int(dtype))

    def _number(self, value: float) -> ir.Value:
        assert math.isfinite(value)
        return edit.register(self.graph, tensors.constant(self.names.fresh("dynamic"), np.asarray(value, np.float32)))

    def _integers(self, values: Sequence[int]) -> ir.Value:
        return edit.register(
            self.graph, tensors.constant(self.names.fresh("dynamic_axes"), np.asarray(values, np.int64))
        )

    def add(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        of: ir.DataType = _FLOAT,
        shape: ir.Shape | None = None,
        **attributes: edit.AttributeValue,
    ) -> ir.Value:
        """One more node; the value that it makes."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        first = next((value for value in given if value is not None), None)
        base = f"{first.name if first is not None else 'dynamic'}_{op_type.lower()}"
        node = edit.new_node(
            op_type, given, self.names, output=base, shape=shape, dtype=of, attributes=attributes, serves=self.place.key
        )
        self.nodes.append(node)
        return node.outputs[0]


def is_block(quant: Quant) -> bool:
    """Whether the scales of an activation lie in the sum of the product."""
    return any(size > 1 for _, size in quant.granularity.blocks)
