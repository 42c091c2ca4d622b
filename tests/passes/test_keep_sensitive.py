"""Ops whose result FP8 would spoil stay, each kind with its own words."""

from __future__ import annotations

import pytest

from fp8graph.testing import planned
from fp8graph_passes.keep_sensitive import KeepSensitive
from tests.passes.doing import opinions
from tests.small import model

KEPT = ("keep", "FG206")
# the op, and a word of the reason
OPS = {
    "LayerNormalization": ("y = LayerNormalization(x, w_gain)", "norm"),
    "InstanceNormalization": ("y = InstanceNormalization(x, w_gain, w_shift)", "norm"),
    "LpNormalization": ("y = LpNormalization(x)", "norm"),
    "Softmax": ("y = Softmax(x)", "exponentiates"),
    "LogSoftmax": ("y = LogSoftmax(x)", "exponentiates"),
    "Exp": ("y = Exp(x)", "function"),
    "Erf": ("y = Erf(x)", "function"),
    "Gelu": ("y = Gelu(x)", "function"),
    "Tanh": ("y = Tanh(x)", "function"),
    "Sigmoid": ("y = Sigmoid(x)", "function"),
}


@pytest.mark.parametrize("op", OPS)
def test_a_sensitive_op_is_kept_and_the_reason_says_of_which_kind_it_is(op):
    body, word = OPS[op]
    size = 8 if op == "LayerNormalization" else 4
    text = f"(float[2,4,8] x, float[{size}] w_gain, float[4] w_shift) => (float[2,4,8] y) {{ {body} }}"
    assert opinions(KeepSensitive(), model(text)) == {"y": KEPT}
    plan = planned(model(text)).ctx.plan
    assert plan is not None and word in plan.ops["y"].why.text
    assert plan.ops["y"].why.by == "keep-sensitive"


def test_a_recurrent_cell_is_kept():
    text = """(float[3,2,4] x, float[1,20,4] w, float[1,20,5] w_r) => (float[3,1,2,5] y) {
        y = LSTM <hidden_size = 5> (x, w, w_r) }"""
    assert opinions(KeepSensitive(), model(text)) == {"y": KEPT}


def test_a_transposed_convolution_is_kept():
    text = "(float[2,3,6,6] x, float[3,8,3,3] w) => (float[2,8,8,8] y) { y = ConvTranspose(x, w) }"
    assert opinions(KeepSensitive(), model(text)) == {"y": KEPT}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("(int64[3] i, float[20,8] w) => (float[3,8] y) { y = Gather(w, i) }", True),
        ("(int64[3] i, float[20] w) => (float[3] y) { y = Gather(w, i) }", False),  # a list of numbers
        ("(int64[3] i, float[20,8] x) => (float[3,8] y) { y = Gather(x, i) }", False),  # no table
    ],
    ids=["table", "list", "activation"],
)
def test_a_gather_from_a_constant_table_is_an_embedding(text, kept):
    assert opinions(KeepSensitive(), model(text)) == ({"y": KEPT} if kept else {})


@pytest.mark.parametrize("op", ["Relu(x)", "MatMul(x, w)", "Add(x, w)", "Gemm(x, w)"])
def test_about_other_ops_it_has_no_opinion(op):
    assert opinions(KeepSensitive(), model(f"(float[8,8] x, float[8,8] w) => (float[8,8] y) {{ y = {op} }}")) == {}


def test_it_is_asked_even_where_fp8_is_wanted_everywhere():
    text = "(float[2,3,6,6] x, float[3,8,3,3] w) => (float[2,8,8,8] y) { y = ConvTranspose(x, w) }"
    plan = planned(model(text), fp8_everywhere=True).ctx.plan
    assert plan is not None and plan.ops["y"].why.code == "FG206"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("(float[2,16,1] x, float[1,1,5] p) => (float[2,16,5] y) { y = MatMul(x, p) }", True),
        ("(float[16,1] x, float[1,5] w) => (float[16,5] y) { y = MatMul(x, w) }", True),
        ("(float[1,16] x, float[1,5] w) => (float[16,5] y) { y = Gemm <transA = 1> (x, w) }", True),
        ("(float[16,2] x, float[2,5] w) => (float[16,5] y) { y = MatMul(x, w) }", False),
        ("(float[1,16] x, float[16,5] w) => (float[1,5] y) { y = MatMul(x, w) }", False),
        ("(float[2,5,L] x, float[2,L,7] z) => (float[2,5,7] y) { y = MatMul(x, z) }", False),
    ],
    ids=["angles of rotary positions", "a weight", "transposed", "two elements", "one row", "an open length"],
)
def test_a_product_over_one_element_is_kept(text, kept):
    assert opinions(KeepSensitive(), model(text)) == ({"y": KEPT} if kept else {})
