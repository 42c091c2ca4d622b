"""Attention as ONNX itself writes it out, in place of ONNX Runtime's kernel on the CPU.

The kernel of 1.31.1 and 1.32.0 refuses masks that are broadcast along the queries, which exporters write for padding,
and gives other numbers than ONNX says for rows that a float mask hides throughout.
"""

from __future__ import annotations

import onnx_ir as ir

from fp8graph.graph import walk
from fp8graph.runners.expand.operators import written_out


def expand(model: ir.Model) -> ir.Model:
    """A copy without the operator Attention; the model itself where it has none. Weights are shared, not read."""
    if not any(_is_attention(place.node) for place in walk.walk(model)):
        return model
    return written_out(model, {"Attention"})


def _is_attention(node: ir.Node) -> bool:
    return node.op_type == "Attention" and node.domain in ("", "ai.onnx")
