"""Q/DQ in half-precision graphs are written with float32 scales and Casts around them: the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fp8graph.graph import walk
from fp8graph.testing import outputs, planned, random_feeds
from fp8graph_passes.spell_fp32_scales import SpellFp32Scales
from tests.passes.doing import planned_run, run
from tests.small import model

TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
DENSE = """(float[2,16] x, float[16,8] w) => (float[2,8] y) { r = Relu(x) y = MatMul(r, w) }"""


def chain(done, value):
    """Op types and dtypes from a value up to the first op that is no Cast, Q or DQ."""
    found = []
    while (node := value.producer()) is not None and node.op_type in ("Cast", "QuantizeLinear", "DequantizeLinear"):
        found.append((node.op_type, node.outputs[0].dtype))
        value = node.inputs[0]
    return found


@pytest.mark.parametrize("high", TYPES)
def test_q_reads_through_a_cast_and_a_cast_follows_dq(high):  # cases 1 and 2
    done = planned_run(SpellFp32Scales(), model(DENSE), high=high)
    assert done.count == 3  # one Q, two DQ
    half, wide, fp8 = TYPES[high], ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN
    activation, weight = done.at("y").inputs
    assert chain(done, activation) == [
        ("Cast", half), ("DequantizeLinear", wide), ("QuantizeLinear", fp8), ("Cast", wide)
    ]  # fmt: skip
    assert chain(done, weight) == [("Cast", half), ("DequantizeLinear", wide)]


@pytest.mark.parametrize("high", TYPES)
def test_the_numbers_are_those_that_opset_23_says_in_one_op(high):
    done = planned_run(SpellFp32Scales(), model(DENSE), high=high)
    for seed in range(3):
        feed = random_feeds(done.before, seed=seed)
        old, new = (outputs(item, feed, by_reference=True) for item in (done.before, done.model))
        np.testing.assert_array_equal(old["y"], new["y"])


@pytest.mark.parametrize("high", TYPES)
def test_scales_stay_float32(high):
    done = planned_run(SpellFp32Scales(), model(DENSE), high=high)
    assert {done.constants[name].dtype for name in done.constants if name.endswith("_scale")} == {np.dtype(np.float32)}


def test_a_float32_graph_needs_nothing():
    done = planned_run(SpellFp32Scales(), model(DENSE))
    assert done.count == 0


def test_every_reader_of_a_dequantized_value_reads_the_cast():
    text = """(float16[2,16] x, float16[16,8] w) => (float16[2,8] y, float16[2,8] z) {
        r = Relu(x) y = MatMul(r, w) z = Gemm(r, w) }"""
    done = planned_run(SpellFp32Scales(), model(text))
    assert done.inputs("y")[0] == done.inputs("z")[0]
    assert done.node(done.inputs("y")[0]).op_type == "Cast"


def test_a_pair_that_came_with_fp16_scales_is_left_as_it_is():
    text = """(float16[2,16] x) => (float16[2,16] y) <float16 s = {14336}> {
        q = QuantizeLinear <output_dtype = 17> (x, s) y = DequantizeLinear(q, s) }"""
    assert run(SpellFp32Scales(), model(text)).count == 0


def test_a_dq_that_says_its_output_type_is_left_as_it_is():
    text = """(float[2,16] x) => (float16[2,16] y) <float s = {0.5}> {
        q = QuantizeLinear <output_dtype = 17> (x, s) y = DequantizeLinear <output_dtype = 10> (q, s) }"""
    assert run(SpellFp32Scales(), model(text, opset=23)).count == 0


def test_a_pair_in_a_body_is_spelt_in_the_body():
    text = """(float16[2,16] x, bool c, float16[16,16] w) => (float16[2,16] y) {
        y = If (c) <then_branch = t () => (float16[2,16] a) { n = Neg(x) a = MatMul(n, w) },
                    else_branch = e () => (float16[2,16] b) { m = Abs(x) b = MatMul(m, w) }> }"""
    done = planned_run(SpellFp32Scales(), model(text))
    body = done.node("y").attributes["then_branch"].as_graph()
    pair = ["Cast", "QuantizeLinear", "DequantizeLinear", "Cast"]
    assert [node.op_type for node in body] == ["Neg", *pair, "DequantizeLinear", "Cast", "MatMul"]


def test_a_small_range_that_a_half_precision_scale_would_spoil_is_exact():
    weight = (np.random.default_rng(0).standard_normal((16, 8)) * 1e-4).astype(np.float16)
    held = planned(model(DENSE.replace("float[", "float16["), w=weight), recipe="fp8-amax").model.graph.initializers
    scale = held["w_scale"].const_value.numpy()
    np.testing.assert_array_equal(scale, np.abs(weight.astype(np.float32)).max(axis=0) / np.float32(448))
    assert (scale < np.finfo(np.float16).tiny).all()


def test_branches_that_quantize_one_tensor_share_the_cast_in_front_of_the_if():
    text = """(float16[2,32] x, bool[1] c, float16[32,32] w_a, float16[32,32] w_b) => (float16[2,32] y) {
        h = Relu(x)
        y = If(c) <then_branch = t () => (float16[2,32] p) { p = MatMul(h, w_a) },
                   else_branch = e () => (float16[2,32] q) { q = MatMul(h, w_b) }>
    }"""
    done = planned_run(SpellFp32Scales(), model(text))
    quantizers = [place.node for place in walk.walk(done.model) if place.node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 2 and len({node.inputs[0] for node in quantizers}) == 1
    cast = quantizers[0].inputs[0].producer()
    assert cast.op_type == "Cast" and cast.graph is done.model.graph
    assert done.same()


def test_of_scales_in_two_types_the_half_one_becomes_float32():
    text = """(float16[4,32] x, float8e4m3fn[16,32] w, float16[16] w_s, {t} w_t) => (float16[4,16] y) {{
        f = Cast <to = {k}> (x)
        q = QuantizeLinear <output_dtype = 17> (f, w_t)
        d = DequantizeLinear(q, w_t)
        h = Cast <to = 10> (d)
        v = DequantizeLinear <axis = 0> (w, w_s)
        y = Gemm <transB = 1> (h, v)
    }}"""
    scales = {"w_s": np.full(16, 0.003), "w_t": np.array(0.01)}
    done = run(SpellFp32Scales(), model(text.format(t="float", k=1), **scales))
    assert done.count > 0 and done.same()
    assert {array.dtype for name, array in done.constants.items() if name != "w"} == {np.dtype(np.float32)}
    assert SpellFp32Scales().rewrite(done.model, done.ctx) == 0
    assert run(SpellFp32Scales(), model(text.format(t="float16", k=10), **scales)).count == 0  # of one type they stay
