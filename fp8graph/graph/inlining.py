"""Inlining some functions and everything that calls them."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from fp8graph.graph import walk


def inline(model: ir.Model, wanted: Callable[[ir.Function], bool]) -> None:
    """Inlines in place the functions that are wanted, and those that call them; all others stay functions."""
    needed = {identifier for identifier, function in model.functions.items() if wanted(function)}
    size = -1
    while size != len(needed):
        size = len(needed)
        for identifier, function in model.functions.items():
            if any(node.op_identifier() in needed for node in function.all_nodes()):
                needed.add(identifier)
    if not needed:
        return
    # A call may leave out the last outputs, which onnx_ir 1.1 does not expect.
    for place in walk.walk(model):
        if place.node.op_identifier() in needed:
            called = model.functions[place.node.op_identifier()]
            if len(place.node.outputs) < len(called.outputs):
                place.node.resize_outputs(len(called.outputs))
    InlinePass(criteria=lambda function: function.identifier() in needed)(model)
