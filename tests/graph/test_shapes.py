"""Concrete shapes: what inner values measure when the inputs do."""

from __future__ import annotations

import onnx_ir as ir

from fp8graph.graph.protos import concrete_shapes
from tests.small import model

CACHE = """(float[N,2,P,8] past, float[N,2,S,8] k, float[N,4,S,8] q) => (float[N,4,S,T] y) {
    all = Concat <axis = 2> (past, k)
    p = Shape <start = 2, end = 3> (past) s = Shape <start = 2, end = 3> (k)
    first = Constant <value = int64[1] {0}> ()
    a = Squeeze(p, first) b = Squeeze(s, first) t = Add(a, b) last = Constant <value = int64[1] {-1}> ()
    long = Reshape(t, last)
    n = Shape <start = 0, end = 1> (k)
    heads = Constant <value = int64[1] {4}> () size = Constant <value = int64[1] {8}> ()
    whole = Concat <axis = 0> (n, heads, long, size)
    one = Constant <value = int64[1] {2}> () times = Constant <value = int64[5] {1, 1, 2, 1, 1}> ()
    apart = Unsqueeze(all, one) wide = Expand(apart, times)
    every = Reshape(wide, whole)
    turned = Transpose <perm = [0, 1, 3, 2]> (every)
    y = MatMul(q, turned)
}"""


def test_lengths_that_the_graph_adds_up_are_known():
    given = ir.from_proto(model(CACHE))
    shapes = concrete_shapes(given, {"past": (2, 2, 4, 8), "k": (2, 2, 6, 8), "q": (2, 4, 6, 8)})
    assert shapes["every"] == (2, 4, 10, 8) and shapes["y"] == (2, 4, 6, 10)
    assert shapes["whole"] == (4,) and shapes["long"] == (1,)


def test_what_data_decides_stays_open_and_all_else_is_known():
    text = "(float[N,4] x) => (float[N,4] y, int64[2,M] z) { z = NonZero(x) y = Relu(x) }"
    shapes = concrete_shapes(ir.from_proto(model(text)), {"x": (3, 4)})
    assert shapes["y"] == (3, 4) and shapes["z"] == (2, None)


def test_an_op_that_the_library_does_not_know_leaves_shapes_open():
    function = '<domain: "local", opset_import: ["" : 21]> Odd (a) => (b) { b = NonZero(a) }'
    text = "(float[N,4] x) => (float[N,4] y, int64[2,M] z) { z = local.Odd(x) y = Relu(x) }"
    shapes = concrete_shapes(ir.from_proto(model(text, functions=function)), {"x": (3, 4)})
    assert shapes["y"] == (3, 4)
