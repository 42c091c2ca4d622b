"""The product that chooses experts stays in high precision."""

from __future__ import annotations

import pytest

from fp8graph_passes.keep_router import KeepRouter
from tests.passes.doing import opinions
from tests.small import model

KEPT = {"r": ("keep", "FG207")}


def router(between: str, product: str = "r = MatMul(x, w)", last: str = "o") -> object:
    text = f"""(float[4,16] x, float[16,8] w, float[8] w_b) => (float[4,2] y, int64[4,2] i)
        <int64[1] two = {{2}}, int64[2] s = {{4, 8}}, float c = {{2.5}}, int64[1] front = {{0}}> {{
        {product} {between} y, i = TopK({last}, two) }}"""
    return model(text)


BETWEEN = {
    "nothing": ("", "r"),
    "Softmax": ("o = Softmax(r)", "o"),
    "Sigmoid and bias": ("s1 = Sigmoid(r) o = Add(s1, w_b)", "o"),
    "scaling": ("a = Mul(r, c) o = Div(a, c)", "o"),
    "movement": ("a = Unsqueeze(r, front) b = Squeeze(a, front) d = Reshape(b, s) o = Identity(d)", "o"),
    "six ops": ("a = Add(r, w_b) b = Mul(a, c) d = Sigmoid(b) e = Add(d, w_b) f = Mul(e, c) o = Softmax(f)", "o"),
}


@pytest.mark.parametrize("what", BETWEEN)
@pytest.mark.parametrize("product", ["r = MatMul(x, w)", "r = Gemm(x, w)"], ids=["MatMul", "Gemm"])
def test_a_product_that_topk_ranks_is_a_router(product, what):
    assert opinions(KeepRouter(), router(BETWEEN[what][0], product, BETWEEN[what][1])) == KEPT


def test_the_head_of_a_classifier_is_none():
    text = (
        "(float[4,16] x, float[16,8] w) => (int64[4,1] y) { r = MatMul(x, w) o = Softmax(r) y = ArgMax <axis = 1> (o) }"
    )
    assert opinions(KeepRouter(), model(text)) == {}


NOT = {
    "seven ops lie between": (
        "a = Add(r, w_b) b = Mul(a, c) d = Sigmoid(b) e = Add(d, w_b) f = Mul(e, c) g = Softmax(f) o = Mul(g, c)"
    ),
    "another product lies between": "t = Transpose(w) a = MatMul(r, t) b = MatMul(a, w) o = Softmax(b)",
    "an activation lies between": "o = Relu(r)",
}


@pytest.mark.parametrize("why", NOT)
def test_it_is_no_router_where(why):
    assert "r" not in opinions(KeepRouter(), router(NOT[why]))


def test_the_experts_behind_it_are_none():
    text = """(float[4,16] x, float[16,2] w, float[16,16] w_e) => (float[4,16] y) <int64[1] one = {1}> {
        r = MatMul(x, w) p = Softmax(r) top, i = TopK(p, one) e = MatMul(x, w_e) y = Mul(e, top) }"""
    assert opinions(KeepRouter(), model(text)) == KEPT


def test_the_number_of_steps_is_an_option():
    proto = router("a = Mul(r, c) o = Softmax(a)")
    assert opinions(KeepRouter(steps=2), proto) == KEPT
    assert opinions(KeepRouter(steps=1), proto) == {}


def test_a_convolution_is_no_router():
    text = """(float[1,3,4,4] x, float[8,3,4,4] w) => (float[1,2,1,1] y) <int64[1] two = {2}> {
        r = Conv(x, w) y, i = TopK <axis = 1> (r, two) }"""
    assert opinions(KeepRouter(), model(text)) == {}
