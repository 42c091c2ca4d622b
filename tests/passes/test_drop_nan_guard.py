"""The guard against NaN behind Softmax goes where it never fires, else behind the second product; the outputs stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fp8graph
from fp8graph.core import attention
from fp8graph.graph import walk
from fp8graph.testing import outputs
from fp8graph_passes.drop_nan_guard import DropNanGuard
from tests.conftest import SHARED
from tests.passes.doing import Done, run
from tests.small import model

INPUTS = "float[2,3,8] q, float[2,8,5] k, float[2,5,4] v, float[3,5] m, bool[3,5] b, int64[3,5] n"
NUMBERS = {
    "zero": 0.0,
    "one": 1.0,
    "half": 0.5,
    "small": -1e4,
    "least": float(np.finfo(np.float32).min),
    "inf": -np.inf,
}
DECLARED = ", ".join(f"float[1] w_{name}" for name in NUMBERS)
GUARD = "bad = IsNaN(p) g = Where(bad, w_zero, p)"


def text(
    mask: str, guard: str = GUARD, behind: str = "c = MatMul(g, v) y = Relu(c)", output: str = "float[2,3,4] y"
) -> str:
    body = f"s = MatMul(q, k) {mask} p = Softmax <axis = -1> (x) {guard} {behind}"
    return f"({INPUTS}, {DECLARED}) => ({output}) {{ {body} }}"


def weights(**other: float) -> dict[str, Any]:
    return {f"w_{name}": np.array([number]) for name, number in {**NUMBERS, **other}.items()}


def done_on(source: str, **other: float) -> Done:
    return run(DropNanGuard(), model(source, **weights(**other)))


def same(done: Done) -> bool:
    """Bit by bit, on rows that are masked in part, throughout, and not at all."""
    draw = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in done.before.graph.inputs:
        assert value.dtype is not None and value.shape is not None and value.name
        numbers = draw.standard_normal(value.shape.numpy())
        feed[value.name] = (numbers > 0) if value.name == "b" else numbers.astype(value.dtype.numpy())
        if value.name in ("b", "m"):
            feed[value.name][0], feed[value.name][1] = (True, False) if value.name == "b" else (0.0, -np.inf)
    with np.errstate(all="ignore"):
        old, new = outputs(done.before, feed), outputs(done.model, feed)
    return all(np.array_equal(old[name], new[name]) for name in old)


FINITE = {
    "no mask": "x = Mul(s, w_half)",
    "a boolean mask, filled": "x = Where(b, s, w_small)",
    "a boolean mask, filled with the least": "x = Where(b, s, w_least)",
    "a mask of zeros and the least": "z = Where(b, w_zero, w_least) x = Add(s, z)",
    "scaled, the mask first": "d = Div(s, w_half) z = Where(b, w_zero, w_least) x = Add(z, d)",
    "old BERT's": "f = Cast <to = 1> (b) d = Sub(w_one, f) z = Mul(d, w_least) x = Add(s, z)",
    "a raised mask": "u = Max(m, w_small) z = Min(u, w_zero) x = Add(s, z)",
    "soft capped": "d = Tanh(s) e = Mul(d, w_half) z = Where(b, w_zero, w_least) x = Add(e, z)",
    "a mask that is turned": "z = Where(b, w_zero, w_least) u = Transpose(z) w = Transpose(u) x = Add(s, w)",
}


@pytest.mark.parametrize("mask", FINITE)
def test_it_goes_where_no_score_can_be_infinite(mask):
    done = done_on(text(FINITE[mask]))
    assert (done.count, done.kinds["IsNaN"]) == (1, 0)
    assert done.inputs("c") == ["p", "v"]
    assert same(done)


INFINITE = {
    "a mask of zeros and -inf": "z = Where(b, w_zero, w_inf) x = Add(s, z)",
    "scores or -inf": "x = Where(b, s, w_inf)",
    "the caller's mask": "x = Add(s, m)",
    "the least of the type, twice": "z = Where(b, w_zero, w_least) u = Add(s, z) x = Add(u, z)",
    "the least of the type, doubled": "z = Where(b, w_zero, w_least) u = Div(z, w_half) x = Add(s, u)",
    "a mask of the caller's numbers": "f = Cast <to = 1> (n) d = Sub(w_one, f) z = Mul(d, w_least) x = Add(s, z)",
    "an op that is not known": "z = Log(m) u = Where(b, w_zero, z) x = Add(s, u)",
}


@pytest.mark.parametrize("mask", INFINITE)
def test_else_it_moves_behind_the_product(mask):
    done = done_on(text(INFINITE[mask]))
    assert done.count == 1
    assert done.inputs("y") == ["c"]
    assert done.inputs("c") == ["bad", "w_zero", "c_unguarded"]
    assert done.inputs("bad") == ["c_unguarded"]
    assert done.inputs("c_unguarded") == ["p", "v"]
    assert same(done)


def test_keys_stay_when_it_moves_and_attention_is_found():
    done = done_on(text(INFINITE["scores or -inf"]))
    keys = {place.node.op_type: place.key for place in walk.walk(done.model)}
    assert (keys["IsNaN"], keys["Relu"]) == ("bad", "y")
    assert [place.key for place in walk.walk(done.model) if place.node.op_type == "Where"] == ["x", "g"]
    (found,) = attention.find(done.model)
    assert walk.node_key(found.context) == "c"
    assert (found.context.inputs[0], found.probability_slot) == (found.softmax.outputs[0], 0)
    assert DropNanGuard().rewrite(done.model, done.ctx) == 0


def test_a_product_that_the_graph_returns_keeps_its_name():
    done = done_on(text(INFINITE["scores or -inf"], behind="y = MatMul(g, v)"))
    assert done.count == 1 and done.inputs("y") == ["bad", "w_zero", "y_unguarded"]
    assert same(done)


@pytest.mark.parametrize(("fill", "count"), [("small", 0), ("least", 1)])
def test_fp16_has_no_room_for_a_score_below_its_least(fill, count):
    source = text(f"z = Where(b, w_zero, w_{fill}) x = Add(s, z)").replace("float[", "float16[")
    done = done_on(source, least=-65504.0)
    assert (done.count, done.kinds["IsNaN"]) == (1, count)
    assert same(done)


def test_it_moves_over_the_cast_of_a_softmax_in_fp32_and_gets_a_zero_of_that_type():
    inputs = "float16[2,3,8] q, float16[2,8,5] k, float16[2,5,4] v, float[3,5] m, float[1] w_zero"
    source = f"""({inputs}) => (float16[2,3,4] y) {{
        s = MatMul(q, k) h = Cast <to = 1> (s) x = Add(h, m) p = Softmax <axis = -1> (x)
        bad = IsNaN(p) o = Where(bad, w_zero, p) g = Cast <to = 10> (o) c = MatMul(g, v) y = Relu(c)
    }}"""
    done = run(DropNanGuard(), model(source, w_zero=np.zeros(1)))
    assert done.count == 1
    assert done.inputs("g") == ["p"]
    test, zero, raw = done.inputs("c")
    assert (test, raw) == ("bad", "c_unguarded")
    assert zero is not None and done.constants[zero].dtype == np.float16
    assert "w_zero" not in done.constants
    assert same(done)


STAYS = {
    "read by two products": {"behind": "c = MatMul(g, v) d = MatMul(g, v) y = Add(c, d)"},
    "read by something else": {"behind": "c = MatMul(g, v) d = ReduceSum(g) y = Add(c, d)"},
    "the right operand": {"behind": "t = Transpose <perm = [0, 2, 1]> (v) y = MatMul(t, g)", "output": "float y"},
    "the graph returns it": {"behind": "y = MatMul(g, v)", "output": "float[2,3,4] y, float[2,3,5] g"},
    "the test is read elsewhere": {"behind": "f = Cast <to = 1> (bad) r = ReduceMax(f) c = MatMul(g, v) y = Add(c, r)"},
    "scaled in between": {"behind": "d = Mul(g, w_half) y = MatMul(d, v)"},
}


@pytest.mark.parametrize("why", STAYS)
def test_it_stays_with_a_note_where_it_is(why):
    how = STAYS[why]
    if why == "the right operand":  # shapes that agree: queries as many as keys
        source = text(INFINITE["scores or -inf"], **how).replace("3,5]", "5,5]").replace("[2,3,8] q", "[2,5,8] q")
    else:
        source = text(INFINITE["scores or -inf"], **how)
    done = done_on(source)
    assert (done.count, done.kinds["IsNaN"]) == (0, 1)
    (note,) = done.ctx.notes.items()
    assert (note.code, note.op) == ("FG232", "g")


def test_a_softmax_along_another_axis_stays():
    done = done_on(text(INFINITE["scores or -inf"]).replace("axis = -1", "axis = 1"))
    assert done.count == 0 and done.ctx.notes.items()[0].code == "FG232"


NONE = {
    "another fill": "bad = IsNaN(p) g = Where(bad, w_one, p)",
    "another tensor": "bad = IsNaN(s) g = Where(bad, w_zero, p)",
    "another test": "bad = IsInf(p) g = Where(bad, w_zero, p)",
    "no softmax": "r = Relu(s) bad = IsNaN(r) g = Where(bad, w_zero, r)",
}


@pytest.mark.parametrize("guard", NONE.values(), ids=NONE)
def test_what_is_no_guard_of_attention_is_not_touched(guard):
    done = done_on(text("x = Identity(s)", guard))
    assert (done.count, len(done.ctx.notes.items())) == (0, 0)


def test_it_works_in_the_branches_of_if():
    source = f"""(bool d, {INPUTS}, {DECLARED}) => (float[2,3,4] y) {{
        s = MatMul(q, k)
        y = If (d) <
            then_branch = one () => (float[2,3,4] t) {{
                x = Add(s, m) p = Softmax <axis = -1> (x) bad = IsNaN(p) g = Where(bad, w_zero, p) t = MatMul(g, v)
            }},
            else_branch = two () => (float[2,3,4] e) {{
                a = Where(b, s, w_small) o = Softmax <axis = -1> (a)
                no = IsNaN(o) h = Where(no, w_zero, o) e = MatMul(h, v)
            }}
        >
    }}"""
    done = done_on(source)
    assert (done.count, done.kinds["IsNaN"]) == (2, 1)
    assert {place.key for place in walk.walk(done.model)} >= {"y.then_branch/g", "y.then_branch/t"}


def test_in_fp8_a_row_that_is_masked_throughout_is_still_zero():
    inputs = "float[2,64,32] x, bool[2,64,64] b, float[32,32] w_k, float[32,32] w_v, float[1] w_zero, float[1] w_inf"
    source = f"""({inputs}) => (float[2,64,32] y) {{
        k = MatMul(x, w_k) v = MatMul(x, w_v) t = Transpose <perm = [0, 2, 1]> (k) s = MatMul(x, t)
        z = Where(b, w_zero, w_inf) a = Add(s, z) p = Softmax <axis = -1> (a) {GUARD} y = MatMul(g, v)
    }}"""
    draw = np.random.default_rng(0)
    feed = {"x": draw.standard_normal((2, 64, 32), np.float32), "b": draw.random((2, 64, 64)) < 0.5}
    feed["b"][:, 3] = False
    proto = model(source, w_zero=np.zeros(1), w_inf=np.array([-np.inf]))
    done = fp8graph.optimize(proto, data=[feed], target="tensorrt-rtx:sm89")
    assert done.plan.ops["s"].do == done.plan.ops["y"].do == "quantize"
    got = outputs(fp8graph.graph.load.load(done.model).model, feed)["y"]
    assert not got[:, 3].any() and got[:, 4].any() and np.isfinite(got).all()


ZOO = {  # guards dropped and moved
    "bert_hf_sdpa_dynamo18": (2, 0),
    "qwen3_hf_sdpa_dynamo18": (2, 0),
    "qwen3_hf_sdpa_ts17": (2, 2),
    "tiny_bert_dynamo18_boolmask": (2, 0),
    "tiny_bert_ts17_boolmask": (2, 2),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", ZOO)
def test_exported_models_compute_the_same(name):
    count, left = ZOO[name]
    path = SHARED / "zoo" / "ready" / f"{name}.onnx"
    constant = fp8graph.core.pipeline.Pipeline(["raise-opset", "lift-constants", "fold-constants"])(path)
    done = run(DropNanGuard(), constant)
    assert (done.count, done.kinds["IsNaN"]) == (count, left)
    with np.load(path.with_suffix(".npz")) as arrays:
        feed = {item[3:]: arrays[item] for item in arrays.files if item.startswith("in:")}
    old, new = outputs(done.before, feed), outputs(done.model, feed)
    assert all(np.array_equal(old[item], new[item]) for item in old)
