"""Writes matched parameters into a graph: codes behind DequantizeLinear, floats in their places, pairs on activations.

Codes lie in the graph's own layout, transposed where the exporter has folded a Transpose: an engine takes codes behind
DequantizeLinear alone (tensorrt_rtx 1.7.1 rejects an FP8 initializer behind Transpose). ONNX blocks run along one axis:
a block of 128x128 becomes 128 along the summed axis, its scale repeated for each output channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fp8graph import formats
from fp8graph.base.errors import InputError
from fp8graph.graph import edit, tensors, walk
from fp8graph.importers.declared import Declared
from fp8graph.importers.matching import PRODUCTS, Seat, Use, turned
from fp8graph.importers.names import scope_names
from fp8graph.importers.parameters import Parameter
from fp8graph.importers.weights import Weight
from fp8graph.numerics import cast

_ACTIVATION = "e4m3fn"
_MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast"})


@dataclass(frozen=True)
class Spelled:
    """A scale as DequantizeLinear wants it: its shape, and the attributes that say where it runs."""

    shape: tuple[int, ...]
    axis: int | None
    block_size: int


def spelled(weight: Weight, transposed: bool) -> Spelled:
    """How ONNX says the weight's granularity, in the graph's layout.

    [150, 136] in blocks of 128x128 -> scale [150, 2], axis 1, block_size 128; transposed: [2, 150], axis 0.
    """
    rank, shape = len(weight.block), list(weight.tensor.shape)
    many, along = _many(weight), _block_axis(weight)

    def seen(axis: int) -> int:
        return 2 * rank - 3 - axis if transposed and axis >= rank - 2 else axis

    if along is None:
        return Spelled((shape[many[0]],), seen(many[0]), 0) if many else Spelled((), None, 0)
    shape[along] = weight.scale.shape[along]
    return Spelled(tuple(shape[seen(axis)] for axis in range(rank)), seen(along), weight.block[along])


def scale_in(weight: Weight, transposed: bool) -> NDArray[np.float32]:
    """The scale, float32 in the shape of `spelled`: repeated along every axis but that of the blocks."""
    along, many = _block_axis(weight), _many(weight)
    out: NDArray[np.float32] = weight.scale
    for axis, size in enumerate(weight.tensor.shape):
        if axis != along and (along is not None or axis in many):
            out = np.repeat(out, weight.block[axis], axis).take(range(size), axis)
    return (
        np.ascontiguousarray(turned(out, transposed))
        if along is not None
        else out.reshape(spelled(weight, False).shape)
    )


def _many(weight: Weight) -> list[int]:
    """The axes along which there is more than one scale."""
    return [axis for axis, size in enumerate(weight.scale.shape) if size > 1]


def _block_axis(weight: Weight) -> int | None:
    """The axis that ONNX's blocks run along; None where one scale, or one for each index of an axis, says all.

    It is the summed one, which is a checkpoint's last, unless that has a scale for each of its indices.
    """
    many, last = _many(weight), len(weight.block) - 1
    if not many or (len(many) == 1 and (many[0] != last or weight.block[last] == 1)):
        return None
    return last if weight.block[last] > 1 else next((axis for axis in many if weight.block[axis] > 1), last)


class Placing:
    """One model, edited in place."""

    def __init__(self, model: ir.Model, declared: Declared, shared: Mapping[str, str]) -> None:
        """`shared`: parameters that are equal to another, whose place they have."""
        self.declared, self.shared = declared, shared
        self.names = edit.Names(model)
        self.order = {place.node: index for index, place in enumerate(walk.walk(model))}
        self.pairs: dict[tuple[ir.Value, float, int], ir.Value] = {}
        self.rounded: list[str] = []
        # scales of activations of weights that no product reads
        self.homeless: list[str] = []

    def place(self, seats: Iterable[Seat]) -> None:
        """Carries all seats out; those for some readers alone first, so that the others get the rest."""
        for seat in sorted(seats, key=lambda seat: seat.readers is None):
            readers = [use for use in (seat.readers or list(seat.value.uses())) if _reads(use, seat.value)]
            self._round_inputs(seat.parameter, readers)
            if seat.parameter.weight is not None:
                self._codes(seat, seat.parameter.weight, readers)
            else:
                self._mark(seat, readers)
                self._floats(seat, readers)
            edit.drop_unused_initializer(seat.value)

    def _mark(self, seat: Seat, readers: list[Use]) -> None:
        """Writes down of every product whether the checkpoint's config says that it was not to be quantized."""
        own = [seat.parameter.name, *(name for name, of in self.shared.items() if of == seat.parameter.name)]
        for node, slot in _products(readers):
            names = [*own, *scope_names(seat.value, node, slot)]  # a tied weight has the name of the embedding
            found = ((name.rpartition(".")[0], self.declared.keeper(name.rpartition(".")[0])) for name in names)
            module, key = next((pair for pair in found if pair[1]), ("", ""))
            if key:
                node.metadata_props[walk.HIGH] = f"the checkpoint's {key} names {module}"

    def _codes(self, seat: Seat, weight: Weight, readers: list[Use]) -> None:
        form, base, owner = formats.get(weight.format), seat.parameter.name, seat.value.graph
        assert isinstance(owner, ir.Graph) and seat.value.const_value is not None
        said, transposed = spelled(weight, seat.transposed), seat.transposed

        def codes() -> NDArray[np.generic]:
            return np.ascontiguousarray(turned(weight.codes(), transposed)).view(cast.ml_dtype(form))

        shape = tuple(seat.value.const_value.shape.numpy())
        stored = tensors.lazy(self.names.fresh(f"{base}_fp8"), shape, ir.DataType(form.onnx_type), codes)
        scale = tensors.lazy(
            self.names.fresh(f"{base}_scale"), said.shape, ir.DataType.FLOAT, lambda: scale_in(weight, transposed)
        )
        owner.register_initializer(stored)
        owner.register_initializer(scale)
        attributes = {"axis": said.axis} if said.axis is not None else {}
        attributes |= {"block_size": said.block_size} if said.block_size else {}
        for graph, uses in _by_graph(readers):
            node = edit.new_node(
                "DequantizeLinear",
                [stored, scale],
                self.names,
                output=f"{base}_dq",
                shape=ir.Shape(shape),
                dtype=seat.value.dtype,
                attributes=attributes,
            )
            graph.insert_before(min((user for user, _ in uses), key=self.order.__getitem__), [node])
            for user, slot in uses:
                edit.replace_input(user, slot, node.outputs[0])

    def _floats(self, seat: Seat, readers: list[Use]) -> None:
        """The checkpoint's numbers in the graph's type, under the initializer's name where it is for all readers."""
        value, source, transposed = seat.value, seat.parameter.tensor, seat.transposed
        assert value.dtype is not None and isinstance(value.graph, ir.Graph) and value.const_value is not None
        kind = tensors.NUMPY[tensors.FLOATS[value.dtype]]

        def numbers() -> NDArray[np.generic]:
            with np.errstate(over="ignore"):
                found = np.ascontiguousarray(turned(source.read(), transposed)).astype(kind)
            if not np.isfinite(found.astype(np.float32)).all():
                raise InputError(
                    "a weight of the checkpoint overflows the model's type",
                    where=source.where,
                    why=f"the model holds it in {kind}, whose largest number is {np.finfo(np.float16).max:g}",
                    do="export the model in float32 or bfloat16",
                    code="FG116",
                )
            return found

        name = value.name or "" if seat.readers is None else self.names.fresh(seat.parameter.name)
        made = tensors.lazy(name, tuple(value.const_value.shape.numpy()), value.dtype, numbers)
        if seat.readers is None:
            value.const_value = made.const_value
            return
        value.graph.register_initializer(made)
        for user, slot in readers:
            edit.replace_input(user, slot, made)

    def _round_inputs(self, parameter: Parameter, readers: list[Use]) -> None:
        """A Q/DQ pair on the other operand of every product that reads the weight; equal ones are one."""
        if parameter.input_scale is None:
            return
        products = list(_products(readers))
        for node, slot in products:
            other = 1 - slot if node.op_type in ("MatMul", "Gemm") else 0
            value, graph = node.inputs[other], node.graph
            if value is None or graph is None or tensors.is_constant(value):
                continue
            key = (value, float(parameter.input_scale), id(graph))
            if key not in self.pairs:
                self.pairs[key] = self._pair(value, parameter.input_scale, graph)
                self.rounded.append(value.name or "")
            edit.replace_input(node, other, self.pairs[key])
        if not products:
            self.homeless.append(parameter.name)

    def _pair(self, value: ir.Value, number: np.float32, graph: ir.Graph | ir.Function) -> ir.Value:
        assert isinstance(graph, ir.Graph)
        form, base = formats.get(_ACTIVATION), value.name or ""
        scale = tensors.constant(self.names.fresh(f"{base}_scale"), np.asarray(number, np.float32))
        graph.register_initializer(scale)
        quantize = edit.new_node(
            "QuantizeLinear",
            [value, scale],
            self.names,
            output=f"{base}_q",
            shape=value.shape,
            dtype=ir.DataType(form.onnx_type),
            attributes={"output_dtype": form.onnx_type},
        )
        dequantize = edit.new_node(
            "DequantizeLinear",
            [quantize.outputs[0], scale],
            self.names,
            output=f"{base}_dq",
            shape=value.shape,
            dtype=value.dtype,
        )
        edit.insert_after(value, [quantize, dequantize], graph)
        return dequantize.outputs[0]


def _reads(use: Use, value: ir.Value) -> bool:
    node, slot = use
    return node.inputs[slot] is value


def _by_graph(readers: list[Use]) -> list[tuple[ir.Graph, list[Use]]]:
    """Readers by the graph that they stand in: a pair in front of an If is lost on its way into the branch."""
    found: dict[int, tuple[ir.Graph, list[Use]]] = {}
    for node, slot in readers:
        if isinstance(node.graph, ir.Graph):
            found.setdefault(id(node.graph), (node.graph, []))[1].append((node, slot))
    return list(found.values())


def _products(readers: Iterable[Use]) -> Iterable[Use]:
    """Products that read a weight, directly or through data movement."""
    for node, slot in readers:
        if node.op_type in PRODUCTS and slot < 2:
            yield node, slot
        elif node.op_type in _MOVES and slot == 0:
            yield from _products(node.outputs[0].uses())
