"""Weights rounded with data for what their op computes: the op's own error on other data, grid, groups and bounds."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.core import registry
from fp8graph.testing import outputs
from fp8graph_passes.reconstruct_weights import ReconstructWeights
from tests.learned import optimized
from tests.small import feeds, model


def mixed(shape: tuple[int, ...], axis: int, seed: int) -> np.ndarray:
    """Values whose channels depend on each other."""
    channels = shape[axis]
    blend = np.random.default_rng(11).standard_normal((channels, channels))
    blend += 2 * np.random.default_rng(12).standard_normal((1, channels))
    draw = np.random.default_rng([5, seed]).standard_normal(shape)
    return np.moveaxis(np.moveaxis(draw, axis, -1) @ blend / channels**0.5, -1, axis).astype(np.float32)


# Model, and the shape and axis of channels of its activation.
PRODUCTS = {
    "MatMul": ("(float[8,32] x, float[32,16] w) => (float[8,16] y) { y = MatMul(x, w) }", (8, 32), -1),
    "weight first": ("(float[32,8] x, float[16,32] w) => (float[16,8] y) { y = MatMul(w, x) }", (32, 8), 0),
    "Gemm, both turned": (
        "(float[32,8] x, float[16,32] w) => (float[8,16] y) { y = Gemm <transA = 1, transB = 1> (x, w) }", (32, 8), 0
    ),
    "Conv": (
        "(float[2,16,6,6] x, float[16,16,3,3] w) => (float[2,16,3,3] y) {"
        " y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w) }",
        (2, 16, 6, 6), 1,
    ),
    "Conv in groups": (
        "(float[2,32,6,6] x, float[16,16,3,3] w) => (float[2,16,4,4] y) { y = Conv <group = 2> (x, w) }",
        (2, 32, 6, 6), 1,
    ),
    "Conv of one dimension, dilated": (
        "(float[2,16,12] x, float[16,16,3] w) => (float[2,16,8] y) { y = Conv <dilations = [2]> (x, w) }",
        (2, 16, 12), 1,
    ),
    "fp16": ("(float16[8,32] x, float16[32,16] w) => (float16[8,16] y) { y = MatMul(x, w) }", (8, 32), -1),
}  # fmt: skip


def data(what: str, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    text, shape, axis = PRODUCTS[what]
    kind = np.float16 if "float16" in text else np.float32
    return [{"x": mixed(shape, axis, seed * 1000 + index).astype(kind)} for index in range(count)]


def lost(proto: onnx.ModelProto, made: onnx.ModelProto, samples: list[dict[str, np.ndarray]]) -> float:
    """Noise of the output."""
    pairs = ([outputs(ir.from_proto(each), feed)["y"].astype(np.float64) for each in (proto, made)] for feed in samples)
    return float(sum(np.square(one - other).sum() for one, other in pairs))


@pytest.mark.parametrize("what", PRODUCTS)
def test_on_other_data_the_op_loses_less_than_with_nearest_codes(what):
    proto = model(PRODUCTS[what][0])
    plain, better = (optimized(proto, *names, data=data(what, 48, 1)) for names in ((), ("reconstruct-weights",)))
    (found,) = better.plan.ops["y"].adjust
    assert (found.kind, found.rule) == ("codes", "reconstruct-weights")
    other = data(what, 16, 2)
    assert lost(proto, better.model, other) < 0.85 * lost(proto, plain.model, other)


def test_products_behind_each_other_are_solved_one_on_the_other():
    text = """(float[8,32] x, float[32,32] w, float[32,16] w_b) => (float[8,16] y, float[8,32] z) {
        z = MatMul(x, w) r = Relu(z) y = MatMul(r, w_b) }"""
    proto = model(text)
    plain, better = (optimized(proto, *names, data=data("MatMul", 64, 1)) for names in ((), ("reconstruct-weights",)))
    other = data("MatMul", 16, 2)
    assert lost(proto, better.model, other) < 0.85 * lost(proto, plain.model, other)


ALONE = {
    "a weight that two ops read": (
        "(float[8,32] x, float[32,16] w) => (float[8,16] y, float[8,16] z) { r = Relu(x) y = MatMul(x, w)"
        " z = MatMul(r, w) }"
    ),
    "two activations": "(float[8,32] x, float[32,16] v) => (float[8,16] y) { y = MatMul(x, v) }",
    "inside a branch": """(float[8,32] x, bool c, float[32,16] w) => (float[8,16] y) {
        y = If (c) <then_branch = t () => (float[8,16] a) { a = MatMul(x, w) },
                    else_branch = e () => (float[8,16] b) { n = MatMul(x, w) b = Neg(n) }> }""",
}


@pytest.mark.parametrize("text", ALONE.values(), ids=ALONE)
def test_what_has_no_constant_of_its_own_is_left_alone(text):
    proto = model(text)
    done = optimized(proto, "reconstruct-weights", data=feeds(proto, 16))
    assert all(op.adjust == () for op in done.plan.ops.values())


def test_with_few_samples_it_is_bounded_by_its_ridge():
    """One sample, fewer rows than columns: held firmly, the weight moves little from nearest."""
    proto = model(PRODUCTS["MatMul"][0])
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    moved = {}
    for ridge in (1e-3, 1e3):
        done = fp8graph.optimize(
            proto, data=data("MatMul", 1, 1), target="reference", compare=False,
            passes=[ReconstructWeights(ridge=ridge, damp=1e3)],
        )  # fmt: skip
        held = {item.name: ir.from_proto(item).numpy() for item in done.model.graph.initializer}
        rounded = held["w_fp8"].astype(np.float32) * held["w_scale"]
        moved[ridge] = float(np.abs(rounded - weight).max())
    assert moved[1e3] <= moved[1e-3]


def test_its_fields_are_options_with_bounds():
    assert registry.create("reconstruct-weights", {"ridge": 0.5, "damp": 0.1}) == ReconstructWeights(0.5, 0.1)
    with pytest.raises(fp8graph.Fp8GraphError, match="ridge"):
        registry.create("reconstruct-weights", {"ridge": 0})
