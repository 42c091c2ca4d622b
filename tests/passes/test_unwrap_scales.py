"""A scale that is a list of one becomes a scalar, for the standard takes both for one scale and engines do not."""

from __future__ import annotations

import numpy as np
import pytest

from fp8graph_passes.unwrap_scales import UnwrapScales
from tests.passes.doing import run
from tests.small import model

CONV = """(float[1,4,6,6] x, float[1] w_s, float[1] w_t, float8e4m3fn[1] w_z, float8e4m3fn[4,4,3,3] w)
        => (float[1,4,4,4] y) {
    q = QuantizeLinear(x, w_s, w_z)
    d = DequantizeLinear(q, w_s, w_z)
    v = DequantizeLinear(w, w_t)
    y = Conv(d, v)
}"""
NUMBERS = {"w_s": np.array([0.5]), "w_t": np.array([0.25]), "w_z": np.zeros(1)}


def test_scales_and_zero_points_of_one_element_become_scalars():
    done = run(UnwrapScales(), model(CONV, **NUMBERS))
    assert done.count == 5
    for output, slots in (("q", (1, 2)), ("d", (1, 2)), ("v", (1,))):
        for slot in slots:
            assert done.constants[done.inputs(output)[slot]].shape == ()
    assert done.inputs("q")[1] == done.inputs("d")[1]
    assert not {"w_s", "w_t", "w_z"} & set(done.constants)
    assert done.same()


def test_a_channel_of_its_own_is_one_scale_all_the_same():
    text = """(float[2,8] x, float[1] w_t, float8e4m3fn[8,1] w) => (float[2,1] y) {
        v = DequantizeLinear <axis = 1> (w, w_t) y = MatMul(x, v) }"""
    done = run(UnwrapScales(), model(text, w_t=np.array([0.25])))
    assert done.count == 1 and "axis" not in done.node("v").attributes
    assert done.same()


QUANTIZE = "({inputs}) => (float8e4m3fn[2,4] y) {{ y = QuantizeLinear <output_dtype = 17> (x, {scale}) }}"
BLOCK = """(float8e4m3fn[4,1] w, float[1,1] w_s) => (float[4,1] y) {
    y = DequantizeLinear <axis = 0, block_size = 4> (w, w_s) }"""


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("it is a scalar", QUANTIZE.format(inputs="float[2,4] x, float w_s", scale="w_s")),
        ("it is a vector", QUANTIZE.format(inputs="float[2,4] x, float[4] w_s", scale="w_s")),
        ("it is computed", QUANTIZE.format(inputs="float[2,4] x, float[1] s", scale="s")),
        ("it is a block", BLOCK),
    ],
)
def test_it_stays_where(why, text):
    assert run(UnwrapScales(), model(text)).count == 0
