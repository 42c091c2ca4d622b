"""Biases that take the mean error out of an op's output, where there is a bias that runs along its output channels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.testing import outputs
from tests.learned import images, network, optimized
from tests.small import feeds, model

# A mean that is not zero: then rounding a weight moves the mean of the output.
DATA = [{"x": np.abs(np.random.default_rng(seed).standard_normal((4, 16))).astype(np.float32)} for seed in range(16)]
GEMM = "(float[4,16] x, float[16,8] w, float[8] w_b) => (float[4,8] y) { y = Gemm(x, w, w_b) }"


def shift(proto: onnx.ModelProto, done: fp8graph.Optimized, name: str, data: list) -> np.ndarray:
    """The mean error of each output channel."""
    pairs = [
        (outputs(ir.from_proto(proto), feed)[name], outputs(ir.from_proto(done.model), feed)[name]) for feed in data
    ]
    return np.mean([after - before for before, after in pairs], axis=(0, 1))


def test_the_mean_error_of_a_gemm_is_gone():
    proto = model(GEMM)
    plain, better = (optimized(proto, *repairs, data=DATA) for repairs in ((), ("correct-bias",)))
    left, was = (np.abs(shift(proto, done, "y", DATA)).mean() for done in (better, plain))
    assert left < 0.2 * was
    (found,) = better.plan.ops["y"].adjust
    assert (found.kind, found.rule, found.slot, found.value.dtype, found.value.shape) == (
        "bias", "correct-bias", 1, "float32", (8,)
    )  # fmt: skip


def test_the_mean_error_of_convolutions_is_gone_behind_each_other_and_behind_rounded_weights():
    proto, data = network(1), [{"x": array[None]} for array in images(48, 1)["x"]]
    for others in ((), ("reconstruct-weights",)):
        plain, better = (optimized(proto, *others, *more) for more in ((), ("correct-bias",)))
        left, was = (np.abs(shift(proto, done, "y", data)).mean() for done in (better, plain))
        assert left < 0.5 * was


def test_a_model_in_fp16_has_a_bias_in_fp16():
    proto = model(GEMM.replace("float[", "float16["))
    data = [{"x": feed["x"].astype(np.float16)} for feed in DATA]
    done = optimized(proto, "correct-bias", data=data)
    (found,) = done.plan.ops["y"].adjust
    (bias,) = [item for item in done.model.graph.initializer if item.name.startswith("w_b")]
    held = onnx.numpy_helper.to_array(bias)
    assert held.dtype == np.float16
    (plain,) = [onnx.numpy_helper.to_array(item) for item in proto.graph.initializer if item.name == "w_b"]
    shift = done.plan.arrays[found.value.name]
    assert np.array_equal(held, (plain.astype(np.float32) + shift).astype(np.float16))


ALONE = {
    "no bias": "(float[4,16] x, float[16,8] w) => (float[4,8] y) { y = Gemm(x, w) }",
    "a MatMul": "(float[4,16] x, float[16,8] w) => (float[4,8] y) { y = MatMul(x, w) }",
    "a bias that is computed": (
        "(float[4,16] x, float[16,8] w, float[8] w_b) => (float[4,8] y) { r = Relu(w_b) s = ReduceMax <keepdims = 0>(x)"
        " t = Add(r, s) y = Gemm(x, w, t) }"
    ),
    "a bias that is no vector": GEMM.replace("float[8] w_b", "float[4,8] w_b"),
    "one number": GEMM.replace("float[8] w_b", "float[1] w_b"),
    "alpha": GEMM.replace("Gemm(", "Gemm <alpha = 0.5> ("),
    "beta": GEMM.replace("Gemm(", "Gemm <beta = 0.5> ("),
    "a bias that others read": (
        "(float[4,16] x, float[16,8] w, float[8] w_b) => (float[4,8] y, float[4,8] z) {"
        " y = Gemm(x, w, w_b) z = Mul(y, w_b) }"
    ),
    "a bias along the activation": (
        "(float[16,8] x, float[8,16] w, float[8] w_b) => (float[8,8] y) { y = Gemm(w, x, w_b) }"
    ),
}


@pytest.mark.parametrize("text", ALONE.values(), ids=ALONE)
def test_what_is_no_bias_of_its_own_along_the_outputs_is_left_alone(text):
    proto = model(text)
    data = [{"x": np.abs(feed["x"]) + 0.5} for feed in feeds(proto, 16)]
    done = optimized(proto, "correct-bias", data=data)
    assert done.plan.ops["y"].do == "quantize"
    assert done.plan.ops["y"].adjust == ()
    assert "FG241" not in [item.code for item in done.findings]  # nor was anything tried
