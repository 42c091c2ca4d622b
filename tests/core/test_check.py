"""What `check` says of anybody's Q/DQ model: one small graph for each finding, and silence on a good one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import fp8graph
from tests.small import feeds, model

PAIR = """(float[2,32] x, float w_s, float8e4m3fn[32,16] w_q, float[{c}] w_t, float8e4m3fn w_z) => (float[2,16] y) {{
    q = QuantizeLinear <output_dtype = 17> (x, w_s)
    d = DequantizeLinear (q, w_s)
    {between}
    u = DequantizeLinear <axis = {axis}> (w_q, w_t)
    {beside}
    y = MatMul({left}, {right})
}}"""


def pair(between: str = "", beside: str = "", left: str = "d", right: str = "u", c: int = 16, axis: int = 1) -> str:
    return PAIR.format(between=between, beside=beside, left=left, right=right, c=c, axis=axis)


def found(text: str, target: str = "tensorrt-rtx", **weights: Any) -> list[tuple[str, str, str]]:
    opset = weights.pop("opset", 21)
    given = {"w_s": 0.5, "w_t": np.full(16, 0.5)} | weights
    proto = model(text, opset=opset, **{name: np.asarray(value) for name, value in given.items()})
    return [(item.code, item.severity, item.op) for item in fp8graph.check(proto, target=target)]


def test_a_good_model_gives_no_finding():
    assert found(pair()) == []
    assert found(pair("e = Identity(d)", "v = Identity(u)", "e", "v")) == []


DOUBLE = pair("e = Cast <to = 11> (d)", "v = Cast <to = 11> (u)", "e", "v").replace(
    "(float[2,16] y)", "(double[2,16] y)"
)
RELU_ON_WEIGHT = pair("e = Relu(d)", "v = Relu(x) o = Transpose(v)", "e", "o").replace("float[2,16] y", "float[2,2] y")
COMPUTED = """f = ReduceMax <keepdims = 0> (x)
    g = QuantizeLinear <output_dtype = 17> (x, f)
    h = DequantizeLinear (g, f)"""
RANK_1 = pair().replace("float w_s", "float[1] w_s")
ZERO_POINT = pair().replace("d = DequantizeLinear (q, w_s)", "d = DequantizeLinear (q, w_s, w_z)")
ONE_INFINITE = np.where(np.arange(16) == 3, np.inf, 0.5)
BOTH_SCALES = [("FG310", "error", "q"), ("FG310", "error", "d")]


@pytest.mark.parametrize(
    ("text", "weights", "wanted"),
    [
        (pair(left="x"), {}, [("FG323", "info", "d"), ("FG305", "warning", "y")]),
        (pair("e = Relu(d)", left="e"), {}, [("FG306", "warning", "y")]),
        (pair("e = Relu(d)", "v = Relu(u)", "e", "v"), {}, [("FG306", "warning", "y")] * 2),
        (RELU_ON_WEIGHT, {}, []),
        (pair("e = Softmax(d)", left="e"), {}, [("FG306", "warning", "y")]),
        (DOUBLE, {}, [("FG312", "warning", "y")] * 2),
        (pair(), {"w_s": 0.0}, BOTH_SCALES),
        (pair(), {"w_s": -0.5}, BOTH_SCALES),
        (pair(), {"w_s": np.nan}, BOTH_SCALES),
        (pair(), {"w_t": ONE_INFINITE}, [("FG310", "error", "u")]),
        (RANK_1, {"w_s": [0.5]}, [("FG307", "info", "d")]),
        (pair(COMPUTED, left="h"), {}, [("FG323", "info", "d"), ("FG307", "warning", "y")]),
        (ZERO_POINT, {"w_z": 1.0}, [("FG309", "error", "d")]),
        (ZERO_POINT, {"w_z": 0.0}, []),
    ],
)
def test_what_a_target_rejects_or_drops_is_found(text, weights, wanted):
    assert found(text, **weights) == wanted


def test_a_cast_that_engines_absorb_is_no_finding():
    text = """(float16[2,32] x, float w_s, float8e4m3fn[32,16] w_q, float[16] w_t) => (float16[2,16] y) {
        c = Cast <to = 1> (x) q = QuantizeLinear <output_dtype = 17> (c, w_s) d = DequantizeLinear (q, w_s)
        e = Cast <to = 10> (d) u = DequantizeLinear <axis = 1> (w_q, w_t) v = Cast <to = 10> (u) y = MatMul(e, v)
    }"""
    assert found(text) == []


def test_opset_and_ir_version_are_held_to_what_readers_load():
    proto = model(pair())
    proto.ir_version = 14
    said = fp8graph.check(proto, target="tensorrt-rtx")
    assert [(item.code, item.severity) for item in said if item.code == "FG311"] == [("FG311", "warning")]
    proto.ir_version, proto.opset_import[0].version = 10, 18
    said = fp8graph.check(proto, target="tensorrt-rtx")
    assert [(item.code, item.severity) for item in said if item.code == "FG311"] == [("FG311", "error")]


def test_products_in_bodies_are_looked_at_too():
    body = pair(left="x").partition("{")[2].rpartition("}")[0]
    text = f"""(bool c, float[2,32] x, float w_s, float8e4m3fn[32,16] w_q, float[16] w_t) => (float[2,16] z) {{
        z = If (c) <then_branch = t () => (float[2,16] y) {{ {body} }},
                    else_branch = e () => (float[2,16] y) {{ y = MatMul(x, x) }}>
    }}"""
    assert found(text) == [("FG323", "info", "z.then_branch/d"), ("FG305", "warning", "z.then_branch/y")]


def test_movement_that_a_target_passes_is_no_finding_and_another_target_may_differ():
    text = pair("e = MaxPool <kernel_shape = [1]> (d)", left="e").replace("[2,32] x", "[2,4,32] x")
    assert [code for code, _, _ in found(text)] == ["FG306"]
    assert found(text, "onnxruntime") == []


def test_our_own_results_have_no_finding(sample, calibration):
    done = fp8graph.optimize(sample, data=calibration, compare=False)
    assert fp8graph.check(done.model, plan=done.plan) == ()
    assert [finding for finding in done.findings if finding.severity != "info"] == []


def test_a_plan_brings_its_target():
    proto = model("(float[2,32] x, float[32,16] w) => (float[2,16] y) { y = MatMul(x, w) }")
    done = fp8graph.optimize(proto, data=feeds(proto), target="onnxruntime")
    made = onnx.ModelProto.FromString(done.model.SerializeToString())
    made.ir_version = 14
    said = fp8graph.check(made, plan=done.plan)
    assert [item.code for item in said] == ["FG311"] and "onnxruntime" in said[0].text


@pytest.mark.parametrize(
    ("product", "axis", "wanted"),
    [
        ("MatMul", 1, []),
        ("MatMul", 0, ["FG308"]),
        ("Gemm", 1, []),
        ("Gemm <transB = 1>", 0, []),
        ("Gemm <transB = 1>", 1, ["FG308"]),
    ],
)
def test_scales_along_the_summed_axis_are_found(product, axis, wanted):
    text = f"""(float[2,16] x, float[16,16] w, float[16] w_t, float w_s) => (float[2,16] y) {{
        q = QuantizeLinear <output_dtype = 17> (x, w_s) d = DequantizeLinear (q, w_s)
        v = QuantizeLinear <output_dtype = 17, axis = {axis}> (w, w_t)
        u = DequantizeLinear <axis = {axis}> (v, w_t) y = {product} (d, u) }}"""
    assert [code for code, _, _ in found(text)] == wanted
