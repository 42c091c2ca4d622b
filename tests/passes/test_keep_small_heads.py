"""Attention on small heads stays in high precision."""

from __future__ import annotations

import pytest

from fp8graph.testing import planned
from fp8graph_passes.keep_small_heads import KeepSmallHeads
from tests.passes.doing import opinions
from tests.small import model


def attention(size: int) -> object:
    inputs = ", ".join(f"float[2,3,8,{size}] {name}" for name in "qkv")
    return model(
        f"""({inputs}, float[{size},{size}] w) => (float[2,3,8,{size}] y) {{
            kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, kt) p = Softmax(s) c = MatMul(p, v)
            y = MatMul(c, w) }}"""
    )


@pytest.mark.parametrize("size", [4, 8, 15])
def test_heads_below_16_are_kept_and_with_the_scores_the_context(size):
    assert opinions(KeepSmallHeads(), attention(size)) == {"s": ("keep", "FG209"), "c": ("keep", "FG209")}


@pytest.mark.parametrize("size", [16, 64])
def test_heads_from_16_on_are_not(size):
    assert opinions(KeepSmallHeads(), attention(size)) == {}


def test_the_size_is_an_option():
    assert set(opinions(KeepSmallHeads(least=33), attention(32))) == {"s", "c"}
    assert opinions(KeepSmallHeads(least=8), attention(8)) == {}


def test_a_product_that_is_no_attention_may_be_as_small_as_it_likes():
    assert (
        opinions(KeepSmallHeads(), model("(float[2,8] x, float[8,8] w) => (float[2,8] y) { y = MatMul(x, w) }")) == {}
    )


def test_what_feeds_attention_is_quantized_all_the_same():
    plan = planned(attention(8)).ctx.plan
    assert plan is not None
    assert {key: op.do for key, op in plan.ops.items() if op.op_type == "MatMul"} == {
        "s": "keep", "c": "keep", "y": "quantize"
    }  # fmt: skip
