"""A scale vector whose elements are equal becomes the one scale that they have in common."""

from __future__ import annotations

import numpy as np
import pytest

from fp8graph.testing import planned
from fp8graph_passes.fold_uniform_scale import FoldUniformScale
from tests.passes.doing import planned_run, run
from tests.small import model

VECTOR = """(float[2,8] x, float8e4m3fn[8,4] w) => (float[2,4] y) <float[4] s = {SCALES}> {
    d = DequantizeLinear <axis = 1> (w, s)
    y = MatMul(x, d)
}"""


def test_equal_elements_become_one_scale_of_rank_0_without_an_axis():
    done = run(FoldUniformScale(), model(VECTOR.replace("SCALES", "0.3, 0.3, 0.3, 0.3")))
    assert done.count == 1
    codes, scale = done.inputs("d")
    assert codes == "w"
    assert done.constants[scale].shape == ()
    assert done.constants[scale] == np.float32(0.3)
    assert "axis" not in done.node("d").attributes
    assert "s" not in done.constants
    assert done.same()


def test_a_vector_of_one_element_says_nothing_more_either():
    text = """(float[2,8] x, float8e4m3fn[8,1] w) => (float[2,1] y) <float[1] s = {0.3}> {
        d = DequantizeLinear(w, s) y = MatMul(x, d) }"""
    done = run(FoldUniformScale(), model(text))
    assert done.count == 1
    assert done.same()


def test_a_vector_that_two_read_stays_until_both_have_their_own():
    text = """(float[2,8] x, float8e4m3fn[8,4] w, float8e4m3fn[8,4] w_b) => (float[2,4] y, float[2,4] z)
        <float[4] s = {0.5, 0.5, 0.5, 0.5}> {
        d = DequantizeLinear(w, s) y = MatMul(x, d) e = DequantizeLinear(w_b, s) z = MatMul(x, e) }"""
    done = run(FoldUniformScale(), model(text))
    assert done.count == 2
    assert "s" not in done.constants
    assert done.same()


STAYS = {
    "elements differ": VECTOR.replace("SCALES", "0.3, 0.3, 0.3, 0.3000001"),
    "an element is NaN": VECTOR.replace("SCALES", "0.3, 0.3, 0.3, 0.3"),
    "there is a zero point": """(float[2,8] x, float8e4m3fn[8,4] w) => (float[2,4] y)
        <float[4] s = {0.5, 0.5, 0.5, 0.5}, float8e4m3fn[4] z = {0, 0, 0, 0}> {
        d = DequantizeLinear <axis = 1> (w, s, z) y = MatMul(x, d) }""",
    "the vector lies in blocks": """(float[2,8] x, float8e4m3fn[8,4] w) => (float[2,4] y)
        <float[2,4] s = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}> {
        d = DequantizeLinear <axis = 0, block_size = 4> (w, s) y = MatMul(x, d) }""",
    "it is one scale": """(float[2,8] x, float8e4m3fn[8,4] w) => (float[2,4] y) <float s = {0.5}> {
        d = DequantizeLinear(w, s) y = MatMul(x, d) }""",
    "it is computed": """(float[2,8] x, float[4] s, float8e4m3fn[8,4] w) => (float[2,4] y) {
        d = DequantizeLinear(w, s) y = MatMul(x, d) }""",
    "it belongs to Q": """(float[2,4] x) => (float[2,4] y) <float[4] s = {0.5, 0.5, 0.5, 0.5}, float t = {0.5}> {
        q = QuantizeLinear <output_dtype = 17> (x, s) y = DequantizeLinear(q, t) }""",
}


@pytest.mark.parametrize("why", STAYS)
def test_it_stays_where(why):
    proto = model(STAYS[why])
    if "NaN" in why:
        (scale,) = (item for item in proto.graph.initializer if item.name == "s")
        scale.float_data[3] = np.nan
    assert run(FoldUniformScale(), proto).count == 0


def test_a_weight_whose_channels_have_one_amax_is_stored_with_one_scale():
    weight = np.random.default_rng(0).uniform(-1, 1, (16, 8)).astype(np.float32)
    weight[3] = 1.0  # the largest of every output channel
    text = "(float[2,16] x, float[16,8] w) => (float[2,8] y) { y = MatMul(x, w) }"
    done = planned_run(FoldUniformScale(), model(text, w=weight), recipe="fp8-amax")
    assert done.count == 1
    assert done.constants[done.inputs("w_dq")[1]] == np.float32(1) / np.float32(448)
    assert done.same()
    assert planned(model(text)).model.graph.initializers["w_scale"].shape == (8,)
