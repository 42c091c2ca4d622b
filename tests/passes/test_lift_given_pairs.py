"""What came wholly quantized is planned with the scales that it came with, and written again; or its Q/DQ goes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.data.plan import Scale
from fp8graph.graph import tensors, walk
from fp8graph.graph.load import load
from fp8graph_passes.lift_given_pairs import LiftGivenPairs
from tests.passes.doing import run
from tests.small import CONCAT, TWO, feeds, model, needs_rtx, refused

HEAD = (
    "(float[4,32] x, float8e4m3fn[32,32] w) => (float[4,32] y) <float s = {0.03}, float t = {0.01}, float u = {0.02}>"
)
Q, D, W = "q = QuantizeLinear <output_dtype = 17> (x, t)", "a = DequantizeLinear(q, t)", "d = DequantizeLinear(w, s)"
T = "Transpose <perm = [1, 0]>"
# What stands between: the body, and what is left of it when the pair is off.
TAKEN = {
    "directly": (f"{Q} {D} {W} y = MatMul(a, d)", {"MatMul": 1}),
    "a Gemm": (f"{Q} {D} {W} y = Gemm <transB = 1> (a, d)", {"Gemm": 1}),
    "two activations": (
        f"{Q} {D} k = {T} (x) kq = QuantizeLinear <output_dtype = 17> (k, u) ka = DequantizeLinear(kq, u) "
        "m = MatMul(a, ka) v = DequantizeLinear(w, s) vq = QuantizeLinear <output_dtype = 17> (m, t) "
        "va = DequantizeLinear(vq, t) y = MatMul(va, x)",
        {"MatMul": 2, "Transpose": 1, "QuantizeLinear": 1, "DequantizeLinear": 2},
    ),
    "behind movement": (f"{Q} {D} b = Identity(a) {W} y = MatMul(b, d)", {"MatMul": 1, "Identity": 1}),
    "a scale with a power of two in it": (
        f"h = QuantizeLinear <output_dtype = 17> (x, t4) a = DequantizeLinear(h, t) {W} y = MatMul(a, d)",
        {"MatMul": 1, "Mul": 1},
    ),
    "another reader of the pair": (
        f"{Q} {D} {W} m = MatMul(a, d) y = Add(m, a)",
        {"MatMul": 1, "Add": 1, "QuantizeLinear": 1, "DequantizeLinear": 1},
    ),
    "a Concat of one scale": (
        f"{Q} {D} r = Relu(x) rq = QuantizeLinear <output_dtype = 17> (r, t) ra = DequantizeLinear(rq, t) "
        f"c = Concat <axis = 0> (a, ra) {W} m = MatMul(c, d) y, z = Split <axis = 0, num_outputs = 2> (m)",
        {"MatMul": 1, "Relu": 1, "Concat": 1, "Split": 1},
    ),
}
LEFT = {
    "a float weight": f"{Q} {D} f = Relu(x) g = {T} (f) m = MatMul(g, a) y = MatMul(a, m)",
    "a weight that others read": f"{Q} {D} {W} m = MatMul(a, d) r = ReduceSum <keepdims = 0> (d) y = Add(m, r)",
    "movement that others read": f"{Q} {D} b = Relu(a) i = Identity(a) {W} m = MatMul(i, d) y = Add(i, m)",
    "two scales in a Concat": (
        f"{Q} {D} r = Relu(x) rq = QuantizeLinear <output_dtype = 17> (r, u) ra = DequantizeLinear(rq, u) "
        f"c = Concat <axis = 0> (a, ra) {W} m = MatMul(c, d) y, z = Split <axis = 0, num_outputs = 2> (m)"
    ),
    "int8": f"q = QuantizeLinear <output_dtype = 3> (x, t) {D} {W} y = MatMul(a, d)",
    "scales that are no power of two apart": (
        f"h = QuantizeLinear <output_dtype = 17> (x, u3) a = DequantizeLinear(h, t) {W} y = MatMul(a, d)"
    ),
}


def small(body: str) -> onnx.ModelProto:
    return model(f"{HEAD[:-1]}, float t4 = {{0.0025}}, float u3 = {{0.003}}> {{ {body} }}")


def whole() -> onnx.ModelProto:
    return small(TAKEN["directly"][0])


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}


@pytest.mark.parametrize("case", TAKEN)
def test_pairs_go_off_the_graph_and_their_weights_with_them(case):
    body, left = TAKEN[case]
    done = run(LiftGivenPairs(), small(body))
    kinds = Counter({kind: count for kind, count in done.kinds.items() if kind != "Constant"})
    weights = kinds["DequantizeLinear"] - left.get("DequantizeLinear", 0)
    assert kinds - Counter({"DequantizeLinear": weights}) == Counter(left) and weights <= 1


@pytest.mark.parametrize("case", LEFT)
def test_what_is_not_wholly_quantized_stays_as_it_came(case):
    assert run(LiftGivenPairs(), small(LEFT[case])).count == 0


@pytest.mark.parametrize("case", ["directly", "behind movement", "a scale with a power of two in it"])
def test_it_is_planned_with_what_it_came_with_and_needs_no_data(case):
    proto = small(TAKEN[case][0])
    done = fp8graph.optimize(proto, target="reference")
    decision = done.plan.ops["y"]
    assert (decision.do, decision.why.code, done.planned) == ("quantize", "FG230", 1)
    assert decision.inputs[0].scale == Scale("given", "pair", float(np.float32(0.01)))
    assert decision.inputs[1].scale == Scale("given", "model")
    assert arrays(done.model)["w"].tobytes() == arrays(proto)["w"].tobytes()
    again = fp8graph.compare(proto, done.model, data=feeds(proto, 2))
    assert again.outputs["y"].max_abs == 0  # bit for bit what came


def test_what_is_excluded_loses_its_pair_and_keeps_its_codes():
    proto = whole()
    done = fp8graph.optimize(proto, target="reference", nodes_to_exclude=["y"], allow_unquantized=True)
    assert done.plan.ops["y"].why.code == "FG203" and not [item for item in done.findings if item.code == "FG230"]
    kinds = [node.op_type for node in done.model.graph.node]
    assert kinds == ["DequantizeLinear", "MatMul"] and "x" in done.model.graph.node[1].input
    assert arrays(done.model)["w"].tobytes() == arrays(proto)["w"].tobytes()


def test_what_a_target_refuses_loses_its_pair():
    text = """(float[1,4,6,6] x, float8e4m3fn[4,1,3,3] w) => (float[1,4,4,4] y) <float s = {0.03}, float t = {0.01}> {
        q = QuantizeLinear <output_dtype = 17> (x, t) a = DequantizeLinear(q, t) d = DequantizeLinear(w, s)
        y = Conv <group = 4> (a, d) }"""
    done = fp8graph.optimize(model(text), target="tensorrt-rtx:sm89", allow_unquantized=True)
    assert done.plan.ops["y"].do == "keep" and done.plan.ops["y"].why.by.startswith("target tensorrt-rtx")
    assert [node.op_type for node in done.model.graph.node] == ["DequantizeLinear", "Conv"]


def test_rules_about_what_pays_are_not_asked_of_what_came():
    text = """(float[1,3,8,8] x, float8e4m3fn[16,3,3,3] w) => (float[1,16,6,6] y) <float s = {0.03}, float t = {0.01}> {
        q = QuantizeLinear <output_dtype = 17> (x, t) a = DequantizeLinear(q, t) d = DequantizeLinear(w, s)
        y = Conv(a, d) }"""
    assert fp8graph.optimize(model(text), target="reference").plan.ops["y"].why.code == "FG230"
    float_one = text.replace("float8e4m3fn", "float").partition("q = ")[0] + "y = Conv(x, w) }"
    plan = fp8graph.optimize(model(float_one), target="reference", plan_only=True).plan
    assert plan.ops["y"].why.code == "FG208"  # of a float model the first convolution is kept


TWICE = {"two": TWO, "concat": CONCAT}


@pytest.mark.parametrize("high", ["keep", "fp16"])
@pytest.mark.parametrize("recipe", ["fp8-default", "fp8-amax", "fp8-dynamic"])
@pytest.mark.parametrize("case", TWICE)
def test_a_result_optimized_once_more_is_the_same(case, recipe, high, tmp_path):
    how = {"target": "tensorrt-rtx:sm89", "recipe": recipe, "high_precision_dtype": high, "fp8_everywhere": True}
    proto = model(TWICE[case])
    first = fp8graph.optimize(proto, data=feeds(proto, 2), output=tmp_path / "a.onnx", **how)
    second = fp8graph.optimize(tmp_path / "a.onnx", output=tmp_path / "b.onnx", **how)
    numbers = [
        {key: {slot: (q.format, q.granularity, q.scale.value) for slot, q in op.inputs.items()}
         for key, op in one.plan.quantized()}
        for one in (first, second)
    ]  # fmt: skip
    assert numbers[0].keys() == numbers[1].keys() and numbers[0]
    if recipe != "fp8-dynamic":  # whose scales are in the graph: the pair in it has a scale of its own
        assert numbers[0] == numbers[1]
        held = [
            Counter(array.tobytes() for array in arrays(onnx.load(tmp_path / n)).values()) for n in ("a.onnx", "b.onnx")
        ]
        assert held[0] == held[1]


def test_a_pair_that_yields_another_type_is_one_on_what_it_had_read():
    text = """(float[4,32] x, float8e4m3fn[32,32] w) => (float16[4,32] y) <float s = {0.03}, float t = {0.01}> {
        q = QuantizeLinear <output_dtype = 17> (x, t) a32 = DequantizeLinear(q, t) a = Cast <to = 10> (a32)
        d32 = DequantizeLinear(w, s) d = Cast <to = 10> (d32) y = MatMul(a, d) }"""
    done = fp8graph.optimize(model(text), target="reference")
    assert done.planned == 1
    (quantize,) = [node for node in done.model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantize.input[0] == "x"
    kept = fp8graph.optimize(model(text), target="reference", nodes_to_exclude=["y"], allow_unquantized=True)
    assert "QuantizeLinear" not in {node.op_type for node in kept.model.graph.node}


@pytest.mark.parametrize("how", ["option", "recipe"])
def test_asked_to_it_finds_scales_of_activations_anew(how, tmp_path):
    proto, recipe = whole(), tmp_path / "anew.toml"
    recipe.write_text('extends = "fp8-default"\n[quantize]\ngiven = "recalibrate"\n')
    asked = {"given_scales": "recalibrate"} if how == "option" else {"recipe": str(recipe)}
    with refused(UsageError, "FG120"):
        fp8graph.optimize(proto, target="reference", **asked)
    data = feeds(proto, 2)
    done = fp8graph.optimize(proto, target="reference", data=data, output=tmp_path / "a.onnx", **asked)
    decision = done.plan.ops["y"]
    amax = max(float(np.abs(feed["x"]).max()) for feed in data)
    assert decision.inputs[0].scale.origin == "observed"
    assert decision.inputs[0].scale.value == pytest.approx(amax / 448)
    assert decision.inputs[1].scale == Scale("given", "model")  # codes that fit the recipe stay
    assert "found anew, as was asked: it came with 0.01 (e4m3fn)" in decision.why.text
    fp8graph.optimize(proto, plan=tmp_path / "a.onnx.plan.json", output=tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    with refused(UsageError, "FG100"):
        fp8graph.optimize(proto, given_scales="forget")


def test_anew_a_pair_beside_a_float_weight_goes_too():
    proto = model(
        "(float[4,32] x, float[32,32] w) => (float[4,32] y) <float t = {0.01}> {" + f"{Q} {D} y = MatMul(a, w) }}"
    )
    kept = fp8graph.optimize(proto, target="reference", data=feeds(proto, 2), allow_unquantized=True)
    assert kept.plan.ops["y"].why.code == "FG230" and kept.planned == 0
    done = fp8graph.optimize(proto, target="reference", data=feeds(proto, 2), given_scales="recalibrate")
    assert done.plan.ops["y"].inputs[0].scale.origin == "observed" and done.planned == 1


def test_a_format_that_the_target_does_not_read_keeps_its_range():
    body = TAKEN["directly"][0].replace("output_dtype = 17", "output_dtype = 19")
    proto = model(f"{HEAD.replace('e4m3fn', 'e5m2')} {{ {body} }}")
    done = fp8graph.optimize(proto, target="tensorrt-rtx:sm89")
    quant = done.plan.ops["y"].inputs[0]
    assert (quant.format, quant.scale.value) == ("e4m3fn", pytest.approx(0.01 * 57344 / 448))
    assert "came in e5m2" in done.plan.ops["y"].why.text
    as_it_came = fp8graph.optimize(proto, target="reference", recipe="fp8-e5m2")
    assert as_it_came.plan.ops["y"].inputs[0].scale == Scale("given", "pair", float(np.float32(0.01)))


def test_under_a_recipe_in_int8_so_do_int8_pairs():
    activation = "q = QuantizeLinear (x, t, z) a = DequantizeLinear(q, t, z)"
    proto = small(f"{activation} c = DequantizeLinear(i, s) y = MatMul(a, c)")
    codes = np.random.default_rng(0).integers(-127, 127, (32, 32))
    proto.graph.initializer.extend(
        [numpy_helper.from_array(np.int8(0), "z"), numpy_helper.from_array(codes.astype(np.int8), "i")]
    )
    done = fp8graph.optimize(proto, target="reference", recipe="int8")
    assert done.planned_by["int8"] == 1 and done.plan.ops["y"].inputs[0].scale.origin == "given"
    assert fp8graph.compare(proto, done.model, data=feeds(proto, 2)).outputs["y"].max_abs == 0
    kept = fp8graph.optimize(proto, target="reference", allow_unquantized=True).plan.ops["y"]
    assert (kept.do, kept.why.code) == ("keep", "FG230")  # FP8 would round it once more


def test_blocks_in_powers_of_two_stay_as_they_came():
    proto = model("(float[4,64] x, float[64,64] w) => (float[4,64] y) { y = MatMul(x, w) }")
    how = {"target": "tensorrt:sm100", "recipe": "mxfp8"}
    done = fp8graph.optimize(proto, **how)
    again = fp8graph.optimize(done.model, allow_unquantized=True, **how)
    assert done.planned == 1 and again.plan.ops["y"].why.code == "FG230"


@needs_rtx
@pytest.mark.parametrize("high", ["fp16", None])
def test_an_engine_runs_in_fp8_what_came_so(high, tmp_path):
    path, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    fp8graph.optimize(whole(), target="tensorrt-rtx:sm89", high_precision_dtype=high, output=path)
    fp8graph.build(path, output=engine, target="tensorrt-rtx:sm89")
    found = fp8graph.attest(engine, model=path)
    assert found.verdicts["y"].verdict == "fp8" and not found.others


def test_in_a_branch_the_pair_of_the_branch_is_its_own():
    text = """(float[4,32] x, bool c, float8e4m3fn[32,32] w) => (float[4,32] y) <float s = {0.03}, float t = {0.01}> {
        q = QuantizeLinear <output_dtype = 17> (x, t) a = DequantizeLinear(q, t) d = DequantizeLinear(w, s)
        y = If (c) <then_branch = one () => (float[4,32] m) { m = MatMul(a, d) },
                    else_branch = two () => (float[4,32] n) { n = Neg(a) }> }"""
    done = fp8graph.optimize(model(text), target="reference")
    quantized = [key for key, _ in done.plan.quantized()]
    assert quantized == ["y.then_branch/m"]
    places = [place for place in walk.walk(load(done.model).model) if place.node.op_type == "QuantizeLinear"]
    assert sorted(place.scope for place in places) == ["", "y.then_branch/"]
    assert all(tensors.read(place.node.inputs[1]) == np.float32(0.01) for place in places)
