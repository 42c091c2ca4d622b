"""Spell Casts to and from FP8, and the scales beside them, as QuantizeLinear and DequantizeLinear.

With decode exact, and one rounding in each step on either side, bit for bit:
    Cast(x, FP8) = Q(x, 1)          Cast(codes, float) = DQ(codes, 1)
    Q(x / s, 1) = Q(x, s)           DQ(codes, 1) s = DQ(codes, s)

What it does   1. A Cast from float to FP8 that saturates becomes QuantizeLinear, one from FP8 to float becomes
                  DequantizeLinear, with scale 1.
               2. A Mul by a constant behind such a DequantizeLinear becomes its scale.
               3. A Div by a constant in front of such a QuantizeLinear becomes its scale, in fp32: in fp16 and bf16 the
                  quotient is rounded before it is encoded, and stays.
               4. A Clip there that cuts nothing but what saturation would goes.
               The opset is raised to 21, the first whose QuantizeLinear says its type by an attribute.
               A list of scales is taken over for weights, along one axis, and scales that are repeated over blocks of
               an axis (torch's repeat_interleave) become blocks. A scale that is computed stays as the Mul it is
               (`hoist-dynamic-scales` moves it behind a product).
Why            torch exports its float8 as Div, Clip, Cast, Cast, Mul. TensorRT takes FP8 from QuantizeLinear alone, so
               that such a model is not built at all.
Exactness      exact: the rounding to FP8 and the one of the product are all there is, before and after
Codes          FG235 left: what stays as it came, and why
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.core.reading import ONNX, attribute, given, is_quantizer
from fp8graph.graph import edit, opset, tensors, walk
from fp8graph.graph.constants import constants, number

_LEAST = 21  # has `output_dtype`


@dataclass(frozen=True)
class StandardizeFp8Casts(RewritePass):
    """Casts to and from FP8 become Q/DQ, with the scales beside them."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Cases 1 to 4, in the main graph and in bodies; functions hold no initializers and are left."""
        if not any(_turns_fp8(place.node) for place in walk.walk(model) if isinstance(place.graph, ir.Graph)):
            return 0
        if opset.raise_opset(model, _LEAST):
            model.ir_version = max(model.ir_version, 10)  # the first that knows opset 21's types
        work = _Spelling(model, ctx)
        places = [place for place in walk.walk(model) if isinstance(place.graph, ir.Graph)]
        # Scales are looked for when every Cast has become Q or DQ: their readers come later in the graph.
        return sum(map(work.cast, places)) + sum(map(work.scale, places))


