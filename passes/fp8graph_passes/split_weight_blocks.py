"""Split products whose weight came with scales per block: one product for each block, and their sum.

    MatMul(x, W)     becomes     Sum over blocks i of what is summed over: MatMul(x[.., i], W[i, ..])

What it does   A MatMul or Gemm whose planned weight keeps the block scales that it came with becomes products with one
               scale per output channel each, and a Sum. Codes and scales are the model's own, cut. The activation is
               quantized once; a Split behind its DequantizeLinear, one for all readers, cuts it. The first product of
               a Gemm adds the bias. Where all lies in one block the scales alone are written otherwise.
Why            No kernel takes several scales along the axis that it sums over, and one scale per output channel means
               that the weight is rounded again. Split, nothing of it is lost. Whether that pays is the plan's choice.
Names          The Sum has the name and the key of the product; parts have its key with `~block0`, `~block1` behind it.
Limits         Weights of rank 2 whose blocks lie along the summed axis.
Exactness      approximate: each partial sum is rounded to the product's type before it is added
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.core.quants import contraction_axis
from fp8graph.core.reading import ONNX, attribute
from fp8graph.data.plan import CAME, Plan
from fp8graph.graph import edit, tensors, walk


@dataclass(frozen=True)
class SplitWeightBlocks(RewritePass):
    """One product for each block of a weight."""

    stage: ClassVar[Stage] = Stage.LEGALIZE
    exact: ClassVar[Exactness] = Approximate("partial sums are rounded to the product's type")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every product whose plan keeps the blocks of a weight, in bodies, too."""
        work, changed = _Splitting(model), 0
        for place in list(walk.walk(model)):
            slot = _given_slot(place, ctx.plan)
            blocked = _blocked(place.node, slot) if slot is not None else None
            if slot is not None and blocked is not None:
                work.split(place, slot, blocked)
                changed += 1
        edit.drop_unused_initializers(work.replaced)
        return changed


def _given_slot(place: walk.Place, plan: Plan | None) -> int | None:
    """The slot of a weight whose scales came with the model, where the other operand is quantized, too."""
    decision = plan.ops.get(place.key) if plan is not None else None
    if decision is None or place.node.op_type not in ("MatMul", "Gemm") or set(decision.inputs) != {0, 1}:
        return None
    quants = decision.inputs.items()
    return next((slot for slot, each in quants if each.scale.rule == CAME), None)


def _blocked(node: ir.Node, slot: int) -> ir.Node | None:
    """The DequantizeLinear of a weight with blocks along the axis that is summed over; None for any other."""
    made = walk.origin(node.inputs[slot], ("Cast",))
    if made is None or made.op_type != "DequantizeLinear" or made.domain not in ONNX:
        return None
    codes, scale = made.inputs[:2]
    if not (tensors.is_constant(codes) and tensors.is_constant(scale)) or len(tensors.dims(codes) or ()) != 2:
        return None
    along = contraction_axis(node, slot, 2)
    return made if attribute(made, "block_size") and attribute(made, "axis", 1) % 2 == along else None


