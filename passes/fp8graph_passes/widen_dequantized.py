"""Let DequantizeLinear give fp32 where a Cast behind it keeps FP8 from its reader.

What it does   DequantizeLinear with a scale in fp16 or bf16, and a Cast to another type behind it: the scale becomes
               fp32, and the Cast goes from fp32 to its type, or away where that is fp32. Other readers of the
               DequantizeLinear keep it as it was.
Why            Between DQ and a product, TensorRT-RTX 1.7.1 takes up Casts from fp32 down alone: any other turns the
               product back to high precision, without a word.
Exactness      approximate: the rounding of code times scale to the scale's type is left out
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.core.reading import ONNX, attribute, is_dequantizer
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.constants import number


@dataclass(frozen=True)
class WidenDequantized(RewritePass):
    """Casts behind DQ go from fp32 down, or not at all."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Approximate("one rounding to fp16 or bf16 is left out")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every Cast that reads a DQ of another half type; functions hold no initializers and are left."""
        names, changed = edit.Names(model), 0
        wide: dict[ir.Node, ir.Value] = {}
        for place in list(walk.walk(model)):
            node, graph = place.node, place.graph
            if node.op_type != "Cast" or node.domain not in ONNX or not isinstance(graph, ir.Graph):
                continue
            value = node.inputs[0]
            dequantizer = value.producer() if value is not None else None
            if dequantizer is None or not is_dequantizer(dequantizer) or not isinstance(dequantizer.graph, ir.Graph):
                continue
            to, scale = ir.DataType(attribute(node, "to")), dequantizer.inputs[1]
            array = number(scale)
            if scale is None or array is None or value is None or attribute(dequantizer, "output_dtype"):
                continue
            if scale.dtype not in tensors.HALF or to == scale.dtype or to not in tensors.FLOATS:
                continue
            if dequantizer not in wide:
                wide[dequantizer] = _widened(dequantizer, array.astype(np.float32), model.graph, names)
            if to == ir.DataType.FLOAT and not node.outputs[0].is_graph_output():
                edit.take_over(node.outputs[0], wide[dequantizer])
                edit.remove([node])
            else:
                edit.replace_input(node, 0, wide[dequantizer])
            if not value.uses() and not value.is_graph_output():
                edit.remove([dequantizer])
                edit.drop_unused_initializer(scale)
            changed += 1
        return changed


def _widened(node: ir.Node, scale: tensors.Array, graph: ir.Graph, names: edit.Names) -> ir.Value:
    """A twin of a DQ with its scale in fp32."""
    old = node.inputs[1]
    assert old is not None and node.graph is not None
    constant = edit.register(graph, tensors.constant(names.fresh(f"{old.name}_fp32"), scale))
    inputs = [node.inputs[0], constant, *node.inputs[2:]]
    output = node.outputs[0]
    name = names.fresh(f"{output.name}_fp32")
    value = ir.Value(name=name, shape=output.shape, type=ir.TensorType(ir.DataType.FLOAT))
    twin = ir.node(
        node.op_type, inputs, domain=node.domain, outputs=[value], name=names.fresh(f"{node.name or name}_fp32")
    )
    twin.attributes.update(node.attributes)
    twin.metadata_props.update(node.metadata_props)
    node.graph.insert_after(node, [twin])
    return value
