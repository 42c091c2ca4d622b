"""Codes whose rounding errors add up to nothing in each output channel, one step from the nearest at most."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph import formats
from fp8graph.core import registry
from fp8graph.numerics import cast
from fp8graph.numerics.observed import peaks_of_weight
from fp8graph.numerics.scale import scale_from_amax
from fp8graph.testing import outputs, planned, random_feeds
from fp8graph_passes.balance_rounding import BalanceRounding
from tests.small import model

E4M3 = formats.get("e4m3fn")
DENSE = "(float[4,64] x, float[64,8] w) => (float[4,8] y) { y = MatMul(x, w) }"


def solved(proto, share: float = 0.1) -> fp8graph.Plan:
    feeds = [random_feeds(ir.from_proto(proto), seed=seed) for seed in range(2)]
    out = fp8graph.optimize(
        proto, data=feeds, passes=[BalanceRounding(share=share)], compare=False, target="reference", plan_only=True
    )
    return out.plan


def arrays(plan: fp8graph.Plan, key: str):
    """Codes and scale-free weight of the constant operand of an op, with output channels first."""
    (adjust,) = plan.ops[key].adjust
    quant = plan.ops[key].inputs[adjust.slot]
    return plan.arrays[adjust.value.name], quant.granularity


def parts(proto, key: str = "y", share: float = 0.1):
    """(balanced, nearest, exact) of each output channel in units of the scale."""
    codes, granularity = arrays(solved(proto, share), key)
    weight = planned(proto).before.graph.initializers["w"].const_value.numpy().astype(np.float32)
    axis = granularity.blocks[0][0]
    peaks = peaks_of_weight(weight, granularity, E4M3, "mse")
    scale = scale_from_amax(peaks, E4M3).reshape(granularity.broadcast_shape(weight.shape))
    nearest = cast.encode(weight, E4M3, scale)
    exact = weight.astype(np.float64) / scale
    rows = [np.moveaxis(array, axis, 0).reshape(weight.shape[axis], -1) for array in (codes, nearest, exact)]
    return rows[0], rows[1], rows[2]


def value(codes: np.ndarray) -> np.ndarray:
    return cast.decode(codes, E4M3).astype(np.float64)


WEIGHTS = {
    "MatMul": DENSE,
    "Gemm transB": "(float[4,64] x, float[8,64] w) => (float[4,8] y) { y = Gemm <transB = 1> (x, w) }",
    "Conv": "(float[2,16,8,8] x, float[8,16,3,3] w) => (float[2,8,6,6] y) { y = Conv(x, w) }",
    "fp16": DENSE.replace("float[", "float16["),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_each_channels_summed_error_is_smaller_and_never_larger(what):
    balanced, nearest, exact = parts(model(WEIGHTS[what]), share=1.0)
    before, after = (np.abs((value(codes) - exact).sum(axis=1)) for codes in (nearest, balanced))
    assert (after <= before).all()
    assert after.mean() < before.mean() / 10


@pytest.mark.parametrize("what", WEIGHTS)
def test_every_code_is_the_nearest_or_next_to_it(what):
    balanced, nearest, _ = parts(model(WEIGHTS[what]))
    moved = balanced != nearest
    assert moved.any()
    every = value(np.arange(256, dtype=np.uint8))
    grid = np.unique(every[np.isfinite(every)])
    first, second = (np.searchsorted(grid, value(codes[moved])) for codes in (balanced, nearest))
    assert (np.abs(first - second) == 1).all()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_at_most_the_share_of_a_channel_is_moved(share):
    balanced, nearest, _ = parts(model(DENSE), share=share)
    assert (balanced != nearest).sum(axis=1).max() <= max(1, int(share * 64))


def test_no_code_becomes_nan_and_zeros_stay():
    weight = np.random.default_rng(3).standard_normal((64, 8)).astype(np.float32)
    weight[::5] = 0.0
    weight[1] = 3.0  # the largest of most channels: the top code
    balanced, nearest, _ = parts(model(DENSE, w=weight))
    assert np.isfinite(value(balanced)).all()
    assert (balanced[nearest == 0] == 0).all()


def test_one_scale_for_the_whole_weight_is_left_alone():
    text = "(float[3,2,2] x, float[3,8,2] w) => (float[3,8,2] y) { y = MatMul(w, x) }"
    assert solved(model(text)).ops["y"].adjust == ()


def test_a_weight_that_is_read_along_two_axes_has_codes_for_each():
    text = """(float[4,16] x, float[16,16] w) => (float[4,16] y) {
        a = MatMul(x, w) b = Gemm <transB = 1> (x, w) y = Add(a, b) }"""
    proto = model(text)
    plan = solved(proto)
    (first, _), (second, _) = arrays(plan, "a"), arrays(plan, "b")
    assert not np.array_equal(first, second)
    assert np.array_equal(parts(proto, "a")[0].T, first)
    assert np.array_equal(parts(proto, "b")[0], second)


def test_the_codes_found_are_those_in_the_model():
    proto = model(DENSE)
    feeds = [random_feeds(ir.from_proto(proto))]
    out = fp8graph.optimize(proto, data=feeds, passes=[BalanceRounding()], compare=False, target="reference")
    held = {tensor.name: ir.from_proto(tensor).numpy() for tensor in out.model.graph.initializer}
    codes, _ = arrays(out.plan, "y")
    np.testing.assert_array_equal(held["w_fp8"].view(np.uint8), codes)


def test_behind_a_relu_it_mends_the_mean_of_the_outputs():
    text = "(float[64,64] x, float[64,16] w) => (float[64,16] y) { r = Relu(x) y = MatMul(r, w) }"
    proto = model(text, seed=5)
    feed = [random_feeds(ir.from_proto(proto))]
    shift = {}
    for name, passes in (("nearest", None), ("balanced", [BalanceRounding()])):
        made = fp8graph.optimize(proto, data=feed, passes=passes, target="reference", compare=False).model
        old, new = (outputs(ir.from_proto(item), feed[0])["y"] for item in (proto, made))
        shift[name] = np.abs((new - old).mean(axis=0)).mean()
    assert shift["balanced"] < 0.75 * shift["nearest"]


def test_its_share_is_an_option():
    assert registry.create("balance-rounding", {"share": 0.25}) == BalanceRounding(share=0.25)
