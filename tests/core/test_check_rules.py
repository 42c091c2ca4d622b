"""Every rule of `check` on a small graph that breaks it, and on its neighbour that does not. Measured forms, each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fp8graph
from tests.small import model

GOOD = """(float[2,32] x, float w_s, float8e4m3fn[32,16] w, float w_t, float8e4m3fn w_z, float[16] w_b) => (float[2,16] y) {
    q = QuantizeLinear <output_dtype = 17> (x, w_s)
    d = DequantizeLinear (q, w_s)
    u = DequantizeLinear (w, w_t)
    y = MatMul(d, u)
}"""
NUMBERS = {"w_s": 0.5, "w_t": 0.5, "w_z": 0.0}
HALF = GOOD.replace("float[2,32] x, float w_s", "float16[2,32] x, float16 w_s").replace("float w_t", "float16 w_t")
HALF = HALF.replace("(float[2,16] y)", "(float16[2,16] y)")
CHANNELS = GOOD.replace("float w_t", "float[16] w_t").replace("DequantizeLinear (w", "DequantizeLinear <axis = 1> (w")
SLICED = """e = Slice(q, w_a, w_e, w_a) d = DequantizeLinear (e, w_s)"""
CAST = """(float[2,32] x, float[32,16] w) => (float[2,16] y) {
    c = Cast <to = 17> (x) d = Cast <to = 1> (c) y = MatMul(d, w) }"""


def swap(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


# what it is, the model, its numbers, the worst finding
ROWS: list[tuple[str, str, dict[str, Any], tuple[str, str, str] | None]] = [
    ("nothing is wrong", GOOD, {}, None),
    ("nothing is wrong in fp16", HALF, {}, None),
    ("NaN in a weight", GOOD, {"w": np.full((32, 16), np.nan)}, ("FG326", "warning", "u")),
    ("Q and DQ differ", swap(GOOD, ("DequantizeLinear (q, w_s)", "DequantizeLinear (q, w_t)")), {"w_t": 0.25}, ("FG324", "warning", "d")),
    ("a scale too small for fp16", HALF, {"w_s": 1e-6, "w_t": 1}, ("FG325", "info", "q")),
    ("a zero point that is computed", swap(GOOD, ("w_z", "z"), ("DequantizeLinear (q, w_s)", "DequantizeLinear (q, w_s, z)")), {}, ("FG309", "warning", "d")),
    ("a zero point of another type", swap(GOOD, ("float8e4m3fn w_z", "int8 w_z"), ("DequantizeLinear (w, w_t)", "DequantizeLinear (w, w_t, w_z)")), {}, ("FG334", "warning", "u")),
    ("a Q that says no type", swap(GOOD, (" <output_dtype = 17>", "")), {}, ("FG333", "error", "y")),
    ("too few scales", swap(CHANNELS, ("float[16] w_t", "float[8] w_t")), {"w_t": np.full(8, 0.5)}, ("FG335", "error", "u")),
    ("an axis that is not there", swap(CHANNELS, ("axis = 1", "axis = 2")), {"w_t": np.full(16, 0.5)}, ("FG335", "error", "u")),
    ("blocks that do not divide", swap(GOOD, ("float w_t", "float[3,16] w_t"), ("(w, w_t)", "<axis = 0, block_size = 11> (w, w_t)")), {"w_t": np.full((3, 16), 0.5)}, ("FG335", "error", "u")),
    ("bf16 scale of an fp16 tensor", swap(HALF, ("float16 w_s", "bfloat16 w_s"), ("(q, w_s)", "(q, w_t)")), {}, ("FG329", "error", "q")),
    ("operands of two types", swap(HALF, ("float16 w_t", "float w_t")), {}, ("FG329", "error", "y")),
    ("a bias of another type", swap(HALF, ("MatMul(d, u)", "Gemm(d, u, w_b)")), {}, ("FG329", "error", "y")),
    ("FP8 into Relu", swap(GOOD, ("DequantizeLinear (q,", "DequantizeLinear (r,"), ("d = ", "r = Relu(q) d = ")), {}, ("FG317", "error", "r")),
    ("FP8 through Reshape", swap(GOOD, ("DequantizeLinear (q,", "DequantizeLinear (r,"), ("d = ", "i = Shape(x) r = Reshape(q, i) d = ")), {}, None),
    ("a stored weight through Transpose", swap(GOOD, ("w[32,16]", "w[32,16]") if False else ("(w, w_t)", "(v, w_t)"), ("u = ", "v = Transpose(w) u = "), ("8e4m3fn[32,16]", "8e4m3fn[16,32]")), {}, ("FG317", "error", "v")),
    ("a Cast to FP8", CAST, {}, ("FG318", "error", "c")),
    ("a pair before a norm", swap(GOOD, ("y = MatMul(d, u)", "r = Relu(x) y = MatMul(d, u) z = LayerNormalization(e, w_n)"), ("float[16] w_b", "float[32] w_n"), ("d = Deq", "p = QuantizeLinear <output_dtype = 17> (x, w_t) e0 = DequantizeLinear (p, w_t) e = Relu(e0) d = Deq"), ("float[2,16] y)", "float[2,16] y, float[2,32] z)")), {"w_t": 0.25}, ("FG323", "warning", "e0")),
    ("an operator on integers", "(uint8[2,4] a, uint8[4,2] b) => (int32[2,2] y) { y = MatMulInteger(a, b) }", {}, ("FG328", "error", "y")),
    ("an operator that is not imported", "(float[4,4] x) => (float y) { y = Det(x) }", {}, ("FG328", "error", "y")),
    ("ConvTranspose in bf16", "(bfloat16[1,4,8,8] x, bfloat16[4,4,2,2] w) => (bfloat16[1,4,9,9] y) { y = ConvTranspose(x, w) }", {}, ("FG336", "error", "y")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "numbers", "worst"), [pytest.param(*row[1:], id=row[0]) for row in ROWS])
def test_what_is_broken_is_found_and_its_neighbour_is_not(text, numbers, worst):
    given = {name: value for name, value in NUMBERS.items() if f" {name}" in text}
    shaped = {name: np.full(16, value) if f"[16] {name}" in text else value for name, value in given.items()}
    found = fp8graph.check(model(text, **{name: np.asarray(value) for name, value in (shaped | numbers).items()}))
    order = ("error", "warning", "info")
    first = min(found, key=lambda item: order.index(item.severity), default=None)
    assert ((first.code, first.severity, first.op) if first is not None else None) == worst, found
    assert all(item.do for item in found), found
