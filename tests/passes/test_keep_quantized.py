"""What came quantized is not quantized again."""

from __future__ import annotations

import pytest

import fp8graph
from fp8graph.testing import planned
from fp8graph_passes.keep_quantized import KeepQuantized
from tests.passes.doing import opinions
from tests.small import model

KEPT = {"y": ("keep", "FG230")}
PAIR = "q = QuantizeLinear <output_dtype = 17> (x, s) d = DequantizeLinear(q, s)"
OPS = {
    "the activation": f"{PAIR} y = MatMul(d, w)",
    "the right operand": f"{PAIR} y = MatMul(w, d)",
    "through movement": f"{PAIR} t = Transpose(d) i = Identity(t) y = MatMul(i, w)",
    "through a Cast": f"{PAIR} a = Cast <to = 1> (d) y = Gemm(a, w)",
    "int8": "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w)",
}


def small(body: str) -> object:
    return model(f"(float[8,8] x, float[8,8] w) => (float[8,8] y) <float s = {{0.5}}, int8 z = {{0}}> {{ {body} }}")


@pytest.mark.parametrize("what", OPS)
def test_a_product_with_a_dequantized_operand_is_kept(what):
    assert opinions(KeepQuantized(), small(OPS[what])) == KEPT


def test_the_reason_names_the_operand_and_its_type():
    plan = planned(small(OPS["the activation"])).ctx.plan
    assert plan is not None
    assert plan.ops["y"].why.text.startswith("operand 0 is quantized already (float8e4m3fn)")


def test_stored_codes_of_another_family_than_the_recipe_s_count_too():
    text = """(float[2,8] x, int8[8,4] w) => (float[2,4] y) <float s = {0.5}> {
        d = DequantizeLinear(w, s) y = MatMul(x, d) }"""
    assert opinions(KeepQuantized(), model(text)) == KEPT


@pytest.mark.parametrize(
    "body",
    ["y = MatMul(x, w)", f"{PAIR} r = Relu(d) y = MatMul(r, w)", f"{PAIR} y = Add(d, w)"],
    ids=["not quantized", "arithmetic between", "no product"],
)
def test_about_others_it_has_no_opinion(body):
    assert opinions(KeepQuantized(), small(body)) == {}


def test_it_is_asked_even_where_fp8_is_wanted_everywhere():
    plan = planned(small(OPS["the activation"]), fp8_everywhere=True).ctx.plan
    assert plan is not None and plan.ops["y"].why.code == "FG230"


def test_who_excludes_what_came_in_another_format_is_told_that_it_stays():
    text = """(float[8,8] x, int8[8,8] w, float[8,8] w_b) => (float[8,8] y) <float s = {0.5}> {
        q = QuantizeLinear <output_dtype = 3> (x, s) d = DequantizeLinear(q, s)
        v = DequantizeLinear(w, s) h = MatMul(d, v) y = MatMul(h, w_b) }"""
    done = fp8graph.optimize(model(text), plan_only=True, nodes_to_exclude=["h"])
    (told,) = [item for item in done.findings if item.code == "FG230"]
    assert (told.op, told.severity) == ("h", "warning") and "which stays" in told.text
    again = fp8graph.optimize(model(text), plan_only=True, nodes_to_exclude=["y"])
    assert not [item for item in again.findings if item.code == "FG230"]
