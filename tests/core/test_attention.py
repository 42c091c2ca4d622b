"""Attention is found however it is written out, and is decided as one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.core import attention
from fp8graph.core.quants import unit_scale
from fp8graph.numerics.ranges import Ranges, Stat
from tests.small import feeds, model, plan_of, why

HEAD = """(float[1,2,64,32] q, float[1,2,32,64] k, float[1,2,64,32] v, float[1,1,64,64] m, bool[1,1,64,64] b,
    float[1] w_a, float[1] w_c)"""
FORMS = {
    "plain": "p = Softmax <axis = -1> (s)",
    "scaled": "d = Div(s, w_a) p = Softmax <axis = -1> (d)",
    "masked": "d = Mul(s, w_a) e = Add(d, m) p = Softmax <axis = -1> (e)",
    "mask first": "e = Add(m, s) p = Softmax <axis = -1> (e)",
    "masked by Where": "d = Where(b, s, w_a) p = Softmax <axis = -1> (d)",
    "masked by Where, other way": "d = Where(b, w_a, s) p = Softmax <axis = -1> (d)",
    "soft capped": "d = Div(s, w_a) e = Tanh(d) f = Mul(e, w_a) p = Softmax <axis = -1> (f)",
    "computed in fp32": "d = Cast <to = 1> (s) p = Softmax <axis = -1> (d)",
}
AFTER = {
    "straight": "y = MatMul(p, v)",
    "dropout": "o = Dropout(p) y = MatMul(o, v)",
    "guarded": "n = IsNaN(p) o = Where(n, w_c, p) y = MatMul(o, v)",
    "cast back": "o = Cast <to = 1> (p) y = MatMul(o, v)",
}


def written(form: str, after: str = "y = MatMul(p, v)") -> str:
    return f"{HEAD} => (float[1,2,64,32] y) {{ s = MatMul(q, k) {form} {after} }}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("after", AFTER)
def test_attention_is_found_as_exporters_write_it(form, after):
    found = list(attention.find(ir.from_proto(model(written(FORMS[form], AFTER[after])))))
    assert [
        (item.scores.outputs[0].name, item.softmax.outputs[0].name, item.context.outputs[0].name) for item in found
    ] == [("s", "p", "y")]
    assert found[0].probability_slot == 0


NOT = {
    "a softmax over classes": "(float[2,8] x, float[8,8] w) => (float[2,8] y) { s = MatMul(x, w) y = Softmax(s) }",
    "a projection behind softmax": """(float[8,8] x, float[8,8] w) => (float[8,8] y) {
        s = MatMul(x, x) p = Softmax(s) y = MatMul(p, w)
    }""",
    "a norm between": written("n = ReduceMax(s) d = Sub(n, n) p = Softmax <axis = -1> (d)"),
    "no product behind": written("p = Softmax <axis = -1> (s)", "y = Add(p, m)").replace("64,32] y", "64,64] y"),
}


@pytest.mark.parametrize("text", NOT.values(), ids=NOT)
def test_what_is_no_attention_is_not_found(text):
    assert list(attention.find(ir.from_proto(model(text)))) == []


def test_the_probabilities_have_a_scale_of_their_own_without_data():
    plan = plan_of(model(written(FORMS["plain"])))
    scale = plan.ops["y"].inputs[0].scale
    assert (scale.origin, scale.rule, scale.value) == ("given", "softmax", unit_scale("e4m3fn"))
    assert float(np.float32(1) / np.float32(448)) == unit_scale("e4m3fn")
    assert plan.ops["y"].inputs[1].scale.origin == "observed"
    assert {op.group for op in plan.ops.values()} == {"attention p"}


@pytest.mark.parametrize(("kept", "other"), [("s", "y"), ("y", "s")])
def test_one_product_kept_keeps_both_and_the_reason_names_it(kept, other):
    plan = plan_of(model(written(FORMS["masked"])), nodes_to_exclude=[kept])
    assert why(plan, kept) == ("keep", "FG203") and why(plan, other) == ("keep", "FG210")
    assert f"'{kept}' is kept" in plan.ops[other].why.text and "attention p" in plan.ops[other].why.by
    assert plan.ops[other].inputs == {}


def test_softmax_itself_kept_keeps_no_product():
    plan = plan_of(model(written(FORMS["masked"])), nodes_to_exclude=["p"])
    assert why(plan, "s")[0] == why(plan, "y")[0] == "quantize" and why(plan, "p") == ("keep", "FG203")


@pytest.mark.parametrize(("lost", "other", "code"), [("v", "s", "FG212"), ("q", "y", "FG212"), ("k", "y", "FG213")])
def test_data_that_keeps_one_product_keeps_both(lost, other, code):
    """A value that is not finite, or was never computed: found when numbers are filled in."""
    proto = model(written(FORMS["plain"]))
    values = {name: Stat(10, 0, -1.0, 1.0) for name in "qkv"}
    values[lost] = Stat(10, 1) if code == "FG212" else Stat()
    plan = fp8graph.optimize(proto, ranges=Ranges("", "made up", 1, {}, values), plan_only=True).plan
    one = "y" if other == "s" else "s"
    assert why(plan, one) == ("keep", code) and f"'{lost}'" in plan.ops[one].why.text
    assert why(plan, other) == ("keep", "FG210") and f"'{one}' is kept" in plan.ops[other].why.text
    assert plan.settled


def test_two_attentions_are_two_groups():
    text = (
        HEAD
        + """ => (float[1,2,64,32] y, float[1,2,64,32] z) {
        s = MatMul(q, k) p = Softmax <axis = -1> (s) y = MatMul(p, v)
        t = MatMul(v, k) r = Softmax <axis = -1> (t) z = MatMul(r, q)
    }"""
    )
    plan = plan_of(model(text), nodes_to_exclude=["s"])
    assert [why(plan, key)[0] for key in "sytz"] == ["keep", "keep", "quantize", "quantize"]
    assert plan.ops["s"].group != plan.ops["t"].group


def test_a_mask_of_minus_infinity_does_no_harm_to_the_rest():
    proto = model(written(FORMS["masked"]))
    data = feeds(proto)
    for feed in data:
        feed["m"] = np.where(np.tri(64, dtype=bool), 0, -3.4e38).astype(np.float32)[None, None]
        feed["b"] = feed["b"].astype(bool)
    done = fp8graph.optimize(proto, data=data)
    assert done.planned == 2 and done.comparison.problems == ()
    assert done.comparison.outputs["y"].sqnr_db > 20
