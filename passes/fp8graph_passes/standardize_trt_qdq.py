"""Spell TensorRT's own FP8 operators as ONNX's.

What it does   1. `TRT_FP8QuantizeLinear` becomes QuantizeLinear with `output_dtype`, `TRT_FP8DequantizeLinear` becomes
                  DequantizeLinear, in the domain `trt` or none; the opset is raised to 21, which has the attribute.
               2. QuantizeLinear and DequantizeLinear of the domain `trt` become ONNX's.
               3. Codes that are stored or described as uint8, as torch writes them, have their own type then.
               Functions that hold such an operator are inlined. MXFP8 and FP4 operators stay: TensorRT takes those in
               this form alone.
Why            Transformer Engine exports them. Type inference, ONNX Runtime and other passes know nothing of them, and
               weights behind them stay in high precision.
Exactness      exact: the same E4M3 codes, written in the standard's words
Codes          FG235 left: codes that come in as uint8, or an operator of another form
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.core.reading import ONNX, attribute, given
from fp8graph.graph import edit, opset, tensors, walk
from fp8graph.graph.inlining import inline

_DOMAIN = "trt"
_OWN = {"TRT_FP8QuantizeLinear": "QuantizeLinear", "TRT_FP8DequantizeLinear": "DequantizeLinear"}
_PLAIN = frozenset(_OWN.values())
_CODES = ir.DataType.FLOAT8E4M3FN
_LEAST = 21  # the first opset whose QuantizeLinear says its type by `output_dtype`
_MOVES = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})


@dataclass(frozen=True)
class StandardizeTrtQDQ(RewritePass):
    """TensorRT's FP8 Q/DQ become ONNX's."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Cases 1 to 3, each node in its place and under its names."""
        if not any(_is_one(place.node, model) for place in walk.walk(model)):
            return 0
        inline(model, lambda function: any(_is_one(node, model) for node in function.all_nodes()))
        for place in walk.walk(model):
            if _is_one(place.node, model):
                place.node.domain = _DOMAIN  # the converter keeps what is of a domain of its own
        model.graph.opset_imports.setdefault(_DOMAIN, 1)
        if opset.raise_opset(model, _LEAST):
            model.ir_version = max(model.ir_version, 10)  # the first that knows opset 21's types
        names, changed = edit.Names(model), 0
        for place in list(walk.walk(model)):
            if _is_one(place.node, model):
                changed += _spell(place, names, ctx)
        if all(place.node.domain != _DOMAIN for place in walk.walk(model)):
            del model.graph.opset_imports[_DOMAIN]
        return changed


def _is_one(node: ir.Node, model: ir.Model) -> bool:
    named = node.op_type in _OWN and node.domain in (_DOMAIN, *ONNX)
    return (named or (node.op_type in _PLAIN and node.domain == _DOMAIN)) and (
        node.op_identifier() not in model.functions
    )


def _spell(place: walk.Place, names: edit.Names, ctx: Context) -> int:
    """Renames one node; 0 and a note where its form is another than that of the standard."""
    node = place.node
    plain = node.op_type in _PLAIN
    if not plain and (len(node.inputs) != 2 or None in node.inputs[:2]):
        ctx.note("FG235", place.key, f"{node.op_type} has {len(node.inputs)} inputs, and is known with 2")
        return 0
    if not plain and node.op_type == "TRT_FP8DequantizeLinear" and not _typed(node, names):
        text = f"the codes '{node.inputs[0].name if node.inputs[0] else ''}' come in as uint8"
        ctx.note("FG235", place.key, text)
        return 0
    if node.op_type == "TRT_FP8QuantizeLinear":
        node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(_CODES))
        _retype(node.outputs[0])
    node.op_type, node.domain = _OWN.get(node.op_type, node.op_type), ""
    output, scale = node.outputs[0], given(node, 1)
    if node.op_type == "DequantizeLinear" and output.dtype is None and scale is not None and scale.dtype is not None:
        # Type inference knew nothing of it, and the passes behind this one are to.
        output.type = ir.TensorType(ir.DataType(attribute(node, "output_dtype") or scale.dtype))
    return 1


def _typed(node: ir.Node, names: edit.Names) -> bool:
    """Lets a DQ read stored codes as E4M3; whether what it reads is E4M3 now."""
    codes = node.inputs[0]
    assert codes is not None
    if tensors.is_constant(codes) and codes.dtype == ir.DataType.UINT8 and isinstance(codes.graph, ir.Graph):
        own = tensors.lazy_from(codes, names.fresh(f"{codes.name}_e4m3fn"), _viewed, dtype=_CODES)
        edit.replace_input(node, 0, edit.register(codes.graph, own))
        edit.drop_unused_initializer(codes)
        return True
    return codes.dtype != ir.DataType.UINT8


def _viewed(array: tensors.Array) -> tensors.Array:
    return array.view(ml_dtypes.float8_e4m3fn)


def _retype(value: ir.Value) -> None:
    """Codes that were said to be uint8 are E4M3, and so is what they are moved to."""
    pending = [value]
    while pending:
        each = pending.pop()
        each.type = ir.TensorType(_CODES)
        pending += [user.outputs[0] for user, slot in each.uses() if slot == 0 and user.op_type in _MOVES]
