"""Observing tensors inside If, Loop and Scan: their ranges travel outwards as extra outputs.

A tensor of a body cannot be a graph output. Three numbers of it can be: its maximum, the maximum of its negative, and
whether it held a NaN. All three merge by maximum, so a body may run often, once or never:

    body       v -> [max v, max -v, any NaN]     Loop and Scan hand it on as a scan output, one row a run;
    around it  rows -> their maximum             If gets rows of "nothing seen" in its other branch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.graph import edit, tensors, walk
from fp8graph.numerics.ranges import Stat

_NOTHING = np.array([-np.inf, -np.inf, 0], np.float32)
_FLOAT = ir.DataType.FLOAT
_OWNERS = ("If", "Loop", "Scan")


def expose(view: ir.Model, needs: Sequence[str]) -> dict[str, str]:
    """Adds graph outputs to `view` (a copy) that tell the ranges of body tensors; output names by need.

    Needs of the main graph and those that are not found are left out.
    """
    wanted = {name for name in needs if "/" in name}
    if not wanted:
        return {}
    names = edit.Names(view)
    carried: dict[str, str] = {}
    for need, value in _travelled(view.graph, "", wanted, names).items():
        view.graph.outputs.append(value)
        carried[need] = value.name or ""
    return carried


def stat_of(rows: np.ndarray[Any, Any]) -> Stat:
    """The statistic that an output of `expose` tells: any number of rows of three."""
    if rows.size == 0:
        return Stat()
    high, low, nan = (float(x) for x in rows.reshape(-1, 3).astype(np.float32).max(axis=0))
    if high == -math.inf and low == -math.inf:
        return Stat()
    if nan > 0 or not (math.isfinite(high) and math.isfinite(low)):
        return Stat(1, 1)
    return Stat(1, 0, -low, high)


def _travelled(graph: ir.Graph, scope: str, wanted: set[str], names: edit.Names) -> dict[str, ir.Value]:
    """Values of this graph that tell the ranges of what lies in its bodies, by need."""
    found: dict[str, ir.Value] = {}
    for node in list(graph):
        if node.op_type not in _OWNERS or node.domain not in ("", "ai.onnx"):
            continue
        branches = [(f"{scope}{walk.first_output(node)}.{name}/", body) for name, body in walk.bodies(node)]
        told: list[dict[str, ir.Value]] = []
        for inner, body in branches:
            own = {need: _numbers(value, body, names) for need, value in _tensors(body, inner, wanted).items()}
            deeper = _travelled(body, inner, wanted, names)
            own |= {need: _merged(value, body, names) for need, value in deeper.items()}
            told.append(own)
        for need in [need for own in told for need in own]:
            for own, (_, body) in zip(told, branches, strict=True):
                body.outputs.append(own[need] if need in own else _nothing(body, names))
            found[need] = _extra_output(node, names)
    return found


def _tensors(body: ir.Graph, scope: str, wanted: set[str]) -> dict[str, ir.Value]:
    values = [*body.inputs, *(output for node in body for output in node.outputs)]
    return {scope + value.name: value for value in values if value.name and scope + value.name in wanted}


def _extra_output(node: ir.Node, names: edit.Names) -> ir.Value:
    node.resize_outputs(len(node.outputs) + 1)
    value = node.outputs[-1]
    value.name = names.fresh("fp8graph_range")
    value.type = ir.TensorType(_FLOAT)
    for attribute in ("scan_output_axes", "scan_output_directions"):
        if attribute in node.attributes:
            given = list(node.attributes[attribute].as_ints())
            node.attributes[attribute] = ir.AttrInt64s(attribute, [*given, 0])
    return value


class _Tail:
    """Appends nodes at a body's end."""

    def __init__(self, body: ir.Graph, names: edit.Names) -> None:
        self.body, self.names = body, names

    def op(self, op_type: str, *inputs: ir.Value, dtype: ir.DataType = _FLOAT, **attributes: int) -> ir.Value:
        node = edit.new_node(
            op_type, inputs, self.names, output="fp8graph_range", dtype=dtype, attributes=attributes, serves="?"
        )
        self.body.append(node)
        return node.outputs[0]

    def constant(self, array: tensors.Array) -> ir.Value:
        value = tensors.constant(self.names.fresh("fp8graph_constant"), array)
        self.body.register_initializer(value)
        return value


def _numbers(value: ir.Value, body: ir.Graph, names: edit.Names) -> ir.Value:
    """[max v, max -v, any NaN] of a float tensor of any rank."""
    tail = _Tail(body, names)
    wide = value if value.dtype == _FLOAT else tail.op("Cast", value, to=int(_FLOAT))
    flat = tail.op("Reshape", wide, tail.constant(np.array([-1], np.int64)))
    nan = tail.op("Cast", tail.op("IsNaN", flat, dtype=ir.DataType.BOOL), to=int(_FLOAT))
    parts = [tail.op("ReduceMax", item, keepdims=1) for item in (flat, tail.op("Neg", flat), nan)]
    return tail.op("Concat", *parts, axis=0)


def _merged(rows: ir.Value, body: ir.Graph, names: edit.Names) -> ir.Value:
    """The maximum of any number of rows, none included."""
    tail = _Tail(body, names)
    table = tail.op("Reshape", rows, tail.constant(np.array([-1, 3], np.int64)))
    full = tail.op("Concat", table, tail.constant(_NOTHING[None]), axis=0)
    return tail.op("ReduceMax", full, tail.constant(np.array([0], np.int64)), keepdims=0)


def _nothing(body: ir.Graph, names: edit.Names) -> ir.Value:
    tail = _Tail(body, names)
    return tail.op("Identity", tail.constant(_NOTHING))
