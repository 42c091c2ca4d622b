"""Insert Q/DQ as the plan says, and store weights in their format.

What it does   1. A constant operand becomes an initializer of codes behind DequantizeLinear; the codes are computed
                  as the file is written.
               2. Any other operand gets QuantizeLinear and DequantizeLinear right behind its producer; equal Quants
                  share one pair in each graph that reads them.
               Scales are float32 (an fp16 scale is inexact below an amax of 0.03); an activation's scale has rank 0,
               for a Conv falls back on one of shape [1]. The format is said by `output_dtype`, without a zero point:
               the form in which ONNX Runtime removes no Relu.
Why            This is what an engine turns into FP8 arithmetic.
Exactness      it is the quantization itself
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.base.errors import InputError
from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.data.arrayref import ArrayRef
from fp8graph.data.plan import Adjust, High, OpKey, Quant
from fp8graph.formats.spec import Format
from fp8graph.graph import edit, tensors, walk
from fp8graph.numerics import cast, sidecar
from fp8graph.numerics.scale import channel_amax, scale_from_amax

Seat = tuple[ir.Value, Quant, ir.Graph | ir.Function]


@dataclass(frozen=True)
class InsertQDQ(RewritePass):
    """Carry out the plan's quantization."""

    stage: ClassVar[Stage] = Stage.QUANTIZE
    exact: ClassVar[Exactness] = Approximate("rounds operands to the plan's formats")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every quantized op of the plan once. Raises InputError FG212 for a weight that is not finite."""
        if ctx.plan is None:
            return 0
        work = _Insertion(model, ctx.plan.arrays)
        for place in list(walk.walk(model)):
            decision = ctx.plan.ops.get(place.key)
            for slot, quant in sorted(decision.inputs.items()) if decision is not None else ():
                assert decision is not None
                found = next((item for item in decision.adjust if item.kind == "codes" and item.slot == slot), None)
                work.quantize(place, slot, quant, decision.high, found)
        edit.drop_unused_initializers(work.replaced)
        return work.changes


class _Insertion:
    def __init__(self, model: ir.Model, arrays: Mapping[str, tensors.Array]) -> None:
        self.arrays = arrays
        self.names = edit.Names(model)
        # Codes and scale, once in each graph that reads the value: codes do not pass into a branch either.
        self.coded: dict[Seat, tuple[ir.Value, ir.Value]] = {}
        self.outputs: dict[tuple[Seat, High], ir.Value] = {}
        self.replaced: list[ir.Value] = []
        self.changes = 0

    def quantize(self, place: walk.Place, slot: int, quant: Quant, high: High, found: Adjust | None) -> None:
        value = place.node.inputs[slot]
        if value is None or value.graph is None or isinstance(value.graph, ir.Function):
            raise InputError(
                "the plan quantizes an input that is not there",
                where=f"op {place.key}, input {slot}",
                why="the op has no such input" if value is None else "it lies in a function",
                do="make a plan for this model: optimize without --plan",
                code="FG110",
            )
        # A pair in front of an If is lost on its way into the branch: every graph that reads a value has its own.
        seat = (value, quant, place.graph)
        done = self.outputs.get((seat, high))
        if done is None:
            constant = tensors.is_constant(value)
            if constant and seat not in self.coded:
                self._encode(place.graph, value, quant, found)
            done = self._weight(place, value, quant, high) if constant else self._activation(place, value, quant, high)
            self.outputs[seat, high] = done
        edit.replace_input(place.node, slot, done)
        self.changes += 1

    def _weight(self, place: walk.Place, value: ir.Value, quant: Quant, high: High) -> ir.Value:
        node = self._dequantize(self.coded[value, quant, place.graph], value, quant, high, place.key)
        place.graph.insert_before(place.node, [node])
        return node.outputs[0]

    def _encode(self, graph: ir.Graph | ir.Function, value: ir.Value, quant: Quant, found: Adjust | None) -> None:
        assert isinstance(graph, ir.Graph)
        form, granularity = formats.get(quant.format), quant.granularity
        array = tensors.read(value)
        amax = channel_amax(array, granularity)
        if not np.isfinite(amax).all():
            raise InputError("a weight holds a NaN or an infinity", where=f"initializer '{value.name}'", code="FG212")
        scale = np.asarray(scale_from_amax(amax, form), np.float32)
        shape = granularity.broadcast_shape(array.shape)

        solved = self._solved(value, array, found)
        tensors.release(value)

        def encoded(weight: tensors.Array) -> tensors.Array:
            if solved is not None:
                return sidecar.fetch(self.arrays, solved).view(cast.ml_dtype(form))
            return cast.encode(weight, form, scale.reshape(shape)).view(cast.ml_dtype(form))

        codes = tensors.lazy_from(
            value, self.names.fresh(f"{value.name}_{_suffix(form)}"), encoded, dtype=ir.DataType(form.onnx_type)
        )
        graph.register_initializer(codes)
        self.coded[value, quant, graph] = codes, self._scale(graph, value, scale)
        self.replaced.append(value)

    @staticmethod
    def _solved(value: ir.Value, array: tensors.Array, found: Adjust | None) -> ArrayRef | None:
        """Where a repair has solved for the codes, their name: on the very weight that they were solved for."""
        if found is None:
            return None
        if sidecar.weight_digest(array) != found.weight:
            raise InputError(
                f"the plan's codes were found by {found.rule} for another weight",
                where=f"initializer '{value.name}'",
                why="the weight's digest is not the one in the plan",
                do="make a plan for these weights",
                code="FG110",
            )
        return found.value

    def _activation(self, place: walk.Place, value: ir.Value, quant: Quant, high: High) -> ir.Value:
        form, graph = formats.get(quant.format), place.graph
        assert isinstance(graph, ir.Graph)
        seat = (value, quant, place.graph)
        if seat not in self.coded:
            if quant.scale.value is None:
                raise InputError(
                    "the plan holds no number for a scale",
                    where=f"tensor '{quant.value}'",
                    why=f"its scale is {quant.scale.origin}, and no data was seen",
                    do="give --data FILE, or --ranges FILE",
                    code="FG110",
                )
            scale = self._scale(graph, value, np.asarray(quant.scale.value, np.float32))
            node = edit.new_node(
                "QuantizeLinear",
                [value, scale],
                self.names,
                output=f"{value.name}_q",
                shape=value.shape,
                dtype=ir.DataType(form.onnx_type),
                attributes={"output_dtype": form.onnx_type},
                serves=place.key,
            )
            edit.insert_after(value, [node], graph)
            self.coded[seat] = node.outputs[0], scale
        codes, scale = self.coded[seat]
        node = self._dequantize((codes, scale), value, quant, high, place.key)
        edit.insert_after(codes, [node], graph)
        return node.outputs[0]

    def _dequantize(
        self, coded: tuple[ir.Value, ir.Value], value: ir.Value, quant: Quant, high: High, key: OpKey
    ) -> ir.Node:
        axes = [axis for axis, _ in quant.granularity.blocks]
        attributes = {"axis": axes[0]} if axes else {}
        return edit.new_node(
            "DequantizeLinear",
            coded,
            self.names,
            output=f"{value.name}_dq",
            shape=value.shape,
            dtype=tensors.ONNX[high],
            attributes=attributes,
            serves=key,
        )

    def _scale(self, graph: ir.Graph, value: ir.Value, scale: tensors.Array) -> ir.Value:
        constant = tensors.constant(self.names.fresh(f"{value.name}_scale"), scale)
        graph.register_initializer(constant)
        return constant


def _suffix(form: Format) -> str:
    return f"{'fp' if form.kind == 'float' else 'int'}{form.bits}"
