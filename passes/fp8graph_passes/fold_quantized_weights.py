"""Store a weight that a QuantizeLinear reads as the codes that it makes.

With c = encode(w / s):   DQ(Q(w, s), s) = DQ(c, s),   bit for bit.

What it does   A QuantizeLinear to FP8 on a constant, with a constant scale (one, along an axis, or in blocks along one)
               and no zero point but 0, becomes its codes; a Cast between the two is done first. The DequantizeLinear
               behind it, and its scale, stay.
Why            ModelOpt, Transformer Engine and fake quantization leave weights in fp32, fp16 or bf16 in front of
               QuantizeLinear: a file of four times the size that the builder rounds itself, and some with the rounded
               reciprocal of the scale.
Exactness      exact: the codes of QuantizeLinear, computed in fp32 (`fp8graph.numerics.cast.encode`)
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.core.reading import ONNX, attribute, given
from fp8graph.formats.spec import Format, Granularity, PerAxis, PerBlock, PerTensor
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.constants import number
from fp8graph.numerics import cast


@dataclass(frozen=True)
class FoldQuantizedWeights(RewritePass):
    """Weights behind QuantizeLinear become FP8 codes."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every such QuantizeLinear, in bodies too; functions hold no initializers. Weights are read when written."""
        names, changed = edit.Names(model), 0
        stored: dict[Hashable, ir.Value] = {}
        for place in list(walk.walk(model)):
            node, graph = place.node, place.graph
            found = _read(node) if isinstance(graph, ir.Graph) else None
            if found is None or node.outputs[0].is_graph_output():
                continue
            weight, dtype = _source(node)
            assert weight is not None and dtype is not None
            format, scale, granularity = found
            key = (weight, dtype, format.name, scale.tobytes(), scale.shape, granularity)
            if key not in stored:
                stored[key] = _codes(weight, dtype, format, scale, granularity, names)
            before = [weight, *(value for value in node.inputs if value is not None)]
            maker = before[1].producer()
            edit.take_over(node.outputs[0], stored[key])
            edit.remove([node])
            if maker is not None and not maker.outputs[0].uses() and not maker.outputs[0].is_graph_output():
                edit.remove([maker])
            edit.drop_unused_initializers(before)
            changed += 1
        return changed


def _source(node: ir.Node) -> tuple[ir.Value | None, ir.DataType | None]:
    """The constant that a QuantizeLinear reads, and the type in which it does: another than its own behind a Cast."""
    value = given(node, 0)
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "Cast" and maker.domain in ONNX:
        return given(maker, 0), ir.DataType(attribute(maker, "to"))
    return value, value.dtype if value is not None else None


def _read(node: ir.Node) -> tuple[Format, tensors.Array, Granularity] | None:
    """Format, scale in float32 and its granularity; None for what is not folded."""
    if node.op_type != "QuantizeLinear" or node.domain not in ONNX:
        return None
    (weight, dtype), zero = _source(node), given(node, 2)
    format = tensors.word(zero.dtype if zero is not None else ir.DataType(attribute(node, "output_dtype")))
    scale, shape = number(given(node, 1)), tensors.dims(weight)
    if weight is None or not tensors.is_constant(weight) or not {weight.dtype, dtype} <= {*tensors.PLAIN}:
        return None
    if formats.family(format) != "fp8" or scale is None or shape is None or not isinstance(weight.graph, ir.Graph):
        return None
    if not attribute(node, "saturate", 1) or attribute(node, "precision", 1) != ir.DataType.FLOAT:
        return None
    shift = number(zero)
    if zero is not None and (shift is None or np.any(shift.astype(np.float32))):
        return None
    sizes = tuple(size or 0 for size in shape)
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size")
    granularity = PerTensor()
    if block and scale.ndim == len(sizes):
        granularity = PerBlock(axis % len(sizes), block, len(sizes))
    elif scale.size > 1 or (scale.ndim and sizes[axis] == 1):
        granularity = PerAxis(axis % len(sizes))
    elif not block:
        scale = scale.reshape(())
    if scale.shape != granularity.scale_shape(sizes):
        return None
    return formats.get(format), scale.astype(np.float32), granularity


def _codes(
    weight: ir.Value,
    dtype: ir.DataType,
    format: Format,
    scale: tensors.Array,
    granularity: Granularity,
    names: edit.Names,
) -> ir.Value:
    """The codes of a weight as an initializer beside it; computed when they are read or written."""

    def encoded(array: tensors.Array) -> tensors.Array:
        with np.errstate(over="ignore"):  # an infinity saturates
            read = array.astype(dtype.numpy(), copy=False)
        return cast.encode(read, format, scale, granularity).view(cast.ml_dtype(format))

    made = ir.DataType(format.onnx_type)
    codes = tensors.lazy_from(weight, names.fresh(f"{weight.name}_{format.name}"), encoded, dtype=made)
    assert isinstance(weight.graph, ir.Graph)
    return edit.register(weight.graph, codes)