class _Spelling:
    """What is known of one model while it is spelled anew; `made` holds the Q and DQ with scale 1."""

    def __init__(self, model: ir.Model, ctx: Context) -> None:
        self.graph, self.ctx, self.names = model.graph, ctx, edit.Names(model)
        self.known = constants(model)
        self.made: set[ir.Node] = set()
        self.scales: dict[Hashable, ir.Value] = {}

    def cast(self, place: walk.Place) -> int:
        """Case 1, and case 4 where what is cast comes from a Clip."""
        node = place.node
        if not _turns_fp8(node):
            return 0
        value, to = node.inputs[0], ir.DataType(attribute(node, "to"))
        assert value is not None and value.dtype is not None
        of = value.dtype
        if to in tensors.PLAIN:
            codes = self._turned(value)
            self.made.add(self._put(node, "DequantizeLinear", codes, self._one(to), to))
            if codes is not value:
                self._tidy(value)
            return 1
        source, clipped = _unclipped(value, float(formats.get(tensors.word(to)).max)), 1
        if source is None:
            source, clipped = value, 0
        if not clipped and not attribute(node, "saturate", 1):
            text = "the Cast to FP8 does not saturate: what is too large becomes NaN, and engines know no such Q"
            self.ctx.note("FG235", place.key, text, severity="warning")
            return 0
        self.made.add(self._put(node, "QuantizeLinear", source, self._one(of), to, output_dtype=int(to)))
        self._tidy(value)
        return 1 + clipped

    def _turned(self, value: ir.Value) -> ir.Value:
        """Codes behind a Transpose of stored ones as such: engines take codes in front of DequantizeLinear alone."""
        node = value.producer()
        source = given(node, 0) if node is not None else None
        if node is None or node.op_type != "Transpose" or node.domain not in ONNX or not tensors.is_constant(source):
            return value
        assert source is not None and isinstance(node.graph, ir.Graph)
        axes = range(len(source.shape or ()))
        perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else list(reversed(axes))
        moved = tensors.moved(source, perm)
        moved.name = self.names.fresh(f"{value.name}_codes")
        self.known.add(id(moved))
        return edit.register(node.graph, moved)

    def scale(self, place: walk.Place) -> int:
        """Cases 2 and 3: at a Mul behind a DQ, or at a Div in front of a Q, that `cast` has made."""
        node = place.node
        if node.graph is None or node.op_type not in ("Mul", "Div") or node.domain not in ONNX:
            return 0
        if node.op_type == "Div":
            readers = [user for user, slot in node.outputs[0].uses() if user in self.made and slot == 0]
            return sum(self._divide(node, user) for user in readers if is_quantizer(user))
        for slot in (0, 1):
            value = node.inputs[slot]
            maker = value.producer() if value is not None else None
            if maker in self.made and not is_quantizer(maker):
                assert maker is not None
                return self._multiply(place, maker, node.inputs[1 - slot])
        return 0

    def _multiply(self, place: walk.Place, dequantize: ir.Node, factor: ir.Value | None) -> int:
        node, old, codes = place.node, dequantize.outputs[0], dequantize.inputs[0]
        assert codes is not None and old.dtype is not None
        found = self._scale(factor, codes)
        if found is None:
            text = "the scale behind the FP8 tensor is computed, in blocks, or no positive number: it stays a Mul"
            self.ctx.note("FG235", place.key, text)
            return 0
        scale, axes = found
        self._put(node, "DequantizeLinear", codes, scale, old.dtype, **axes)
        self._tidy(old)
        if factor is not None:
            self._tidy(factor)
        return 1

    def _divide(self, node: ir.Node, quantize: ir.Node) -> int:
        source, factor, old = node.inputs[0], node.inputs[1], quantize.outputs[0]
        if source is None or factor is None or source.dtype != ir.DataType.FLOAT or old.dtype is None:
            return 0
        found = self._scale(factor, source)
        if found is None:
            return 0
        scale, axes = found
        self._put(quantize, "QuantizeLinear", source, scale, old.dtype, output_dtype=int(old.dtype), **axes)
        self._tidy(node.outputs[0])
        self._tidy(factor)
        return 1

    def _scale(self, factor: ir.Value | None, of: ir.Value) -> tuple[ir.Value, dict[str, int]] | None:
        """A factor as a scale of the tensor `of`, with the axis that it lies along; None where it is none."""
        array, shape = number(factor), tensors.dims(of)
        if factor is None or array is None or shape is None or array.ndim > len(shape):
            return None
        if not (np.isfinite(array) & (array > 0)).all():
            return None
        sizes = (1,) * (len(shape) - array.ndim) + array.shape
        axes = [axis for axis, size in enumerate(sizes) if size != 1]
        if not axes:
            return self._constant(f"{factor.name}_scalar", array.reshape(()), factor), {}
        if len(axes) == 2 == len(shape) and sizes == shape and self._is_weight(of):
            return self._blocks(array, factor)
        # Along the sum of a product no engine can apply scales of an activation: they stay in front of it.
        if len(axes) > 1 or shape[axes[0]] != sizes[axes[0]] or not self._is_weight(of):
            return None
        return self._constant(f"{factor.name}_list", array.reshape(-1), factor), {"axis": axes[0]}

    def _blocks(self, array: tensors.Array, factor: ir.Value) -> tuple[ir.Value, dict[str, int]] | None:
        """Scales of each element as blocks along the axis where equal ones are longest, the last of two such."""
        axis = max((0, 1), key=lambda each: (_run(array, each), each))
        size = _run(array, axis)
        if size < 2:
            return None
        blocks = np.ascontiguousarray(array[(slice(None),) * axis + (slice(None, None, size),)])
        if blocks.shape[axis] == 1:
            return self._constant(f"{factor.name}_list", blocks.reshape(-1), factor), {"axis": 1 - axis}
        return self._constant(f"{factor.name}_blocks", blocks, factor), {"axis": axis, "block_size": size}

    def _is_weight(self, value: ir.Value) -> bool:
        maker = value.producer()
        if is_quantizer(maker):
            assert maker is not None and maker.inputs[0] is not None
            value = maker.inputs[0]
        return id(value) in self.known

    def _constant(self, name: str, array: tensors.Array, like: ir.Value | None = None) -> ir.Value:
        """A scale as an initializer: the one that is there where it has the right shape, and each but once."""
        if like is not None and tensors.is_constant(like) and tensors.read(like).shape == array.shape:
            return like
        key = (name, str(array.dtype), array.shape, array.tobytes())
        if key not in self.scales:
            self.scales[key] = edit.register(self.graph, tensors.constant(self.names.fresh(name), array))
        value = self.scales[key]
        if value.graph is None:  # it was tidied away in between
            edit.register(self.graph, value)
        return value

    def _one(self, dtype: ir.DataType) -> ir.Value:
        return self._constant(f"one_{tensors.FLOATS[dtype]}", np.ones((), dtype.numpy()))

    def _put(
        self, old: ir.Node, op_type: str, value: ir.Value, scale: ir.Value, dtype: ir.DataType, **attributes: int
    ) -> ir.Node:
        """A Q or DQ in the place of a node, under its names."""
        output = ir.Value(shape=old.outputs[0].shape, type=ir.TensorType(dtype))
        node = ir.node(op_type, [value, scale], attributes=dict(attributes), outputs=[output], name=old.name)
        node.metadata_props.update(old.metadata_props)
        assert old.graph is not None
        old.graph.insert_after(old, [node])
        edit.take_over(old.outputs[0], output, rename=True)
        before = [each for each in old.inputs if each is not None]
        edit.remove([old])
        self.made.discard(old)
        edit.drop_unused_initializers(before)
        return node

    def _tidy(self, value: ir.Value) -> None:
        """Removes what made a value that nothing reads any more."""
        maker = value.producer()
        if value.uses() or value.is_graph_output():
            return
        if maker is None:
            edit.drop_unused_initializer(value)
        elif all(not each.uses() and not each.is_graph_output() for each in maker.outputs):
            inputs = [each for each in maker.inputs if each is not None]
            edit.remove([maker])
            for each in inputs:
                self._tidy(each)


