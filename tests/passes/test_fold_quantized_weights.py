"""A float weight behind QuantizeLinear is stored as its codes, those of QuantizeLinear to the bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fp8graph_passes.fold_quantized_weights import FoldQuantizedWeights
from tests.passes.doing import run
from tests.small import model

TEXT = """({kind}[2,8] x, {kind}[8,4] w, {kind}{scale} w_s) => ({kind}[2,4] y) {{
    q = QuantizeLinear <{said}output_dtype = {to}> (w, w_s)
    d = DequantizeLinear <{said}> (q, w_s)
    y = MatMul(x, d)
}}"""


def text(kind="float", scale="", said="", to=17):
    made = TEXT.format(kind=kind, scale=scale, said=f"{said}, " if said else "", to=to)
    return made.replace(", > (q", "> (q").replace(" <> (q", " (q")


def scales(*shape):
    # Some saturate, some reach subnormal codes, none is a power of two.
    return np.random.default_rng(1).choice([0.0013, 0.07, 3.1, 40.7], shape)


@pytest.mark.parametrize("kind", ["float", "float16", "bfloat16"])
@pytest.mark.parametrize("to", [17, 19])
@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ("", ""),
        ("[1]", ""),
        ("[4]", ""),
        ("[8]", "axis = 0"),
        ("[4]", "axis = -1"),
        ("[2,4]", "axis = 0, block_size = 4"),
    ],
)
def test_the_codes_are_those_of_quantize_linear(kind, to, scale, said):
    shape = [int(size) for size in scale.strip("[]").split(",") if size]
    done = run(FoldQuantizedWeights(), model(text(kind, scale, said, to), w_s=scales(*shape)))
    assert done.count == 1 and done.kinds["QuantizeLinear"] == 0
    stored = done.node("d").inputs[0]
    assert stored.dtype == to and stored.is_initializer() and done.inputs("d")[1] == "w_s"
    assert set(done.constants) == {stored.name, "w_s"}
    assert done.same()


def test_one_weight_is_stored_once_and_stays_for_who_reads_it_in_float():
    twice = """(float[2,8] x, float[8,4] w, float w_s) => (float[2,4] y, float[2,4] z, float[2,4] t) {
        q = QuantizeLinear <output_dtype = 17> (w, w_s) d = DequantizeLinear(q, w_s)
        r = QuantizeLinear <output_dtype = 17> (w, w_s) e = DequantizeLinear(r, w_s)
        y = MatMul(x, d) z = MatMul(x, e) t = MatMul(x, w) }"""
    done = run(FoldQuantizedWeights(), model(twice, w_s=0.03))
    assert done.count == 2 and done.inputs("d") == done.inputs("e")
    assert set(done.constants) == {"w", "w_s", "w_e4m3fn"}
    assert done.same()


CAST = """(float[2,8] x, {kind}[8,4] w, {to} w_s) => ({to}[2,8] z, {to}[8,4] d) {{
    c = Cast <to = {code}> (w)
    q = QuantizeLinear <output_dtype = 17> (c, w_s)
    d = DequantizeLinear (q, w_s)
    z = Cast <to = {code}> (x)
}}"""


@pytest.mark.parametrize(("kind", "to", "code"), [("bfloat16", "float", 1), ("float", "float16", 10)])
def test_a_cast_in_front_is_done_first(kind, to, code):
    done = run(FoldQuantizedWeights(), model(CAST.format(kind=kind, to=to, code=code), w_s=0.07))
    assert done.count == 1 and dict(done.kinds) == {"DequantizeLinear": 1, "Cast": 1}
    assert set(done.constants) == {"w_e4m3fn", "w_s"}
    assert done.same()


def test_a_cast_that_others_read_stays():
    shared = CAST.format(kind="bfloat16", to="float", code=1).replace("=> (", "=> (float[8,4] c, ")
    done = run(FoldQuantizedWeights(), model(shared, w_s=0.07))
    assert done.count == 1 and done.kinds["Cast"] == 2 and {"w", "w_e4m3fn"} < set(done.constants)
    assert done.same()


def test_a_zero_point_of_zero_names_the_format():
    zero = """(float[2,8] x, float[8,4] w, float[4] w_s, float8e5m2[4] w_z) => (float[2,4] y) {
        q = QuantizeLinear(w, w_s, w_z) d = DequantizeLinear(q, w_s, w_z) y = MatMul(x, d) }"""
    done = run(FoldQuantizedWeights(), model(zero, w_s=scales(4), w_z=np.zeros(4)))
    assert done.count == 1 and done.node("d").inputs[0].dtype == ir.DataType.FLOAT8E5M2
    assert done.same()


OUTPUT = """(float[2,8] x, float[8,4] w, float w_s) => (float8e4m3fn[8,4] y) {
    y = QuantizeLinear <output_dtype = 17> (w, w_s) }"""


@pytest.mark.parametrize(
    ("why", "graph"),
    [
        ("an activation", text().replace("float[8,4] w,", "float[8,4] a,").replace("(w, w_s)", "(a, w_s)")),
        ("the scale is computed", text().replace("float w_s", "float s").replace("w_s", "s")),
        ("it does not saturate", text().replace("<output", "<saturate = 0, output")),
        ("integers", text(to=3)),
        ("the model returns the codes", OUTPUT),
    ],
)
def test_it_stays_where(why, graph):
    assert run(FoldQuantizedWeights(), model(graph)).count == 0


def test_a_zero_point_that_shifts_stays():
    shift = """(float[2,8] x, float[8,4] w, float w_s, float8e4m3fn w_z) => (float[2,4] y) {
        q = QuantizeLinear(w, w_s, w_z) d = DequantizeLinear(q, w_s, w_z) y = MatMul(x, d) }"""
    assert run(FoldQuantizedWeights(), model(shift, w_z=np.ones(()))).count == 0
