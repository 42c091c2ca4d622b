"""Insert Q/DQ as the plan says, and store weights in their format.

What it does   1. A constant operand becomes an initializer of codes behind DequantizeLinear; the codes are computed
                  as the file is written, or are those that the weight came with.
               2. Any other operand gets QuantizeLinear and DequantizeLinear right behind its producer; equal Quants
                  share one pair in each graph that reads them.
               Scales are float32 (an fp16 scale is inexact below an amax of 0.03); an activation's scale has rank 0,
               for a Conv falls back on one of shape [1]. The format is said by `output_dtype`, without a zero point:
               the form in which ONNX Runtime removes no Relu.
Why            This is what an engine turns into FP8 arithmetic.
Exactness      it is the quantization itself
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.base.errors import InputError
from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.core.quants import contraction_axis
from fp8graph.core.terms import widened
from fp8graph.data.arrayref import ArrayRef
from fp8graph.data.plan import CAME, PAIR, Adjust, Decision, High, Quant
from fp8graph.graph import edit, given, tensors, walk
from fp8graph.numerics import cast, sidecar
from fp8graph.numerics.observed import peaks_of_weight
from fp8graph.numerics.scale import StoredScales, store_scales
from fp8graph_passes._dynamic import Dynamic, is_block
from fp8graph_passes._terms import Side, Terms

Channels = np.ndarray[Any, np.dtype[np.int64]]
# The last: channels that are there twice.
Seat = tuple[ir.Value, Quant, ir.Graph | ir.Function, bytes | None]


@dataclass(frozen=True)
class InsertQDQ(RewritePass):
    """Carry out the plan's quantization."""

    stage: ClassVar[Stage] = Stage.QUANTIZE
    exact: ClassVar[Exactness] = Approximate("rounds operands to the plan's formats")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every quantized op of the plan once. Raises InputError FG212 for a weight that is not finite."""
        if ctx.plan is None:
            return 0
        work = _Insertion(model, ctx.plan.arrays, ctx.target.scales)
        for place in list(walk.walk(model)):
            decision = ctx.plan.ops.get(place.key)
            if decision is None:
                continue
            work.carry_out(place, decision)
        edit.drop_unused_initializers(work.replaced)
        for node in dict.fromkeys(work.unread):
            edit.remove_unread(node)
        return work.changes


class _Insertion:
    def __init__(self, model: ir.Model, arrays: Mapping[str, tensors.Array], scales: Sequence[str]) -> None:
        self.scales = scales
        self.arrays = arrays
        self.names = edit.Names(model)
        # Codes and scale, once in each graph that reads the value: codes do not pass into a branch either.
        self.coded: dict[Seat, tuple[ir.Value, ir.Value]] = {}
        self.outputs: dict[tuple[Seat, High], ir.Value] = {}
        # Scales that are found in the graph: those that the result is yet to be multiplied by.
        self.factors: dict[ir.Value, ir.Value] = {}
        self.due: list[ir.Value] = []
        self.replaced: list[ir.Value] = []
        self.unread: list[ir.Node] = []
        self.changes = 0

    def carry_out(self, place: walk.Place, decision: Decision) -> None:
        """All operands of one op, and what repairs have found for it."""
        found = {(item.kind, item.slot): item for item in decision.adjust}
        terms = {
            slot: sidecar.fetch(self.arrays, item.value) for (kind, slot), item in found.items() if kind == "terms"
        }
        plain = dict(enumerate(place.node.inputs))
        for slot, quant in sorted(decision.inputs.items()):
            # Its channels are summed over once more where the other operand is in two terms.
            again = terms.get(1 - slot)
            self.quantize(place, slot, quant, decision.high, found.get(("codes", slot)), again)
        for slot, channels in sorted(terms.items()):
            if tensors.is_constant(plain[1 - slot]):
                self._hold_to(plain[1 - slot], found["terms", slot])
            self._split(place, slot, plain, decision, channels)
        bias = next((item for (kind, _), item in found.items() if kind == "bias"), None)
        if bias is not None:
            self._bias(place, plain[bias.slot], bias)
        self.rescale(place)

    def _split(
        self, place: walk.Place, slot: int, plain: Mapping[int, ir.Value | None], decision: Decision, channels: Channels
    ) -> None:
        """An operand in two terms, and the other one, where it is no weight, to match."""
        work = Terms(place, self.names)
        for at in (slot, 1 - slot):
            value, read, quant = plain[at], place.node.inputs[at], decision.inputs[at]
            assert value is not None and read is not None
            if tensors.is_constant(value):
                continue  # its codes are as long already
            # From the end where the rank is not known: of a MatMul alone.
            rank = None if value.shape is None else len(value.shape)
            axis = contraction_axis(place.node, at, 2) - 2 if rank is None else contraction_axis(place.node, at, rank)
            side = Side(value, read, self.coded[value, quant, place.graph, None][1], quant, axis)
            new = work.split(side, channels) if at == slot else work.repeated(side, channels)
            edit.replace_input(place.node, at, new)

    def _bias(self, place: walk.Place, weight: ir.Value | None, found: Adjust) -> None:
        """What a repair adds to a bias, in the type of the one that was there."""
        bias, graph = place.node.inputs[2], place.graph
        assert bias is not None and isinstance(graph, ir.Graph)
        self._hold_to(weight, found)
        plain = tensors.read(bias)
        array = (plain.astype(np.float32) + sidecar.fetch(self.arrays, found.value)).astype(plain.dtype)
        constant = tensors.constant(self.names.fresh(f"{bias.name}_corrected"), array)
        graph.register_initializer(constant)
        edit.replace_input(place.node, 2, constant)
        self.replaced.append(bias)
        self.changes += 1

    def quantize(
        self,
        place: walk.Place,
        slot: int,
        quant: Quant,
        high: High,
        found: Adjust | None = None,
        again: Channels | None = None,
    ) -> None:
        """One operand. `again`: channels of a weight that are there twice."""
        value = place.node.inputs[slot]
        if value is None or value.graph is None or isinstance(value.graph, ir.Function):
            raise InputError(
                "the plan quantizes an input that is not there",
                where=f"op {place.key}, input {slot}",
                why="the op has no such input" if value is None else "it lies in a function",
                do="make a plan for this model: optimize without --plan",
                code="FG110",
            )
        if quant.scale.rule == PAIR and (source := given.unlifted(value)) is not value:
            self.unread += [node for node in [value.producer()] if node is not None]
            value = source
        # A pair in front of an If is lost on its way into the branch: every graph that reads a value has its own.
        constant = tensors.is_constant(value)
        twice = again.tobytes() if constant and again is not None else None
        seat = (value, quant, place.graph, twice)
        done = self.outputs.get((seat, high))
        if done is None:
            if constant and seat not in self.coded:
                if quant.scale.rule == CAME:
                    self._keep(place, value, quant)
                else:
                    self._encode(place, slot, value, quant, found, again)
            if constant:
                done = self._weight(place, slot, seat, high)
            elif quant.scale.origin == "dynamic" or quant.granularity.blocks:
                done = self._dynamic(place, value, quant, high)
            else:
                done = self._activation(place, value, quant, high)
            self.outputs[seat, high] = done
        edit.replace_input(place.node, slot, done)
        if done in self.factors:
            self.due.append(self.factors[done])
        self.changes += 1

    def rescale(self, place: walk.Place) -> None:
        """Multiplies an op's result by the scales that its operands were divided by."""
        if self.due:
            Dynamic(place, self.names, self.scales).rescaled(self.due)
            self.due = []

    def _dynamic(self, place: walk.Place, value: ir.Value, quant: Quant, high: High) -> ir.Value:
        work = Dynamic(place, self.names, self.scales)
        if is_block(quant):
            self._number(quant)
            done = work.blocked(value, quant, tensors.ONNX[high])
        else:
            done, factor = work.factored(value, quant, tensors.ONNX[high])
            self.factors[done] = factor
        edit.insert_after(value, work.nodes, work.graph)
        return done

    def _weight(self, place: walk.Place, slot: int, seat: Seat, high: High) -> ir.Value:
        (codes, scale), value, quant = self.coded[seat], seat[0], seat[1]
        node = self._dequantize((codes, scale), value, quant, high, place, slot)
        place.graph.insert_before(place.node, [node])
        return node.outputs[0]

    def _keep(self, place: walk.Place, value: ir.Value, quant: Quant) -> None:
        """A weight that came as codes: these, under the scales that they came with; or both in the plan's format."""
        came, anew = given.of(value), quant.scale.origin == "computed"
        unlike = came is not None and came.format != quant.format
        if came is None or unlike != anew or came.granularity != quant.granularity:
            raise InputError(
                "the plan takes a weight's scales from the model, which has none like them",
                where=f"initializer '{value.name}'",
                why="it is no weight behind DequantizeLinear" if came is None else f"it came in {came.format}",
                do="make a plan for this model: optimize without --plan",
                code="FG110",
            )
        graph = place.graph
        assert isinstance(graph, ir.Graph)
        if anew:
            form, name = formats.get(quant.format), self.names.fresh(f"{value.name}_{formats.family(quant.format)}")
            kind, shape = ir.DataType(form.onnx_type), tuple(int(str(size)) for size in value.shape or ())
            codes = tensors.lazy(name, shape, kind, lambda: came.codes_in(form).view(cast.ml_dtype(form)))
            graph.register_initializer(codes)
            scales = came.scales_in(form)
        else:
            codes, scales = given.stored(came.codes, graph, self.names), came.scales
        self.coded[value, quant, graph, None] = codes, self._scale(graph, value, scales)
        self.replaced.append(value)

    def _encode(
        self,
        place: walk.Place,
        slot: int,
        value: ir.Value,
        quant: Quant,
        found: Adjust | None,
        again: Channels | None = None,
    ) -> None:
        graph = place.graph
        assert isinstance(graph, ir.Graph)
        form, granularity = formats.get(quant.format), quant.granularity
        array = tensors.read(value)
        amax = peaks_of_weight(array, granularity, form, quant.scale.rule)
        if not np.isfinite(amax).all():
            raise InputError("a weight holds a NaN or an infinity", where=f"initializer '{value.name}'", code="FG212")
        scales = store_scales(amax, form, quant.scale.stored)
        effective = np.asarray(scales.effective, np.float32)
        solved = None if found is None else self._solved(value, array, found)
        tensors.release(value)

        along_sum = contraction_axis(place.node, slot, array.ndim)

        def encoded(weight: tensors.Array) -> tensors.Array:
            if solved is not None:
                done = sidecar.fetch(self.arrays, solved)
            else:
                done = cast.encode(weight, form, effective, granularity)
            done = done if again is None else widened(done, again, along_sum, form)
            return done.view(cast.ml_dtype(form))

        name = self.names.fresh(f"{value.name}_{formats.family(form.name)}")
        shape, stored = array.shape, quant.scale.stored.format
        longer = {along_sum % array.ndim: len(again)} if again is not None else {}
        sizes = [size + longer.get(axis, 0) for axis, size in enumerate(shape)]
        codes = tensors.lazy_from(value, name, encoded, shape=sizes, dtype=ir.DataType(form.onnx_type))
        graph.register_initializer(codes)
        kind = cast.ml_dtype(formats.get(stored)) if stored is not None else None
        along = _along(quant, along_sum)
        scale = self._stored(place, value, quant, scales, lambda part: _one_axis(part, quant, shape, along), kind)
        self.coded[value, quant, graph, None if again is None else again.tobytes()] = codes, scale
        self.replaced.append(value)

    def _stored(
        self,
        place: walk.Place,
        value: ir.Value,
        quant: Quant,
        scales: StoredScales,
        spread: Callable[[tensors.Array], tensors.Array],
        kind: Any,
    ) -> ir.Value:
        """The scales of a weight in the format that they are stored in, and where there is one above, dequantized.

        ONNX blocks one axis: blocks of two have their scales repeated along the shorter way, the axis of outputs.
        """
        graph = place.graph
        assert isinstance(graph, ir.Graph)
        if scales.codes is None or (scales.outer is None and quant.scale.stored.format not in self.scales):
            return self._scale(graph, value, spread(np.asarray(scales.effective, np.float32)))
        codes = self._scale(graph, value, spread(scales.codes).view(kind))
        if scales.outer is None:
            return codes
        outer = self._scale(graph, value, np.asarray(scales.outer, np.float32))
        node = edit.new_node(
            "DequantizeLinear",
            [codes, outer],
            self.names,
            output=f"{value.name}_scale_dq",
            shape=codes.shape,
            dtype=ir.DataType.FLOAT,
            serves=value.name or "",
        )
        graph.insert_before(place.node, [node])
        return node.outputs[0]

    def _hold_to(self, value: ir.Value | None, found: Adjust) -> None:
        """Refuses what a repair has found for another weight than this."""
        assert value is not None
        self._solved(value, tensors.read(value), found)
        tensors.release(value)

    @staticmethod
    def _solved(value: ir.Value, array: tensors.Array, found: Adjust) -> ArrayRef:
        """The name of what a repair has found: for the very weight that it was solved for."""
        if sidecar.weight_digest(array) != found.weight:
            raise InputError(
                f"what {found.rule} has found in the plan was found for another weight",
                where=f"initializer '{value.name}'",
                why="the weight's digest is not the one in the plan",
                do="make a plan for these weights",
                code="FG110",
            )
        return found.value

    def _activation(self, place: walk.Place, value: ir.Value, quant: Quant, high: High) -> ir.Value:
        form, graph = formats.get(quant.format), place.graph
        assert isinstance(graph, ir.Graph)
        seat = (value, quant, place.graph, None)
        if seat not in self.coded:
            scale = self._scale(graph, value, np.asarray(self._number(quant), np.float32))
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
        node = self._dequantize((codes, scale), value, quant, high, place, None)
        edit.insert_after(codes, [node], graph)
        return node.outputs[0]

    @staticmethod
    def _number(quant: Quant) -> float:
        """The scale of an observed tensor. Raises InputError FG110 where the plan has none."""
        if quant.scale.value is None and quant.scale.origin != "dynamic":
            raise InputError(
                "the plan holds no number for a scale",
                where=f"tensor '{quant.value}'",
                why=f"its scale is {quant.scale.origin}, and no data was seen",
                do="give --data FILE, or --ranges FILE",
                code="FG110",
            )
        return quant.scale.value or 1.0

    def _dequantize(
        self,
        coded: tuple[ir.Value, ir.Value],
        value: ir.Value,
        quant: Quant,
        high: High,
        place: walk.Place,
        slot: int | None,
    ) -> ir.Node:
        blocks = quant.granularity.blocks
        attributes: dict[str, edit.AttributeValue] = {}
        if blocks and slot is not None and is_block(quant):
            axis = _along(quant, contraction_axis(place.node, slot, len(value.shape or ())))
            attributes = {"axis": axis, "block_size": dict(blocks)[axis]}
        elif blocks:
            attributes = {"axis": blocks[0][0]}
        if coded[1].dtype != ir.DataType.FLOAT:
            attributes["output_dtype"] = int(tensors.ONNX[high])  # else the output has the type of the scale
        key = place.key
        return edit.new_node(
            "DequantizeLinear",
            coded,
            self.names,
            output=f"{value.name}_dq",
            shape=coded[0].shape,
            dtype=tensors.ONNX[high],
            attributes=attributes,
            serves=key,
        )

    def _scale(self, graph: ir.Graph, value: ir.Value, scale: tensors.Array) -> ir.Value:
        constant = tensors.constant(self.names.fresh(f"{value.name}_scale"), scale)
        graph.register_initializer(constant)
        return constant


def _along(quant: Quant, contracted: int) -> int:
    """The axis that DequantizeLinear blocks: the one in blocks of more than one, of two the one that is summed over."""
    large = [axis for axis, size in quant.granularity.blocks if size > 1]
    return contracted if contracted in large or not large else large[0]


def _one_axis(scale: tensors.Array, quant: Quant, shape: tuple[int, ...], along: int) -> tensors.Array:
    """Scales repeated along all axes in blocks but `along`, as ONNX wants them."""
    for axis, size in quant.granularity.blocks:
        if size > 1 and axis != along:
            scale = np.repeat(scale, size, axis)[(slice(None),) * axis + (slice(0, shape[axis]),)]
    return scale
