"""torch's Div, Clip, Cast, Cast, Mul become Q/DQ, bit for bit; what would not be the same stays, and says why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fp8graph_passes.standardize_fp8_casts import StandardizeFp8Casts
from tests.passes.doing import run
from tests.small import model

# The scale is so small that normal numbers saturate; it is no power of two.
SCALE = {"w_s": np.float32(0.0013)}
LIMITS = {"w_low": -448, "w_high": 448}
STATIC = """(float[2,8] x, float w_s, float w_low, float w_high, float[8,4] w) => (float[2,4] y) {
    div = Div(x, w_s)
    clip = Clip(div, w_low, w_high)
    q = Cast <to = 17> (clip)
    back = Cast <to = 1> (q)
    mul = Mul(back, w_s)
    y = MatMul(mul, w)
}"""
WEIGHT = """(float[2,8] x, float8e4m3fn[4,8] w, float[{scale}] w_s) => (float[2,4] y) {{
    back = Cast <to = 1> (w)
    mul = Mul(back, w_s)
    y = Gemm <transB = 1> (x, mul)
}}"""


@pytest.mark.parametrize("limits", [(-448, 448), (-1000, 1000), (-np.inf, np.inf)])
def test_the_chain_of_torch_becomes_one_pair_with_its_scale(limits):
    done = run(StandardizeFp8Casts(), model(STATIC, w_low=limits[0], w_high=limits[1], **SCALE))
    assert done.count == 5
    assert dict(done.kinds) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "MatMul": 1}
    assert done.inputs("q") == ["x", "w_s"] and done.inputs("mul") == ["q", "w_s"]
    assert done.node("q").outputs[0].dtype == ir.DataType.FLOAT8E4M3FN
    assert set(done.constants) == {"w_s", "w"}
    assert done.same()


def test_the_opset_is_raised_where_it_has_to_be():
    done = run(StandardizeFp8Casts(), model(STATIC, opset=19, **LIMITS, **SCALE))
    assert done.count == 5 and done.model.opset_imports == {"": 21}
    assert done.same()


def test_what_cuts_more_than_saturation_stays_in_front():
    done = run(StandardizeFp8Casts(), model(STATIC, w_low=-240, w_high=448, **SCALE))
    assert done.kinds["Clip"] == done.kinds["Div"] == 1
    assert done.inputs("q")[0] == "clip" and done.constants[done.inputs("q")[1]] == 1
    assert done.inputs("mul") == ["q", "w_s"]
    assert done.same()


@pytest.mark.parametrize(
    ("scale", "shape", "axis"), [("4,1", (4,), 0), ("1,8", (8,), 1), ("8", (8,), 1), ("1", (), None), ("1,1", (), None)]
)
def test_scales_of_a_weight_lie_along_their_axis(scale, shape, axis):
    numbers = np.random.default_rng(0).random([int(size) for size in scale.split(",")]) + 0.1
    done = run(StandardizeFp8Casts(), model(WEIGHT.format(scale=scale), w_s=numbers))
    assert done.count == 2 and done.inputs("mul")[0] == "w"
    assert done.constants[done.inputs("mul")[1]].shape == shape
    said = done.node("mul").attributes.get("axis")
    assert (None if said is None else said.as_int()) == axis
    assert done.same()


def test_a_weight_that_is_rounded_in_the_graph_is_quantized_by_row():
    text = """(float[2,8] x, float[4,8] w, float[4,1] w_s) => (float[2,4] y) {
        div = Div(w, w_s) q = Cast <to = 17> (div) back = Cast <to = 1> (q) mul = Mul(w_s, back)
        y = Gemm <transB = 1> (x, mul) }"""
    done = run(StandardizeFp8Casts(), model(text, w_s=np.array([[0.001], [0.3], [0.01], [0.002]])))
    assert done.count == 4 and done.inputs("q")[0] == "w" and done.inputs("mul")[0] == "q"
    assert done.inputs("q")[1] == done.inputs("mul")[1]
    assert done.same()


HALF = STATIC.replace("float[", "float16[").replace("float w_", "float16 w_").replace("to = 1>", "to = 10>")
VECTOR = STATIC.replace("float w_s", "float[8] w_s")
COMPUTED = STATIC.replace("float w_s", "float s").replace("w_s", "s")
SPREAD = WEIGHT.format(scale="4,1").replace("float8e4m3fn[4,8]", "float8e4m3fn[1,8]")
BLOCKS = WEIGHT.format(scale="4,8")


@pytest.mark.parametrize(
    ("text", "numbers", "left", "noted"),
    [
        # fp16 rounds the quotient before it is encoded
        (HALF, {"w_s": 0.0013, **LIMITS}, {"Div": 1}, []),
        # no engine applies scales of an activation along the sum
        (VECTOR, {"w_s": np.arange(1, 9) / 1000, **LIMITS}, {"Div": 1, "Mul": 1}, ["FG235"]),
        (COMPUTED, LIMITS, {"Div": 1, "Mul": 1}, ["FG235"]),
        (STATIC, {"w_s": -0.0013, **LIMITS}, {"Div": 1, "Mul": 1}, ["FG235"]),
        # one row becomes four
        (SPREAD, {"w_s": np.arange(1, 5).reshape(4, 1) / 7}, {"Mul": 1}, ["FG235"]),
        (BLOCKS, {"w_s": np.random.default_rng(0).random((4, 8))}, {"Mul": 1}, ["FG235"]),
    ],
)
def test_a_scale_that_would_change_a_bit_or_is_none_stays_beside_a_pair_of_scale_1(text, numbers, left, noted):
    done = run(StandardizeFp8Casts(), model(text, **numbers))
    assert done.kinds["Cast"] == 0 and done.kinds["DequantizeLinear"] == 1
    assert {kind: done.kinds[kind] for kind in ("Div", "Mul") if done.kinds[kind]} == left
    assert [item.code for item in done.ctx.notes.items()] == noted
    assert done.same()


@pytest.mark.parametrize("to", [18, 19, 20])
def test_every_fp8_type_has_its_pair(to):
    text = STATIC.replace("to = 17", f"to = {to}")
    done = run(StandardizeFp8Casts(), model(text, w_low=-1e6, w_high=1e6, **SCALE))
    assert done.kinds["Cast"] == 0 and done.node("q").outputs[0].dtype == to
    assert done.same()


def test_results_that_others_read_stay():
    text = STATIC.replace("(float[2,4] y)", "(float[2,4] y, float[2,8] div, float[2,8] back, float8e4m3fn[2,8] q)")
    done = run(StandardizeFp8Casts(), model(text, **LIMITS, **SCALE))
    assert done.kinds["Div"] == 1 and done.kinds["DequantizeLinear"] == 2 and done.kinds["Cast"] == 0
    assert done.same()


PLAIN = "({into} x) => ({out} y) {{ y = Cast <to = {to}> (x) }}"


@pytest.mark.parametrize(
    ("why", "text", "notes"),
    [
        ("it does not saturate", "(float[4] x) => (float8e4m3fn[4] y) { y = Cast <to = 17, saturate = 0> (x) }", 1),
        ("from one FP8 to another", PLAIN.format(into="float8e4m3fn[4]", out="float8e5m2[4]", to=19), 0),
        ("from a type that Q does not take", PLAIN.format(into="double[4]", out="float8e4m3fn[4]", to=17), 0),
        ("no FP8 in it", PLAIN.format(into="float[4]", out="float16[4]", to=10), 0),
    ],
)
def test_it_stays_where(why, text, notes):
    done = run(StandardizeFp8Casts(), model(text))
    assert done.count == 0 and len(done.ctx.notes.items()) == notes


@pytest.mark.parametrize(
    ("rows", "columns", "attributes"),
    [
        (1, 2, {"axis": 1, "block_size": 2}),
        (2, 4, {"axis": 1, "block_size": 4}),
        (2, 1, {"axis": 0, "block_size": 2}),
        (2, 2, {"axis": 1, "block_size": 2}),
        (1, 3, {"axis": 1, "block_size": 3}),
        (1, 8, {"axis": 0}),
    ],
)
def test_scales_repeated_over_blocks_become_blocks(rows, columns, attributes):
    few = np.random.default_rng(0).random([-(-4 // rows), -(-8 // columns)]).astype(np.float32) + 0.1
    full = few.repeat(rows, 0)[:4].repeat(columns, 1)[:, :8]
    done = run(StandardizeFp8Casts(), model(WEIGHT.format(scale="4,8"), w_s=full))
    node = done.node("mul")
    assert node.op_type == "DequantizeLinear"
    assert {name: item.value for name, item in node.attributes.items()} == attributes
    assert done.same()


def test_a_scale_for_each_element_stays_a_product():
    full = np.random.default_rng(0).random([4, 8]).astype(np.float32) + 0.1
    assert run(StandardizeFp8Casts(), model(WEIGHT.format(scale="4,8"), w_s=full)).kinds["Mul"] == 1


@pytest.mark.parametrize("perm", ["<perm = [1, 0]>", ""])
def test_codes_and_scales_behind_a_transpose_are_stored_turned(perm):
    """torchao's weights: an engine takes codes in front of DequantizeLinear alone."""
    text = f"""(float[2,8] x, float8e4m3fn[4,8] w, float[4,1] w_s) => (float[2,4] y) {{
        t = Transpose {perm} (w)
        t_s = Transpose <perm = [1, 0]> (w_s)
        back = Cast <to = 1> (t)
        mul = Mul(back, t_s)
        y = MatMul(x, mul)
    }}"""
    scales = np.random.default_rng(0).random([4, 1]) + 0.1
    done = run(StandardizeFp8Casts(), model(text, w_s=scales))
    assert dict(done.kinds) == {"DequantizeLinear": 1, "MatMul": 1}
    assert done.node("mul").attributes["axis"].as_int() == 1
    assert done.same()
