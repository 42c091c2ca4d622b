"""A power of two beside Q or DQ goes into the scale, bit for bit; any other factor stays."""

from __future__ import annotations

import numpy as np
import pytest

from fp8graph_passes.fold_constant_scale import FoldConstantScale
from tests.passes.doing import planned_run, run
from tests.small import model

BEFORE_Q = """(float[2,8] x) => (float[2,8] y) <FACTOR, float s = {0.03125}> {
    m = OP
    q = QuantizeLinear <output_dtype = 17> (m, s)
    y = DequantizeLinear(q, s)
}"""
BEHIND_DQ = """(float[2,8] x) => (float[2,8] y) <FACTOR, float s = {0.03125}> {
    q = QuantizeLinear <output_dtype = 17> (x, s)
    d = DequantizeLinear(q, s)
    m = OP
    y = Neg(m)
}"""


def small(text: str, factor: str, op: str):
    return model(text.replace("FACTOR", f"{factor.split('=')[0]}= {factor.split('=')[1]}").replace("OP", op))


@pytest.mark.parametrize(
    ("op", "scale"),
    [("Mul(x, c)", 0.125), ("Mul(c, x)", 0.125), ("Div(x, c)", 0.0078125)],
)
def test_before_q_the_scale_is_divided_by_the_factor(op, scale):  # case 1
    done = run(FoldConstantScale(), small(BEFORE_Q, "float c = {0.25}", op))
    assert done.count == 1
    assert done.kinds == {"QuantizeLinear": 1, "DequantizeLinear": 1}
    value, name = done.inputs("q")
    assert value == "x"
    assert done.constants[name] == np.float32(scale)
    assert done.constants["s"] == np.float32(0.03125)  # the DQ's stays
    assert "c" not in done.constants
    assert done.same()


@pytest.mark.parametrize(("op", "scale"), [("Mul(d, c)", 0.25), ("Mul(c, d)", 0.25), ("Div(d, c)", 0.00390625)])
def test_behind_dq_the_scale_is_multiplied_by_the_factor(op, scale):  # case 2
    done = run(FoldConstantScale(), small(BEHIND_DQ, "float c = {8}", op))
    assert done.count == 1
    assert done.kinds == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Neg": 1}
    assert done.inputs("y") == ["d"]
    assert done.constants[done.inputs("d")[1]] == np.float32(scale)
    assert done.same()


@pytest.mark.parametrize("exponent", [-24, -10, -1, 1, 10, 24])
@pytest.mark.parametrize(("text", "op"), [(BEFORE_Q, "Mul(x, c)"), (BEHIND_DQ, "Mul(d, c)")], ids=["Q", "DQ"])
def test_any_power_of_two_leaves_every_bit_as_it_was(text, op, exponent):
    done = run(FoldConstantScale(), small(text, f"float c = {{{2.0**exponent!r}}}", op))
    assert done.count == 1
    assert done.same()


def test_one_is_a_power_of_two():
    assert run(FoldConstantScale(), small(BEFORE_Q, "float[1] c = {1}", "Mul(x, c)")).count == 1


FACTORS = {
    "no power of two": ("float c = {0.3}", "{0}"),
    "nearly one": ("float c = {0.35355338}", "{0}"),
    "negative": ("float c = {-0.25}", "{0}"),
    "zero": ("float c = {0}", "{0}"),
    "a vector": ("float[8] c = {2, 2, 2, 2, 2, 2, 2, 2}", "{0}"),
    "of more axes": ("float[1,1,1] c = {2}", "{0}"),
}


@pytest.mark.parametrize("why", FACTORS)
@pytest.mark.parametrize(("text", "op"), [(BEFORE_Q, "Mul(x, c)"), (BEHIND_DQ, "Mul(d, c)")], ids=["Q", "DQ"])
def test_another_factor_stays(text, op, why):
    proto = small(text, FACTORS[why][0], op)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    done = run(FoldConstantScale(), proto)
    assert done.count == 0
    assert done.kinds["Mul"] == 1


