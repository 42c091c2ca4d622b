"""ONNX's Attention becomes two products around a Softmax that compute the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.core import attention
from fp8graph.graph import walk
from fp8graph.runners.onnxruntime import OnnxRuntime
from fp8graph.testing import outputs
from fp8graph_passes.decompose_attention import DecomposeAttention
from tests.conftest import SHARED
from tests.passes.doing import Done, run
from tests.small import model

# B 2, H 4, queries 6, keys 6 or 9, head 8; `S` and `T` are open lengths.
Q, K, V = "float[2,4,6,8] q", "float[2,4,6,8] k", "float[2,4,6,8] v"
CROSS = "float[2,4,9,8] k", "float[2,4,9,8] v"
OPEN = "float[2,4,S,8] q", "float[2,4,T,8] k", "float[2,4,T,8] v"
APART = "float[2,4,6,8] y"
JOINED = "float[2,6,32] q", "float[2,6,16] k", "float[2,6,16] v"

FORMS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "heads apart": ((Q, K, V), APART, "Attention(q, k, v)"),
    "a scale given": ((Q, K, V), APART, "Attention<scale = 0.3>(q, k, v)"),
    "a scale of one": ((Q, K, V), APART, "Attention<scale = 1.0>(q, k, v)"),
    "cross attention": ((Q, *CROSS), APART, "Attention(q, k, v)"),
    "another size of v": ((Q, K, "float[2,4,6,5] v"), "float[2,4,6,5] y", "Attention(q, k, v)"),
    "joined heads": (
        ("float[2,6,32] q", "float[2,6,32] k", "float[2,6,32] v"),
        "float[2,6,32] y",
        "Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v)",
    ),
    "joined, fewer for k and v": (JOINED, "float[2,6,32] y", "Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v)"),
    "joined, open lengths": (
        ("float[N,S,32] q", "float[N,T,16] k", "float[N,T,16] v", "bool[S,T] m"),
        "float[N,S,32] y",
        "Attention<q_num_heads = 4, kv_num_heads = 2, is_causal = 1>(q, k, v, m)",
    ),
    "two heads for four": ((Q, "float[2,2,6,8] k", "float[2,2,6,8] v"), APART, "Attention(q, k, v)"),
    "one head for four": ((Q, "float[2,1,9,8] k", "float[2,1,9,8] v"), APART, "Attention(q, k, v)"),
    "a float mask": ((Q, *CROSS, "float[2,1,6,9] m"), APART, "Attention(q, k, v, m)"),
    "a float mask of two axes": ((Q, *CROSS, "float[6,9] m"), APART, "Attention(q, k, v, m)"),
    "a float mask of heads": ((Q, K, V, "float[4,6,6] m"), APART, "Attention(q, k, v, m)"),
    "a boolean mask": ((Q, *CROSS, "bool[2,1,6,9] m"), APART, "Attention(q, k, v, m)"),
    "a boolean mask of keys": ((Q, *CROSS, "bool[2,1,1,9] m"), APART, "Attention(q, k, v, m)"),
    "causal": ((Q, K, V), APART, "Attention<is_causal = 1>(q, k, v)"),
    "causal, more keys": ((Q, *CROSS), APART, "Attention<is_causal = 1>(q, k, v)"),
    "causal, open lengths": (OPEN, "float[2,4,S,8] y", "Attention<is_causal = 1>(q, k, v)"),
    "causal, boolean mask": ((Q, K, V, "bool[2,1,6,6] m"), APART, "Attention<is_causal = 1>(q, k, v, m)"),
    "causal, float mask": ((Q, K, V, "float[6,6] m"), APART, "Attention<is_causal = 1>(q, k, v, m)"),
    "all at once": (
        ("float[2,4,S,8] q", "float[2,2,T,8] k", "float[2,2,T,8] v", "bool[2,1,S,T] m"),
        "float[2,4,S,8] y",
        "Attention<is_causal = 1, scale = 0.25>(q, k, v, m)",
    ),
}
SIZES = {"S": 6, "T": 9, "N": 2}
# ONNX Runtime (1.31.1, 1.32.0) on the CPU takes no mask that is broadcast along the queries.
NOT_IN_ORT = {"a boolean mask of keys"}


def written(form: str, opset: int = 23) -> onnx.ModelProto:
    inputs, output, call = FORMS[form]
    return model(f"({', '.join(inputs)}) => ({output}) {{ y = {call} }}", opset=opset, ir=11)


def feed_of(proto: Any, seed: int = 0) -> dict[str, Any]:
    """Normal numbers; a mask lets every query see the first key, so that no row is masked throughout."""
    draw, feed = np.random.default_rng(seed), {}
    for value in proto.graph.input:
        shape = [dim.dim_value or SIZES[dim.dim_param] for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feed[value.name] = draw.standard_normal(shape).astype(dtype)
        if dtype.kind == "b":
            feed[value.name] = draw.random(shape) < 0.6
            feed[value.name][..., 0] = True
    return feed


def done_on(proto: Any, **how: Any) -> Done:
    done = run(DecomposeAttention(), proto, target=how.pop("target", "tensorrt-rtx"), **how)
    onnx.checker.check_model(ir.to_proto(done.model), full_check=True)
    return done


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("form", FORMS)
def test_it_computes_what_the_operator_does(form, opset):
    proto = written(form, opset)
    done = done_on(proto)
    assert (done.count, done.kinds["Attention"], done.kinds["MatMul"]) == (1, 0, 2)
    feed = feed_of(proto)
    got = outputs(done.model, feed)["y"]
    expected = outputs(done.before, feed, by_reference=True)["y"]
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=0, atol=4e-6)
    if form not in NOT_IN_ORT:
        np.testing.assert_allclose(got, OnnxRuntime(done.before).run(feed)["y"], rtol=0, atol=4e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_matcher_finds_it_under_keys_that_tell_whence_they_come(form):
    done = done_on(written(form))
    (found,) = attention.find(done.model)
    keys = [walk.node_key(node) for node in (found.scores, found.softmax, found.context)]
    assert keys == ["y~scores", "y~softmax", "y~context"]
    every = [place.key for place in walk.walk(done.model)]
    assert len(set(every)) == len(every) and all(key.startswith("y~") for key in every)
    names = [place.node.name for place in walk.walk(done.model)]
    assert len(set(names)) == len(names) and all(names)
    assert done.model.graph.outputs[0].producer() is not None and done.model.graph.outputs[0].name == "y"


@pytest.mark.parametrize("form", [name for name in FORMS if not name.startswith("joined")])
def test_the_second_product_writes_the_value_of_the_same_name(form):
    (found,) = attention.find(done_on(written(form)).model)
    assert found.context.outputs[0].name == "y"


def test_inner_values_keep_their_name_too_and_what_the_exporter_said_is_kept():
    text = f"({Q}, {K}, {V}) => (float[2,4,6,8] y) {{ [mine] a = Attention(q, k, v) y = Relu(a) }}"
    proto = model(text, opset=23, ir=11)
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'layers.0']")
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/me")
    done = done_on(proto)
    assert done.inputs("y") == ["a"]
    assert {done.node("a_scores").name, done.node("a").name} == {"mine_scores", "mine_context"}
    for place in walk.walk(done.model):
        if place.node.op_type != "Relu":
            assert place.node.metadata_props["pkg.torch.onnx.name_scopes"] == "['', 'layers.0']"
            assert "pkg.torch.onnx.stack_trace" not in place.node.metadata_props


@pytest.mark.parametrize(("scale", "factor"), [("", 64**-0.5), ("scale = 2.0", 2.0), ("scale = 1.0", None)])
def test_the_scale_is_one_number_on_q(scale, factor):
    call = f"Attention<{scale}>(q, k, v)" if scale else "Attention(q, k, v)"
    done = done_on(model(f"({Q}, {K}, {V}) => ({APART}) {{ y = {call} }}".replace(",8]", ",64]"), opset=23, ir=11))
    assert done.kinds["Mul"] == (factor is not None)
    if factor is not None:
        (left, constant) = done.inputs("y_scaled")
        assert left == "q" and constant is not None
        assert done.constants[constant] == np.float32(factor) and done.constants[constant].shape == ()


LEAST = [("float", "keep", -1e9), ("float", "fp32", -1e9), ("float", "bf16", -1e9), ("float", "fp16", -1e4)]


@pytest.mark.parametrize(("dtype", "high", "least"), [*LEAST, ("float16", "keep", -1e4), ("bfloat16", "keep", -1e9)])
@pytest.mark.parametrize("call", ["Attention(q, k, v, m)", "Attention<is_causal = 1>(q, k, v)"])
def test_what_is_masked_is_finite_in_the_type_that_it_will_have(dtype, high, least, call):
    text = f"({Q}, {K}, {V}, bool[6,6] m) => ({APART}) {{ y = {call} }}".replace("float[", f"{dtype}[")
    done = done_on(model(text, opset=23, ir=11), high=high)
    constant = done.constants["attention_least"]
    assert np.isfinite(constant.astype(np.float32))
    assert float(constant) == pytest.approx(least, rel=1e-2)


MASKS = {  # a float mask, its declaration, and whether it has to be raised for fp32 and for fp16
    "of the caller": ("z = Identity(m)", True, True),
    "a fill of the type's least": ("z = Where(b, zero, least)", False, True),
    "a small fill": ("z = Where(b, zero, small)", False, False),
    "an infinite fill": ("z = Where(b, zero, w_inf)", True, True),
    "old BERT's": ("c = Cast<to = 1>(b) d = Sub(one, c) z = Mul(d, least)", False, True),
    "two that overflow together": ("c = Where(b, zero, least) z = Add(c, c)", True, True),
}
NUMBERS = "<float zero = {0}, float one = {1}, float least = {-3.4028234663852886e38}, float small = {-10000}>"


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("high", ["keep", "fp16"])
def test_a_float_mask_is_raised_only_where_it_could_give_an_infinity(mask, high):
    how, raised, raised16 = MASKS[mask]
    inputs = f"{Q}, {K}, {V}, float[6,6] m, bool[6,6] b, float[1] w_inf"
    text = f"({inputs}) => ({APART}) {NUMBERS} {{ {how} y = Attention(q, k, v, z) }}"
    proto = model(text, opset=23, ir=11, w_inf=np.float32([-np.inf]))
    done = done_on(proto, high=high)
    assert done.kinds["Max"] == (raised16 if high == "fp16" else raised)
    feed = feed_of(proto)
    got = outputs(done.model, feed)["y"]
    with np.errstate(over="ignore"):
        expected = outputs(done.before, feed, by_reference=True)["y"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("call", ["Attention(q, k, v, m)", "Attention<is_causal = 1>(q, k, v, m)"])
@pytest.mark.parametrize("mask", ["bool", "float"])
def test_a_row_that_is_masked_throughout_gives_the_mean_of_v_and_no_nan(mask, call):
    proto = model(f"({Q}, {K}, {V}, {mask}[6,6] m) => ({APART}) {{ y = {call} }}", opset=23, ir=11)
    feed = feed_of(proto)
    feed["m"] = np.ones((6, 6), bool) if mask == "bool" else np.zeros((6, 6), np.float32)
    feed["m"][2] = False if mask == "bool" else -np.inf
    done = done_on(proto)
    got, expected = outputs(done.model, feed)["y"], outputs(done.before, feed, by_reference=True)["y"]
    assert np.isfinite(got).all() and not expected[:, :, 2].any()
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(got[:, :, others], expected[:, :, others], rtol=0, atol=4e-6)
    if mask == "bool":
        np.testing.assert_allclose(got[:, :, 2], feed["v"].mean(axis=2), rtol=0, atol=1e-5)


def test_layers_share_what_they_have_in_common():
    text = """(float[2,4,S,8] x, float[1,1,S,S] m) => (float[2,4,S,8] y) {
        a = Attention<is_causal = 1>(x, x, x, m) y = Attention<is_causal = 1>(a, a, a, m)
    }"""
    done = done_on(model(text, opset=23, ir=11))
    assert done.count == 2
    shared = {kind: done.kinds[kind] for kind in ("Range", "LessOrEqual", "Max", "Where", "Softmax")}
    assert shared == {"Range": 2, "LessOrEqual": 1, "Max": 1, "Where": 2, "Softmax": 2}
    feed = {
        "x": np.random.default_rng(0).standard_normal((2, 4, 5, 8), np.float32),
        "m": np.zeros((1, 1, 5, 5), np.float32),
    }
    expected = outputs(done.before, feed, by_reference=True)["y"]
    np.testing.assert_allclose(outputs(done.model, feed)["y"], expected, rtol=0, atol=4e-6)


def test_it_works_in_the_branches_of_if():
    text = """(bool c, float[2,4,S,8] x, bool[S,S] m) => (float[2,4,S,8] y) {
        y = If (c) <
            then_branch = one () => (float[2,4,S,8] t) { t = Attention<is_causal = 1>(x, x, x) },
            else_branch = two () => (float[2,4,S,8] e) { e = Attention(x, x, x, m) }
        >
    }"""
    done = done_on(model(text, opset=23, ir=11))
    assert done.count == 2 and done.kinds["MatMul"] == 4
    assert {place.key for place in walk.walk(done.model)} >= {"y.then_branch/t~scores", "y.else_branch/e~context"}
    for choice in (True, False):
        feed = {"c": np.asarray(choice), "x": np.random.default_rng(0).standard_normal((2, 4, 5, 8), np.float32)}
        feed["m"] = np.tri(5, dtype=bool)
        np.testing.assert_allclose(*(outputs(item, feed)["y"] for item in (done.model, done.before)), rtol=0, atol=4e-6)


STAYS = {
    "caches": ("Attention(q, k, v, m, k, v)", "cache"),
    "lengths": ("Attention(q, k, v, m, , , n)", "cache of keys and values, or is told their lengths"),
    "soft capping": ("Attention<softcap = 30.0>(q, k, v)", "soft capping"),
    "precision": ("Attention<softmax_precision = 1>(q, k, v)", "precision"),
    "a negative scale": ("Attention<scale = -1.0>(q, k, v)", "scale is -1"),
    "a narrow mask": ("Attention(q, k, v, narrow)", "narrower than its keys"),
    "a mask of integers": ("Attention(q, k, v, whole)", "its mask is INT64"),
    "an operand of another type": ("Attention(q, k, half)", "one float type"),
}


@pytest.mark.parametrize("why", STAYS)
def test_it_is_left_with_a_note_where_it_has(why):
    call, says = STAYS[why]
    extra = "float[6,6] m, float[6,3] narrow, int64[6,6] whole, float16[2,4,6,8] half, int64[2] n"
    done = run(DecomposeAttention(), model(f"({Q}, {K}, {V}, {extra}) => ({APART}) {{ y = {call} }}", opset=24, ir=11))
    assert (done.count, done.kinds["Attention"]) == (0, 1)
    (note,) = done.ctx.notes.items()
    assert (note.code, note.op) == ("FG231", "y") and says in note.text


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (("float[2,H,6,8] q", "float[2,G,6,8] k", "float[2,G,6,8] v"), "numbers of heads"),
        (("float[2,4,6,D] q", "float[2,4,6,D] k", V), "head size"),
        (("float[2,4,6,8] q", "float[2,2,6,8] k", "float[2,2,6,D] v"), "heads are to be repeated"),
        (("float[2,4,6,8] q", "float[2,3,6,8] k", "float[2,3,6,8] v"), "do not divide"),
        (("float[2,4,S,8] q", "float[2,4,S,8] k", "float[2,4,S,8] v", "bool[1] m"), "narrower"),
    ],
)
def test_it_is_left_where_the_graph_does_not_say_enough(inputs, says):
    call = "Attention(q, k, v, m)" if len(inputs) > 3 else "Attention(q, k, v)"
    done = run(DecomposeAttention(), model(f"({', '.join(inputs)}) => (float y) {{ y = {call} }}", opset=23, ir=11))
    assert done.count == 0 and says in done.ctx.notes.items()[0].text


def test_more_than_one_output_stays():
    text = f"({Q}, {K}, {V}) => ({APART}, float[2,4,6,8] pk) {{ y, pk, pv = Attention(q, k, v, , k, v) }}"
    assert run(DecomposeAttention(), model(text, opset=23, ir=11)).count == 0
    text = f"({Q}, {K}, {V}) => ({APART}, float[2,4,6,6] s) {{ y, , , s = Attention(q, k, v) }}"
    done = run(DecomposeAttention(), model(text, opset=23, ir=11))
    assert done.count == 0 and "more than one output" in done.ctx.notes.items()[0].text


def test_heads_that_are_open_but_equal_are_not_repeated():
    inputs = "float[2,H,6,8] q, float[2,H,6,8] k, float[2,H,6,8] v"
    done = done_on(model(f"({inputs}) => (float[2,H,6,8] y) {{ y = Attention(q, k, v) }}", opset=23, ir=11))
    assert done.count == 1 and done.kinds["Expand"] == 0


def test_a_target_that_does_not_ask_for_it_keeps_the_operator(monkeypatch):
    from dataclasses import replace

    from fp8graph.data import target

    plain = replace(target.load("reference"), decompose=())
    monkeypatch.setattr(target, "load", lambda name: plain)
    done = run(DecomposeAttention(), written("heads apart"))
    assert (done.count, len(done.ctx.notes.items())) == (0, 0)


def test_both_products_are_planned_in_fp8_as_one_group():
    inputs = "float[1,64,64] x, float[64,64] w_q, float[64,64] w_k, float[64,64] w_v"
    text = f"""({inputs}) => (float[1,64,64] y) {{
        q = MatMul(x, w_q) k = MatMul(x, w_k) v = MatMul(x, w_v)
        y = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v)
    }}"""
    plan = fp8graph.optimize(model(text, opset=23, ir=11), plan_only=True, target="tensorrt-rtx").plan
    for key in ("y~scores", "y~context"):
        assert plan.ops[key].do == "quantize" and plan.ops[key].group == "attention y~softmax"
    assert plan.ops["y~context"].inputs[0].scale.origin == "given"
    assert "y" not in plan.ops


def test_attention_inside_a_function_is_written_out_where_it_is_called():
    function = """<domain: "local", opset_import: ["" : 23]> block (q, k, v) => (y) { y = Attention(q, k, v) }"""
    wide = [text.replace("6,8]", "64,16]") for text in (Q, K, V, APART)]
    text = f"({', '.join(wide[:3])}) => ({wide[3]}) {{ y = local.block(q, k, v) }}"
    plan = fp8graph.optimize(
        model(text, opset=23, ir=11, functions=function), plan_only=True, target="tensorrt-rtx"
    ).plan
    assert [op.do for op in plan.ops.values() if op.op_type == "MatMul"] == ["quantize", "quantize"]


ZOO = sorted((SHARED / "zoo" / "ready").glob("*dynamo23*.onnx"))


@pytest.mark.shared
@pytest.mark.parametrize("high", ["keep", "fp16"])
@pytest.mark.parametrize("path", ZOO, ids=[path.stem for path in ZOO])
def test_exported_models_are_close_in_fp8(path: Path, high, tmp_path):
    with np.load(path.with_suffix(".npz")) as arrays:
        feed = {name[3:]: arrays[name] for name in arrays.files if name.startswith("in:")}
    done = fp8graph.optimize(
        path, data=[feed], target="tensorrt-rtx:sm89+sm120", high_precision_dtype=None if high == "keep" else high
    )
    assert not [op for op in done.plan.ops.values() if op.op_type == "Attention"]
    assert {key.rpartition("~")[2] for key in done.plan.ops} >= {"scores", "softmax", "context"}
    assert done.comparison is not None
    found = json.loads(json.dumps(done.comparison.to_json()))["outputs"]
    assert found and all(item["sqnr_db"] is None or item["sqnr_db"] > 10 for item in found.values())
