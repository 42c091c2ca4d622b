"""Write NVFP4 quantization of activations as TensorRT's own operator.

    codes, scales = TRT_FP4DynamicQuantize(x, outer)

What it does   A QuantizeLinear to E2M1 whose block scales are found in the graph (largest value of each block, divided
               by 6, stored in E4M3 below one float32 scale) becomes one node of the domain `trt` with two outputs; the
               DequantizeLinear of scales and codes stay, and what found the scales goes.
Why            TensorRT computes products in FP4 on this form alone, on chips from Blackwell on; written out in standard
               ops the scales are computed values, which no kernel takes.
Limits         Blocks of 16 along the last axis. ONNX Runtime has no such operator; the reference writes it out again.
Exactness      exact: the operator's own definition, written out, is what is replaced
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import edit, walk

DOMAIN, OP_TYPE = "trt", "TRT_FP4DynamicQuantize"
_FP4, _FP8 = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN


@dataclass(frozen=True)
class WriteFp4Quantization(RewritePass):
    """One TRT_FP4DynamicQuantize for each activation in NVFP4."""

    stage: ClassVar[Stage] = Stage.LEGALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every pair once, in bodies, too."""
        names, changed = edit.Names(model), 0
        for place in list(walk.walk(model)):
            scales = _stored_scales(place.node)
            if scales is not None:
                _write(place.node, scales, names)
                changed += 1
        if changed:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return changed


def _stored_scales(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear of the scales of an NVFP4 QuantizeLinear; None for any other node."""
    value, scale = [*node.inputs, None, None][:2]
    if node.op_type != "QuantizeLinear" or node.outputs[0].dtype != _FP4 or value is None or scale is None:
        return None
    how = {name: attribute.as_int() for name, attribute in node.attributes.items() if name in ("axis", "block_size")}
    last = len(value.shape) - 1 if value.shape is not None else -2
    outer = scale.producer()
    codes = outer.inputs[0] if outer is not None and outer.op_type == "DequantizeLinear" else None
    made = codes.producer() if codes is not None else None
    fits = how.get("block_size") == 16 and how.get("axis") in (-1, last)
    found = made is not None and made.op_type == "QuantizeLinear" and codes is not None and codes.dtype == _FP8
    return outer if fits and found else None


def _write(node: ir.Node, outer: ir.Node, names: edit.Names) -> None:
    graph, codes, stored = node.graph, node.outputs[0], outer.inputs[0]
    assert graph is not None and stored is not None and codes.name
    made = edit.new_node(
        OP_TYPE,
        [node.inputs[0], outer.inputs[1]],
        names,
        output=f"{codes.name}_fp4",
        shape=codes.shape,
        dtype=_FP4,
        attributes={"axis": -1, "block_size": 16, "scale_type": int(_FP8)},
        serves=node.metadata_props.get(walk.FOR, ""),
    )
    made.domain = DOMAIN
    made.resize_outputs(2)
    scales = made.outputs[1]
    scales.name = names.fresh(f"{codes.name}_scales")
    scales.type, scales.shape = ir.TensorType(_FP8), stored.shape
    before = stored.producer()
    assert before is not None
    graph.insert_before(before, [made])
    for user, slot in list(codes.uses()):
        user.replace_input_with(slot, made.outputs[0])
    for user, slot in list(stored.uses()):
        user.replace_input_with(slot, scales)
    edit.remove_unread(node)
    edit.remove_unread(before)
