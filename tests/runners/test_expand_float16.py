"""The reference computes fp16 as written: what overflows is infinite, whatever ONNX Runtime puts around it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest

import fp8graph
from fp8graph.graph.load import load
from fp8graph.runners.expand.float16 import expand
from fp8graph.runners.onnxruntime import OnnxRuntime
from fp8graph.runners.reference import reference
from tests.small import model

X = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float16) * np.float16(3)
C = np.float16(60000)
ELEMENTWISE = {  # body, and the same in numpy's fp16
    "overflow between": ("r = Mul(x, w_c) y = Div(r, w_c)", lambda x: x * C / C),
    "overflow at the end": ("y = Mul(x, w_c)", lambda x: x * C),
    "sum overflows": ("r = Add(w_c, w_c) s = Sub(r, w_c) y = Add(s, x)", lambda x: C + C - C + x),
    "rounds each time": ("a = Mul(x, x) b = Add(a, x) y = Mul(b, b)", lambda x: (x * x + x) * (x * x + x)),
    "subnormal": ("a = Div(x, w_c) b = Div(a, w_c) y = Mul(b, w_c)", lambda x: x / C / C * C),
    "moved and joined": (
        "a = Mul(x, w_c) t = Transpose(a) u = Transpose(t) y = Div(u, w_c)",
        lambda x: x * C / C,
    ),
    "through fp32": (
        "a = Cast <to = 1> (x) b = Mul(a, w_f) c = Cast <to = 10> (b) y = Div(c, w_c)",
        lambda x: (x.astype(np.float32) * np.float32(C)).astype(np.float16) / C,
    ),
}


def written(body: str) -> onnx.ModelProto:
    text = f"(float16[4,32] x, float16[1] w_c, float[1] w_f) => (float16[4,32] y) {{ {body} }}"
    return model(text, w_c=np.array([C]), w_f=np.array([60000.0]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", ELEMENTWISE)
def test_each_op_rounds_to_fp16_as_numpy_does(case, tmp_path):
    body, computed = ELEMENTWISE[case]
    proto, path = written(body), tmp_path / "m.onnx"
    onnx.save(proto, path)
    expected = computed(X)
    for runner in (reference(load(proto).model), reference(path), OnnxRuntime(load(proto).model, fuse=False)):
        got = runner.run({"x": X})["y"]
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, expected)


def test_products_add_up_in_fp32_and_are_stored_in_fp16():
    proto = model("(float16[4,32] x, float16[32,8] w) => (float16[4,8] y) { y = MatMul(x, w) }")
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    got = reference(load(proto).model).run({"x": X})["y"]
    np.testing.assert_allclose(got, (X.astype(np.float64) @ weight.astype(np.float64)).astype(np.float16), rtol=1e-3)


def test_a_body_and_a_function_are_expanded_too():
    body = """y = If(c) <then_branch = t () => (float16[4,32] p) { a = Mul(x, w_c) p = Div(a, w_c) },
        else_branch = e () => (float16[4,32] q) { q = Identity(x) }>"""
    proto = model(f"(float16[4,32] x, bool[1] c, float16[1] w_c) => (float16[4,32] y) {{ {body} }}", w_c=np.array([C]))
    got = reference(load(proto).model).run({"x": X, "c": np.array([True])})["y"]
    assert np.isinf(got).any()
    called = "(float16[4,32] x, float16[1] w_c) => (float16[4,32] y) { y = local.twice(x, w_c) }"
    inner = '<domain: "local", opset_import: ["" : 21]> twice (a, c) => (b) { m = Mul(a, c) b = Div(m, c) }'
    got = reference(load(model(called, functions=inner, w_c=np.array([C]))).model).run({"x": X})["y"]
    assert np.isinf(got).any()


def test_a_model_without_fp16_is_left_alone():
    held = load(model("(float[4,32] x, float[32,8] w) => (float[4,8] y) { y = MatMul(x, w) }")).model
    assert expand(held) is held


def test_the_comparison_of_optimize_shows_what_overflows(tmp_path):
    text = "(float[4,32] x, float[1] w_c) => (float[4,32] y) { r = Mul(x, w_c) y = Div(r, w_c) }"
    made = fp8graph.optimize(
        model(text, w_c=np.array([60000.0])),
        high_precision_dtype="fp16",
        allow_unquantized=True,
        output=tmp_path / "half.onnx",
    )
    assert {op.high for op in made.plan.ops.values()} == {"fp16"}  # without data nobody knows
    feed = {"x": X.astype(np.float32)}
    assert np.isinf(reference(tmp_path / "half.onnx").run(feed)["y"]).any()
    np.testing.assert_allclose(OnnxRuntime(load(model(text)).model).run(feed)["y"], feed["x"], rtol=1e-5)


MIXED = """(float16[4,32] x, float8e4m3fn[32,8] w) => (float16[4,8] y) <float s = {0.01}, float t = {0.02}> {
    q = QuantizeLinear <output_dtype = 17> (x, s)
    d = DequantizeLinear <output_dtype = 10> (q, s)
    v = DequantizeLinear <output_dtype = 10> (w, t)
    y = MatMul(d, v)
}"""


def test_a_value_and_a_scale_of_two_types_are_run_as_opset_23_says():
    proto = model(MIXED, opset=23)
    onnx.checker.check_model(proto, full_check=True)
    (expected,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": X})
    got = reference(load(proto).model).run({"x": X})["y"]
    assert got.dtype == np.float16
    np.testing.assert_allclose(got.astype(float), expected.astype(float), rtol=2e-3, atol=2e-3)