def _run(array: tensors.Array, axis: int) -> int:
    """The largest block along an axis in which all elements are equal; its length where all are."""
    other = tuple(each for each in range(array.ndim) if each != axis)
    changes = np.flatnonzero((np.diff(array, axis=axis) != 0).any(axis=other)) + 1
    return math.gcd(*changes.tolist()) if changes.size else array.shape[axis]


def _turns_fp8(node: ir.Node) -> bool:
    """Whether a node is a Cast from float to FP8, or from FP8 to float."""
    value = given(node, 0)
    if node.op_type != "Cast" or node.domain not in ONNX or value is None:
        return False
    of, to = value.dtype, ir.DataType(attribute(node, "to"))
    fp8 = [formats.family(tensors.word(dtype)) == "fp8" for dtype in (of, to)]
    return (fp8[0] and to in tensors.PLAIN) or (of in tensors.PLAIN and fp8[1])


def _unclipped(value: ir.Value, most: float) -> ir.Value | None:
    """What a Clip reads that cuts at `most` or beyond it; None for any other value. Saturation does the rest."""
    node = value.producer()
    if node is None or node.op_type != "Clip" or node.domain not in ONNX:
        return None
    low, high = number(given(node, 1)), number(given(node, 2))
    if low is None or high is None or not (float(low) <= -most and float(high) >= most):
        return None
    return node.inputs[0]