STAYS = {
    "a constant divided by the value": small(BEFORE_Q, "float c = {2}", "Div(c, x)"),
    "somebody else reads the product": model(
        """(float[2,8] x) => (float[2,8] y, float[2,8] z) <float c = {2}, float s = {0.5}> {
            m = Mul(x, c) q = QuantizeLinear <output_dtype = 17> (m, s) y = DequantizeLinear(q, s) z = Neg(m) }"""
    ),
    "the graph returns the product": model(
        """(float[2,8] x) => (float[2,8] y, float[2,8] m) <float c = {2}, float s = {0.5}> {
            m = Mul(x, c) q = QuantizeLinear <output_dtype = 17> (m, s) y = DequantizeLinear(q, s) }"""
    ),
    "somebody else reads the dequantized value": model(
        """(float[2,8] x) => (float[2,8] y, float[2,8] z) <float c = {2}, float s = {0.5}> {
            q = QuantizeLinear <output_dtype = 17> (x, s) d = DequantizeLinear(q, s)
            m = Mul(d, c) y = Neg(m) z = Neg(d) }"""
    ),
    "the graph returns the dequantized value": model(
        """(float[2,8] x) => (float[2,8] y, float[2,8] d) <float c = {2}, float s = {0.5}> {
            q = QuantizeLinear <output_dtype = 17> (x, s) d = DequantizeLinear(q, s) m = Mul(d, c) y = Neg(m) }"""
    ),
    "the scale is computed": model(
        """(float[2,8] x, float s) => (float[2,8] y) <float c = {2}> {
            m = Mul(x, c) q = QuantizeLinear <output_dtype = 17> (m, s) y = DequantizeLinear(q, s) }"""
    ),
    "the product is the scale of Q": model(
        """(float[2,8] x, float t) => (float[2,8] y) <float c = {2}> {
            m = Mul(t, c) q = QuantizeLinear <output_dtype = 17> (x, m) y = DequantizeLinear(q, m) }"""
    ),
    "the new scale would be subnormal": model(
        """(float[2,8] x) => (float[2,8] y) <float c = {65536}, float s = {1e-36}> {
            m = Mul(x, c) q = QuantizeLinear <output_dtype = 17> (m, s) y = DequantizeLinear(q, s) }"""
    ),
    "the new scale would be infinite": model(
        """(float[2,8] x) => (float[2,8] y) <float c = {65536}, float s = {1e36}> {
            q = QuantizeLinear <output_dtype = 17> (x, s) d = DequantizeLinear(q, s) m = Mul(d, c) y = Neg(m) }"""
    ),
    "nothing reads it": model(
        """(float[2,8] x) => (float[2,8] y) <float c = {2}> { m = Mul(x, c) y = Neg(x) }"""
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", STAYS)
def test_it_stays_where(why):
    done = run(FoldConstantScale(), STAYS[why])
    assert done.count == 0
    assert done.kinds["Mul"] + done.kinds["Div"] == 1


def test_of_two_quantizers_none_is_rescaled_where_one_cannot_be():
    text = """(float[2,8] x) => (float[2,8] y, float[2,8] z) <float c = {65536}, float s = {0.5}, float t = {1e-36}> {
        m = Mul(x, c)
        q = QuantizeLinear <output_dtype = 17> (m, s) y = DequantizeLinear(q, s)
        r = QuantizeLinear <output_dtype = 17> (m, t) z = DequantizeLinear(r, t)
    }"""
    done = run(FoldConstantScale(), model(text))
    assert done.count == 0
    assert (done.inputs("q"), done.inputs("r")) == (["m", "s"], ["m", "t"])


def test_two_quantizers_get_a_scale_each():
    text = """(float[2,8] x) => (float[2,8] y, float[2,8] z) <float c = {4}, float s = {0.5}, float t = {0.25}> {
        m = Mul(x, c)
        q = QuantizeLinear <output_dtype = 17> (m, s) y = DequantizeLinear(q, s)
        r = QuantizeLinear <output_dtype = 17> (m, t) z = DequantizeLinear(r, t)
    }"""
    done = run(FoldConstantScale(), model(text))
    assert done.count == 1
    assert [float(done.constants[done.inputs(name)[1]]) for name in "qr"] == [0.125, 0.0625]
    assert done.same()


@pytest.mark.parametrize(("kind", "bits"), [("float16", "13312"), ("bfloat16", "16000")])  # both are 0.25
def test_scales_of_half_precision_that_came_with_a_model_are_folded_in_their_type(kind, bits):
    text = f"""({kind}[2,8] x) => ({kind}[2,8] y) <{kind} c = {{{bits}}}> {{
        m = Mul(x, c) q = QuantizeLinear <output_dtype = 17> (m, c) y = DequantizeLinear(q, c) }}"""
    done = run(FoldConstantScale(), model(text))
    assert done.count == 1
    scale = done.constants[done.inputs("q")[1]]
    assert (str(scale.dtype), float(scale)) == (kind, 1.0)
    assert done.same()


def test_integers_with_a_zero_point_are_folded_alike():
    text = """(float[2,8] x) => (float[2,8] y) <float c = {4}, float s = {0.5}, int8 z = {3}> {
        m = Mul(x, c) q = QuantizeLinear(m, s, z) d = DequantizeLinear(q, s, z) n = Mul(d, c) y = Neg(n) }"""
    done = run(FoldConstantScale(), model(text))
    assert done.count == 2
    assert done.same()


def test_a_scale_along_an_axis_is_folded_element_by_element():
    text = """(float[2,4] x) => (float[2,4] y) <float c = {4}, float[4] s = {0.5, 0.3, 1, 7}> {
        m = Mul(x, c) q = QuantizeLinear <output_dtype = 17> (m, s) y = DequantizeLinear(q, s) }"""
    done = run(FoldConstantScale(), model(text))
    assert done.count == 1
    np.testing.assert_array_equal(done.constants[done.inputs("q")[1]], done.constants["s"] / np.float32(4))
    assert done.same()


@pytest.mark.parametrize("high", ["keep", "fp16", "bf16"])
def test_attentions_scale_goes_into_the_pair_of_q_in_every_type(high):
    text = """(float[2,8,16] q, float[2,8,16] k, float[2,8,16] v) => (float[2,8,16] y) <float c = {0.25}> {
        qs = Mul(q, c) kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul(qs, kt) p = Softmax(s) y = MatMul(p, v) }"""
    done = planned_run(FoldConstantScale(), model(text), high=high)
    assert done.count == 1
    assert not done.kinds["Mul"]
