"""Spell FP8 Q/DQ with one scale as TensorRT's own operators, as Transformer Engine does.

    QuantizeLinear to E4M3          TRT_FP8QuantizeLinear(x, scale)
    DequantizeLinear of E4M3        TRT_FP8DequantizeLinear(codes, scale)

What it does   Renames pairs with one scale, of rank 0 or a list of one, to the operators of the domain `trt`; a zero
               point, which can only be 0, goes. Scales per channel or block, other formats, and results of another type
               than that of the scale stay as they are: the operators have no words for them.
Why            For tools that know FP8 in Transformer Engine's words alone. Engines read both alike, so that no recipe
               runs it: `--passes write-trt-qdq`. `standardize-trt-qdq` is the way back. ONNX Runtime has no such
               operators, the reference has.
Exactness      exact: the same codes and the same scales, in other words
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.constants import number

_DOMAIN, _FP8 = "trt", ir.DataType.FLOAT8E4M3FN
_OWN = {"QuantizeLinear": "TRT_FP8QuantizeLinear", "DequantizeLinear": "TRT_FP8DequantizeLinear"}


@dataclass(frozen=True)
class WriteTrtQDQ(RewritePass):
    """ONNX's FP8 Q/DQ with one scale become TensorRT's."""

    stage: ClassVar[Stage] = Stage.LEGALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Each node in its place and under its names, in bodies and functions, too."""
        changed = 0
        for place in walk.walk(model):
            if _has_words(place.node):
                _spell(place.node)
                changed += 1
                if isinstance(place.graph, ir.Function):
                    place.graph.opset_imports.setdefault(_DOMAIN, 1)
        if changed:
            model.graph.opset_imports.setdefault(_DOMAIN, 1)
        return changed


def _has_words(node: ir.Node) -> bool:
    """Whether TensorRT's operator says the same as a Q or DQ."""
    if node.op_type not in _OWN or node.domain not in ("", "ai.onnx"):
        return False
    value, scale, zero = [*node.inputs, None, None, None][:3]
    codes, wide = (node.outputs[0], value) if node.op_type == "QuantizeLinear" else (value, node.outputs[0])
    if codes is None or codes.dtype != _FP8 or scale is None or wide is None or wide.dtype != scale.dtype:
        return False
    shape, off = tensors.dims(scale), number(zero) if zero is not None else np.zeros(1)
    one = shape is not None and len(shape) < 2 and math.prod(size or 0 for size in shape) == 1
    return one and off is not None and not np.any(off.astype(np.float32))


def _spell(node: ir.Node) -> None:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    node.resize_inputs(2)
    if zero is not None:
        edit.drop_unused_initializer(zero)
    node.attributes.clear()
    node.op_type, node.domain = _OWN[node.op_type], _DOMAIN
