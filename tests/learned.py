"""A small network whose data have structure, as real ones have: what repairs that learn from data are tested on."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx

import fp8graph
from fp8graph.data import recipe as recipes
from tests.small import model

TEXT = """(float[n,3,8,8] x, float[16,3,3,3] w_a, float[16] w_p, float[16,16,3,3] w_b, float[16] w_q,
    float[16,1,3,3] w_c, float[10,16] w_d, float[10] w_r) => (float[n,10] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w_a, w_p)
    f = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (f, w_b, w_q)
    g = Relu(b)
    s = Add(f, g)
    c = Conv <group = 16, strides = [2, 2], pads = [1, 1, 1, 1]> (s, w_c)
    h = Relu(c)
    m = GlobalAveragePool(h)
    k = Flatten(m)
    y = Gemm <transB = 1> (k, w_d, w_r)
}"""
REPAIRS = ("split-terms", "reconstruct-weights", "correct-bias")


@cache
def network(seed: int = 0) -> onnx.ModelProto:
    """Convolutions, dense and depthwise, and a head."""
    draw = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        fan = np.prod(shape[1:])
        return (draw.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)

    made = {"w_a": weight(16, 3, 3, 3), "w_b": weight(16, 16, 3, 3), "w_c": weight(16, 1, 3, 3), "w_d": weight(10, 16)}
    biases = {
        name: (0.1 * draw.standard_normal(size)).astype(np.float32)
        for name, size in zip("pqr", (16, 16, 10), strict=True)
    }
    return model(TEXT, **made, **{f"w_{name}": bias for name, bias in biases.items()})


def images(count: int, seed: int) -> dict[str, np.ndarray]:
    """Smooth images with a mean: neighbours are alike, channels too."""
    draw = np.random.default_rng([7, seed])
    basis = np.random.default_rng(7).standard_normal((6, 3, 8, 8))
    for axis in (2, 3):
        basis = basis + np.roll(basis, 1, axis) + np.roll(basis, 2, axis)
    found = np.tensordot(draw.standard_normal((count, 6)), basis, 1) / 4 + 0.5
    return {"x": (found + 0.05 * draw.standard_normal(found.shape)).astype(np.float32)}


def optimized(proto: Any, *repairs: str, data: Any = None, weights: str = "amax", **how: Any) -> fp8graph.Optimized:
    """Quantized wherever the reference can, with these repairs; `weights`: how their scales are found."""
    full = recipes.load("fp8-full")
    recipe = replace(full, repairs=repairs, weights=replace(full.weights, scale=weights))
    given = images(48, 1) if data is None else data
    return fp8graph.optimize(proto, data=given, batch=4, recipe=recipe, target="reference", compare=False, **how)


def sqnr(proto: Any, done: fp8graph.Optimized) -> float:
    """In dB, on images that nothing was taken from."""
    found = fp8graph.compare(proto, done.model, data=images(64, 2), batch=16).outputs["y"].sqnr_db
    assert found is not None
    return found
