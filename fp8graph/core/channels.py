"""Factors moved between neighbours: a tensor's channels are divided by them, and the weights that read it multiplied.

    y = op(x, w)    with x = p(.., c), p homogeneous in c       ->       op(x / f, f w), x / f = p(.., c / f)

c are constants of what makes the tensor: gain and bias of a normalization, a vector that is multiplied or added, the
output channels of a product and its bias. Factors are powers of two, so that nothing is rounded, and what runs in high
precision stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fp8graph.base.errors import InputError
from fp8graph.core.products import product_of
from fp8graph.core.quants import contraction_axis
from fp8graph.data.plan import Adjust, OpKey, Plan
from fp8graph.graph import given, tensors, walk
from fp8graph.numerics import sidecar
from fp8graph.numerics.ranges import Ranges, Stat

Array = NDArray[Any]
# p(x / f) = p(x) / f for positive f, channel by channel: of their first input, the others are left alone.
_ALONG = frozenset({"Relu", "LeakyRelu", "Identity"})
_PLACES = frozenset({"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})
# Normalizations over the last axis, and over places: gain and bias are inputs 1 and 2.
_LAST = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_SECOND = frozenset({"BatchNormalization", "InstanceNormalization"})
_DEEP = 12


@dataclass(frozen=True)
class Spot:
    """A constant that is divided, along one of its axes."""

    value: ir.Value
    axis: int


@dataclass(frozen=True)
class Reader:
    """A product that reads the tensor: its weight is multiplied along the channels that it sums over."""

    node: ir.Node
    slot: int
    weight: int

    def spread(self, factors: Array) -> Array:
        """The factors as they broadcast over the weight.

        MatMul  [K]          -> [K, 1]
        Conv    [C], group g -> [O, C / g, 1, 1], for a depthwise one [O, 1, 1, 1]
        """
        shape = tensors.dims(self.node.inputs[self.weight])
        assert shape is not None
        rank = len(shape)
        group = self.node.attributes.get("group")
        groups = group.as_int() if group is not None and self.node.op_type == "Conv" else 1
        if groups == 1:
            along = contraction_axis(self.node, self.weight, rank)
            return factors.reshape([-1 if axis == along else 1 for axis in range(rank)])
        outputs = shape[0] or 0
        per = factors.reshape(groups, -1)[np.arange(outputs) // (outputs // groups)]
        return per.reshape(*per.shape, *(1,) * (rank - 2))


@dataclass(frozen=True)
class Group:
    """A tensor whose channels, those along `axis`, can be given other sizes: what makes it, and all that read it."""

    tensor: ir.Value
    axis: int
    spots: tuple[Spot, ...]
    readers: tuple[Reader, ...]

    def scaled(self, factors: Array) -> Iterator[tuple[ir.Value, Array]]:
        """Each constant with what it is multiplied by, as that broadcasts over it."""
        for spot in self.spots:
            rank = len(tensors.dims(spot.value) or ())
            yield spot.value, 1 / factors.reshape([-1 if axis == spot.axis else 1 for axis in range(rank)])
        for reader in self.readers:
            weight = reader.node.inputs[reader.weight]
            assert weight is not None
            yield weight, reader.spread(factors)


def group_of(tensor: ir.Value | None) -> Group | None:
    """The group of a tensor; None where something reads it that is no product with a weight of its own, or where what
    makes it cannot be scaled exactly."""
    if tensor is None or tensor.shape is None or tensor.is_graph_output() or tensor.producer() is None:
        return None
    readers, axes = [], set()
    for node, slot in tensor.uses():
        product = product_of(node) if node.graph is tensor.graph else None
        own = None if product is None else _own(node.inputs[product.weight])
        if product is None or product.activation != slot or own is None:
            return None
        readers.append(Reader(node, slot, product.weight))
        axes.add(contraction_axis(node, slot, len(tensor.shape)))
    if len(axes) != 1:
        return None
    axis = axes.pop()
    size = tensor.shape[axis]
    spots = _spots(tensor, axis, len(tensor.shape), size, _DEEP) if isinstance(size, int) else None
    return None if spots is None else Group(tensor, axis, tuple(spots), tuple(readers))


def _own(value: ir.Value | None) -> ir.Value | None:
    """A float constant that one op alone reads, and that did not come quantized; None for any other."""
    fine = tensors.is_constant(value) and value is not None and value.dtype in tensors.PLAIN
    if not fine or value is None or len(value.uses()) != 1 or value.is_graph_output() or given.of(value) is not None:
        return None
    return value if value.is_initializer() else None


def _spots(value: ir.Value, axis: int, rank: int, size: int, depth: int) -> list[Spot] | None:
    """What is to be divided for `value` to be; None where that cannot be done."""
    node = value.producer()
    if node is None or depth == 0 or node.outputs[0] is not value:
        return None
    kind, first = node.op_type, node.inputs[0] if node.inputs else None
    if kind in _LAST or (kind in _SECOND and node.domain in ("", "ai.onnx")):
        return _normalized(node, axis, rank, size)
    if node.domain not in ("", "ai.onnx") or first is None:
        return None
    if kind in _ALONG or (kind in _PLACES and axis == 1) or (kind == "Clip" and _from_zero(node)):
        return _above(first, axis, rank, size, depth)
    if kind in ("Add", "Mul", "Div") and len(node.inputs) == 2:
        return _elementwise(node, axis, rank, size, depth)
    return _of_product(node, axis, rank, size)


def _above(value: ir.Value | None, axis: int, rank: int, size: int, depth: int) -> list[Spot] | None:
    """The same of a value that nothing else reads."""
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    if value.shape is None or len(value.shape) != rank or value.shape[axis] != size:
        return None
    return _spots(value, axis, rank, size, depth - 1)


def _normalized(node: ir.Node, axis: int, rank: int, size: int) -> list[Spot] | None:
    if node.op_type in _LAST:
        over = node.attributes.get("axis")
        if axis != rank - 1 or (over is not None and over.as_int() % rank != axis):
            return None
    elif axis != 1:
        return None
    found = [_own(value) for value in node.inputs[1:3] if value is not None]
    held = [value for value in found if value is not None and tensors.dims(value) == (size,)]
    return [Spot(value, 0) for value in held] if held and len(held) == len(found) else None


def _from_zero(node: ir.Node) -> bool:
    """Whether a Clip cuts at 0 below and nowhere above."""
    bounds = [*node.inputs[1:3], None, None][:2]
    if any(value is not None and not tensors.is_constant(value) for value in bounds):
        return False
    low, high = (None if value is None else float(tensors.read(value)) for value in bounds)
    return low in (None, 0.0) and (high is None or high >= float(np.finfo(np.float32).max))


def _elementwise(node: ir.Node, axis: int, rank: int, size: int, depth: int) -> list[Spot] | None:
    """Mul: one of the factors. Div: what is divided. Add: a constant and what it is added to."""
    constants = [slot for slot in (0, 1) if tensors.is_constant(node.inputs[slot])]
    if len(constants) > 1 or (node.op_type == "Div" and constants == [0]):
        return None
    if not constants:
        if node.op_type == "Add":
            return None
        for slot in (1, 0) if node.op_type == "Mul" else (0,):
            found = _above(node.inputs[slot], axis, rank, size, depth)
            if found is not None:
                return found
        return None
    held, other = node.inputs[constants[0]], node.inputs[1 - constants[0]]
    spot = _vector(held, axis, rank, size)
    if node.op_type == "Mul" and spot is not None:
        return [spot]
    above = _above(other, axis, rank, size, depth)
    if node.op_type != "Add":
        return above
    return None if above is None or spot is None else [*above, spot]


def _vector(value: ir.Value | None, axis: int, rank: int, size: int) -> Spot | None:
    """A constant with an element for each channel."""
    own, shape = _own(value), tensors.dims(value)
    along = axis - (rank - len(shape or ()))
    fits = own is not None and shape is not None and along >= 0 and shape[along] == size
    return Spot(own, along) if fits and own is not None else None


def _of_product(node: ir.Node, axis: int, rank: int, size: int) -> list[Spot] | None:
    product = product_of(node)
    if product is None or product.activation != 0 or axis != (1 if node.op_type == "Conv" else rank - 1):
        return None
    weight = _own(node.inputs[product.weight])
    if weight is None:
        return None
    spots = [Spot(weight, product.out)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        lone = node.op_type == "Conv"  # its bias has the channels alone, a Gemm's broadcasts from behind
        bias = _vector(node.inputs[2], 0 if lone else axis, 1 if lone else rank, size)
        if bias is None:
            return None
        spots.append(bias)
    return spots


def factors(plan: Plan) -> dict[tuple[OpKey, int], Adjust]:
    """The factors that a plan has, by op and slot of the operand."""
    every = ((key, item) for key, op in plan.ops.items() for item in op.adjust)
    return {(key, item.slot): item for key, item in every if item.kind == "channels"}


def moved(plan: Plan) -> bool:
    """Whether a plan moves factors between neighbours."""
    return bool(factors(plan))


def peaks(plan: Plan, model: ir.Model, ranges: Ranges) -> dict[str, Stat]:
    """What the tensors that have factors reach with them, by name."""
    held, found = factors(plan), {}
    for place in walk.walk(model):
        for slot, tensor in enumerate(place.node.inputs):
            item = held.get((place.key, slot))
            group = group_of(tensor) if item is not None else None
            if item is None or group is None:
                continue
            name, by = plan.ops[place.key].inputs[slot].value, sidecar.fetch(plan.arrays, item.value)
            stat = ranges.values[name]
            top = float(np.max(stat.channels[group.axis].values / by, initial=0))
            found[name] = Stat(stat.count, 0, -top if stat.min < 0 else 0.0, top)
    return found


def move(model: ir.Model, plan: Plan | None) -> int:
    """Moves all factors of a plan in a normalized model that has none of them yet; the number of tensors that changed.

    Raises InputError FG110 where a weight is not the one that factors were found for, or a tensor cannot be scaled.
    """
    if plan is None or not moved(plan):
        return 0
    found: dict[ir.Value, Array] = {}
    for node, slot, array in _checked(model, plan, plan.arrays):
        tensor = node.inputs[slot]
        assert tensor is not None
        found.setdefault(tensor, array)
    for tensor, factors in found.items():
        group = group_of(tensor)
        if group is None or tensor.shape is None or tensor.shape[group.axis] != len(factors):
            what = "the plan scales channels of a tensor that cannot be scaled"
            do = "make a plan for this model: optimize without --plan"
            why = "other ops read or make it"
            raise InputError(what, where=f"tensor '{tensor.name}'", why=why, do=do, code="FG110")
        for value, by in group.scaled(factors):
            _rescale(value, by)
    return len(found)


def _checked(model: ir.Model, plan: Plan, arrays: Mapping[str, Array]) -> Iterator[tuple[ir.Node, int, Array]]:
    """Each op with factors, after all of their weights were held against what they were found for."""
    held = []
    for place in walk.walk(model):
        op = plan.ops.get(place.key)
        for item in op.adjust if op is not None else ():
            if item.kind != "channels":
                continue
            product, node = product_of(place.node), place.node
            weight = node.inputs[product.weight] if product is not None and product.activation == item.slot else None
            if weight is None or sidecar.weight_digest(tensors.read(weight)) != item.weight:
                raise InputError(
                    f"the plan's factors of channels were found by {item.rule} for another weight",
                    where=f"op {place.key}",
                    why="the weight's digest is not the one in the plan",
                    do="make a plan for these weights: optimize without --plan",
                    code="FG110",
                )
            tensors.release(weight)
            held.append((node, item.slot, sidecar.fetch(arrays, item.value)))
    yield from held


def _rescale(value: ir.Value, by: Array) -> None:
    """Multiplies a constant in place: one more lazy function on top of it."""
    changed = tensors.lazy_from(value, value.name or "", lambda array: array * by.astype(array.dtype))
    value.const_value = changed.const_value
