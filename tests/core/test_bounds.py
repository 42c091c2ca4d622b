"""Bounds of masks: what may be infinite is never called finite."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from fp8graph.core.bounds import ACTIVATION, UNKNOWN, bounds, finite, in_type
from fp8graph.graph.protos import infer_types
from tests.small import model

INPUTS = "float[2,3] x, bool[2,3] b, int64[2,3] n, float[2] w_c, float[1] w_inf, float[1] w_nan, float[3,2] w_m"
WEIGHTS = {"w_c": [-3.0, 2.0], "w_inf": [-np.inf], "w_nan": [np.nan], "w_m": np.ones((3, 2))}
ROWS = {
    "a constant": ("y = Identity(w_c)", (-3.0, 2.0)),
    "a constant of -inf": ("y = Identity(w_inf)", (-math.inf, -math.inf)),
    "a constant of NaN": ("y = Identity(w_nan)", UNKNOWN),
    "an input": ("y = Identity(x)", UNKNOWN),
    "a condition": ("y = Cast <to = 1> (b)", (0.0, 1.0)),
    "integers": ("y = Cast <to = 1> (n)", UNKNOWN),
    "a product": ("y = MatMul(x, w_m)", (-ACTIVATION, ACTIVATION)),
    "a choice": ("s = ReduceMax(w_c) t = Cast <to = 1> (b) y = Where(b, t, w_inf)", (-math.inf, 1.0)),
    "a sum": ("t = Cast <to = 1> (b) y = Add(t, t)", (0.0, 2.0)),
    "a difference": ("t = Cast <to = 1> (b) y = Sub(t, t)", (-1.0, 1.0)),
    "a multiple": ("t = Cast <to = 1> (b) s = Sub(t, t) y = Mul(s, s)", (-1.0, 1.0)),
    "a quotient by what may be 0": ("t = Cast <to = 1> (b) y = Div(t, t)", UNKNOWN),
    "0 times infinity": ("t = Cast <to = 1> (b) y = Mul(t, w_inf)", UNKNOWN),
    "infinities that cancel": ("y = Sub(w_inf, w_inf)", UNKNOWN),
    "raised": ("t = Cast <to = 1> (b) y = Max(x, t)", (0.0, math.inf)),
    "clipped": ("t = Cast <to = 1> (b) u = Max(x, t) y = Min(u, t)", (0.0, 1.0)),
    "squashed": ("y = Tanh(x)", (-1.0, 1.0)),
    "joined": ("t = Cast <to = 1> (b) u = Sub(t, t) y = Concat <axis = 0> (t, u)", (-1.0, 1.0)),
    "a triangle": ("t = Cast <to = 1> (b) u = Add(t, t) v = Exp(u) y = Trilu(u)", (0.0, 2.0)),
    "an op that is not known": ("t = Cast <to = 1> (b) y = Exp(t)", UNKNOWN),
    "another domain's": ("t = Cast <to = 1> (b) y = local.Add(t, t)", UNKNOWN),
}


@pytest.mark.parametrize("row", ROWS)
def test_bounds_are_those_that_the_graph_says(row):
    body, expected = ROWS[row]
    functions = '<domain: "local", opset_import: ["" : 21]> Add (a, b) => (c) { c = Mul(a, b) }'
    proto = model(f"({INPUTS}) => (float y) {{ {body} }}", functions=functions, **WEIGHTS)
    graph = ir.from_proto(proto)
    infer_types(graph)
    assert bounds(graph.graph.outputs[0]) == expected


def test_nothing_and_a_value_without_a_type_are_unknown():
    assert bounds(None) == UNKNOWN == bounds(ir.Value(name="x"))


LARGEST = {"FLOAT": 3.4028234663852886e38, "FLOAT16": 65504.0, "BFLOAT16": 3.3895313892515355e38}


@pytest.mark.parametrize(("dtype", "room"), [("FLOAT", True), ("FLOAT16", False), ("BFLOAT16", True)])
def test_a_score_below_the_least_rounds_back_to_it_but_in_fp16(dtype, room):
    kind = ir.DataType[dtype]
    assert finite(in_type((-LARGEST[dtype], LARGEST[dtype]), kind))
    assert finite(in_type((-LARGEST[dtype] - ACTIVATION, 0.0), kind)) is room
    assert not finite(in_type((-2 * LARGEST[dtype], 0.0), kind))


def test_a_long_chain_ends_as_unknown():
    body = " ".join(f"a{i + 1} = Identity(a{i})" for i in range(200))
    graph = ir.from_proto(model(f"(bool[2] a0) => (bool[2] a200) {{ {body} }}"))
    assert bounds(graph.graph.outputs[0]) == (0.0, 1.0)
    text = f"(bool[2] b) => (float[2] y) {{ a0 = Cast <to = 1> (b) {body} y = Identity(a200) }}"
    graph = ir.from_proto(model(text))
    infer_types(graph)
    assert bounds(graph.graph.outputs[0]) == UNKNOWN
