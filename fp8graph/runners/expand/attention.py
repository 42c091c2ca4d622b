"""Attention as ONNX itself writes it out, in place of ONNX Runtime's kernel on the CPU.

The kernel of 1.31.1 refuses masks that are broadcast along the queries, which exporters write for padding, and gives
other numbers than ONNX says for rows that a float mask hides throughout.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx import inliner

from fp8graph.graph import protos, walk


def expand(model: ir.Model) -> ir.Model:
    """A copy without the operator Attention; the model itself where it has none. Weights are shared, not read."""
    if not any(_is_attention(place.node) for place in walk.walk(model)):
        return model
    proto, weights = protos.weightless(model)
    work = ir.from_proto(inliner.inline_selected_functions(proto, [("", "Attention")], inline_schema_functions=True))
    inputs = {value.name: value for value in work.graph.inputs}
    kept = {value.name for value in model.graph.inputs}
    for name, weight in weights.items():
        inputs[name].const_value = weight.const_value
    work.graph.inputs[:] = [value for value in work.graph.inputs if value.name in kept]
    for name in weights:
        work.graph.register_initializer(inputs[name])
    return work


def _is_attention(node: ir.Node) -> bool:
    return node.op_type == "Attention" and node.domain in ("", "ai.onnx")
