"""What depends on small constants alone is computed; Q/DQ, tables and names are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from fp8graph_passes.fold_constants import FoldConstants
from tests.passes.doing import run
from tests.small import model


def test_an_attention_scale_that_is_computed_from_the_shape_is_found_as_a_number():
    text = """(float[N,4,8,16] q) => (float[N,4,8,16] y) <float one = {1}> {
        width = Shape <start = 3> (q)
        size = Cast <to = 1> (width)
        root = Sqrt(size)
        factor = Div(one, root)
        y = Mul(q, factor)
    }"""
    done = run(FoldConstants(), model(text))
    assert done.count == 3
    np.testing.assert_array_equal(done.constants["factor"], np.array([0.25], np.float32))
    assert done.inputs("y") == ["q", "factor"]
    assert not done.kinds["Sqrt"] and not done.kinds["Div"]
    assert done.same()


def test_an_op_on_constants_becomes_an_initializer_of_its_outputs_name():
    text = "(float[4] x) => (float[4] y) <float a = {2}, float b = {3}> { c = Mul(a, b) y = Mul(x, c) }"
    done = run(FoldConstants(), model(text))
    assert done.count == 1
    assert {name: float(array) for name, array in done.constants.items()} == {"c": 6.0}
    assert done.same()


def test_dequantization_of_constants_is_left_alone():
    text = """(float[2,4] x, float[4,4] w) => (float[2,4] y) <float s = {0.5}, float two = {2}> {
        t = Mul(s, two)
        q = QuantizeLinear <output_dtype = 17> (w, t)
        d = DequantizeLinear(q, t)
        y = MatMul(x, d)
    }"""
    done = run(FoldConstants(), model(text))
    assert done.count == 1
    assert (done.kinds["QuantizeLinear"], done.kinds["DequantizeLinear"]) == (1, 1)


@pytest.mark.parametrize(("limit", "count"), [(1024, 1), (16, 1), (15, 0)])
def test_tables_above_the_limit_stay(limit, count):
    text = "(float[2,4] x, float[4,4] w) => (float[2,4] y) { t = Transpose(w) y = MatMul(x, t) }"
    assert run(FoldConstants(limit=limit), model(text)).count == count


def test_results_above_the_output_limit_stay():
    text = "(float[64,64] x, float[1] w) => (float[64,64] y) <int64[2] s = {64, 64}> { t = Expand(w, s) y = Add(x, t) }"
    assert run(FoldConstants(output_limit=4095), model(text)).count == 0
    assert run(FoldConstants(output_limit=4096), model(text)).count == 1


def test_a_constant_that_an_input_may_override_is_no_constant():
    proto = model("(float[4] x, float[4] w) => (float[4] y) { t = Neg(w) y = Add(x, t) }")
    value = proto.graph.input.add()
    value.CopyFrom(proto.graph.input[0])
    value.name = "w"
    done = run(FoldConstants(), proto)
    assert done.count == 0
    assert done.kinds["Neg"] == 1


def test_a_branch_that_is_always_taken_takes_the_place_of_its_if():
    text = """(float[2,4] x) => (float[2,4] y) <bool yes = {1}> {
        z = If (yes) <then_branch = t () => (float[2,4] a) { h = Neg(x) a = Abs(h) },
                      else_branch = e () => (float[2,4] b) { b = Relu(x) }>
        y = Tanh(z)
    }"""
    done = run(FoldConstants(), model(text))
    assert done.count > 0
    assert done.kinds == {"Neg": 1, "Abs": 1, "Tanh": 1}
    assert done.same()


def test_names_that_repeat_in_branches_are_kept():
    text = """(float[4] x, bool c) => (float[4] y) <float a = {2}, float b = {3}> {
        k = Mul(a, b)
        y = If (c) <then_branch = t () => (float[4] out) { h = Neg(x) out = Mul(h, k) },
                    else_branch = e () => (float[4] out) { h = Abs(x) out = Mul(h, k) }>
    }"""
    done = run(FoldConstants(), model(text))
    assert done.count == 1
    for branch in ("then_branch", "else_branch"):
        graph = done.node("y").attributes[branch].as_graph()
        assert [value.name for node in graph for value in node.outputs] == ["h", "out"]
    assert done.same()


def test_a_dropout_that_does_nothing_goes():
    text = "(float[4] x) => (float[4] y) <float a = {2}, float b = {3}> { d = Dropout(x) c = Mul(a, b) y = Mul(d, c) }"
    done = run(FoldConstants(), model(text))
    assert not done.kinds["Dropout"]
    assert done.same()


def test_a_model_without_anything_to_fold_is_not_touched():
    done = run(FoldConstants(), model("(float[2,4] x, float[4,4] w) => (float[2,4] y) { y = MatMul(x, w) }"))
    assert done.count == 0