class _Splitting:
    """Rewrites the products of one model; parts that several products read are written once in each graph."""

    def __init__(self, model: ir.Model) -> None:
        self.names = edit.Names(model)
        self.activations: dict[tuple[ir.Value, int, tuple[int, ...], int], Sequence[ir.Value]] = {}
        self.weights: dict[tuple[ir.Value, int], Sequence[ir.Value]] = {}
        self.replaced: list[ir.Value] = []

    def split(self, place: walk.Place, slot: int, blocked: ir.Node) -> None:
        """Puts products and their sum in the place of one product."""
        node, graph = place.node, place.graph
        assert isinstance(graph, ir.Graph)
        self.replaced += [value for value in blocked.inputs[:2] if value is not None]
        weight = node.inputs[slot]
        assert weight is not None
        if (weight, id(graph)) not in self.weights:
            self.weights[weight, id(graph)] = self._weight(place, weight, blocked)
        parts = self.weights[weight, id(graph)]
        if len(parts) == 1:
            edit.replace_input(node, slot, parts[0])
            above = weight.producer()
            assert above is not None
            edit.remove_unread(above)
            return
        along = contraction_axis(node, slot, 2)
        sizes = tuple((part.shape or ())[along] for part in parts)
        moving = self._activation(node, 1 - slot, tuple(int(str(size)) for size in sizes), graph)
        pairs = zip(*((moving, parts) if slot else (parts, moving)), strict=True)
        made = [self._product(place, index, pair) for index, pair in enumerate(pairs)]
        self._sum(place, made)

    def _weight(self, place: walk.Place, weight: ir.Value, blocked: ir.Node) -> list[ir.Value]:
        """The blocks of a weight, each behind a DequantizeLinear with one scale per output channel."""
        codes, scale = blocked.inputs[:2]
        assert codes is not None and scale is not None and isinstance(place.graph, ir.Graph)
        axis, size = attribute(blocked, "axis", 1) % 2, attribute(blocked, "block_size")
        length = (tensors.dims(codes) or ())[axis] or 0
        kept = {name: item for name, item in blocked.attributes.items() if name not in ("axis", "block_size")}
        ends = [*range(0, length, size), length]
        numbers, parts = tensors.read(scale), list[ir.Value]()
        for index, (begin, end) in enumerate(pairwise(ends)):
            cut = _cut(codes, self.names.fresh(f"{codes.name}_block{index}"), axis, begin, end)
            each = np.ascontiguousarray(numbers.take(index, axis))
            own = tensors.constant(self.names.fresh(f"{scale.name}_block{index}"), each)
            for value in (cut, own):
                place.graph.register_initializer(value)
            node = edit.new_node(
                "DequantizeLinear",
                [cut, own],
                self.names,
                output=f"{weight.name}_block{index}",
                shape=cut.shape,
                dtype=blocked.outputs[0].dtype,
                attributes={**kept, "axis": 1 - axis},
                serves=place.key,
            )
            place.graph.insert_before(place.node, [node])
            parts.append(self._retyped(place, node.outputs[0], weight.dtype))
        return parts

    def _retyped(self, place: walk.Place, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        """A value in the type that the product reads, where that is another one."""
        if dtype is None or value.dtype == dtype:
            return value
        node = edit.new_node(
            "Cast",
            [value],
            self.names,
            output=f"{value.name}_cast",
            shape=value.shape,
            dtype=dtype,
            attributes={"to": int(dtype)},
            serves=place.key,
        )
        place.graph.insert_before(place.node, [node])
        return node.outputs[0]

    def _activation(self, node: ir.Node, slot: int, sizes: tuple[int, ...], graph: ir.Graph) -> Sequence[ir.Value]:
        """The other operand in the same blocks, by a Split right behind it."""
        value = node.inputs[slot]
        assert value is not None
        # From the end, for the rank may not be known.
        axis = contraction_axis(node, slot, 2) - 2
        seat = (value, axis, sizes, id(graph))
        if seat not in self.activations:
            lengths = tensors.constant(self.names.fresh(f"{value.name}_blocks"), np.asarray(sizes, np.int64))
            graph.register_initializer(lengths)
            made = edit.new_node(
                "Split",
                [value, lengths],
                self.names,
                output=f"{value.name}_block0",
                dtype=value.dtype,
                attributes={"axis": axis},
                serves=walk.node_key(node),
            )
            made.resize_outputs(len(sizes))
            for index, output in enumerate(made.outputs):
                output.name = output.name or self.names.fresh(f"{value.name}_block{index}")
                output.type = value.type
                output.shape = _shortened(value.shape, axis, sizes[index])
            edit.insert_after(value, [made], graph)
            self.activations[seat] = made.outputs
        return self.activations[seat]

    def _product(self, place: walk.Place, index: int, pair: Sequence[ir.Value]) -> ir.Value:
        node = place.node
        # The bias is added once.
        operands = [*pair, *(node.inputs[2:] if index == 0 else ())]
        said = [item for item in node.attributes.items() if index == 0 or item[0] != "beta"]
        output = node.outputs[0]
        made = edit.new_node(
            node.op_type,
            operands,
            self.names,
            output=f"{output.name}_block{index}",
            shape=output.shape,
            dtype=output.dtype,
            attributes=dict(said),
        )
        made.name = self.names.fresh(f"{node.name}_block{index}") if node.name else made.name
        # Where the exporter says that it comes from, but for its stack: some kilobytes with paths of the author's.
        kept = {name: text for name, text in node.metadata_props.items() if not name.endswith("stack_trace")}
        made.metadata_props.update({**kept, walk.KEY: f"{place.key}~block{index}"})
        place.graph.insert_before(node, [made])
        return made.outputs[0]

    def _sum(self, place: walk.Place, parts: Sequence[ir.Value]) -> None:
        node, old = place.node, place.node.outputs[0]
        made = edit.new_node("Sum", parts, self.names, output=f"{old.name}_sum", shape=old.shape, dtype=old.dtype)
        made.name = node.name
        made.metadata_props.update({**node.metadata_props, walk.KEY: place.key})
        place.graph.insert_before(node, [made])
        edit.take_over(old, made.outputs[0], rename=True)
        edit.remove_unread(node)


def _cut(source: ir.Value, name: str, axis: int, begin: int, end: int) -> ir.Value:
    """A part of a constant of rank 2, read when it is written."""
    rows, columns = (size or 0 for size in tensors.dims(source) or ())
    assert source.dtype is not None

    def compute() -> tensors.Array:
        array = tensors.read(source)
        out = np.array(array[:, begin:end] if axis else array[begin:end], order="C")
        del array
        tensors.release(source)
        return out

    shape = (rows, end - begin) if axis else (end - begin, columns)
    return tensors.lazy(name, shape, source.dtype, compute)


def _shortened(shape: ir.Shape | None, axis: int, size: int) -> ir.Shape | None:
    """A shape with another length along one axis."""
    if shape is None:
        return None
    lengths = list(shape)
    lengths[axis] = size
    return ir.Shape(lengths)
