"""Scales of each run go behind the product; what does not commute with it stays."""

from __future__ import annotations

import numpy as np
import pytest

import fp8graph
from fp8graph_passes.hoist_dynamic_scales import HoistDynamicScales
from tests.passes.doing import run
from tests.small import feeds, model, needs_rtx

HEAD = """(float[4,32] x, float8e4m3fn[32,32] w, float[32] w_c) => (float[4,32] y)
    <float most = {448}, float one = {1}, float step = {0.03}, int64[1] last = {-1}, int64[1] first = {0}>"""
SIZE = "size = Abs(x)"
TENSOR = f"{SIZE} peak = ReduceMax <keepdims = 0> (size) s = Div(peak, most)"
TOKEN = f"{SIZE} peak = ReduceMax(size, last) s = Div(peak, most)"
COLUMN = f"{SIZE} peak = ReduceMax(size, first) s = Div(peak, most)"
PAIR = """part = Div(x, s) q = QuantizeLinear <output_dtype = 17> (part, one) d = DequantizeLinear(q, one)
    weight = DequantizeLinear(w, step)"""
HOISTED = {
    "one number": f"{TENSOR} {PAIR} m = Mul(d, s) y = MatMul(m, weight)",
    "one a token": f"{TOKEN} {PAIR} m = Mul(s, d) y = MatMul(m, weight)",
    "a Gemm with a bias": f"{TOKEN} {PAIR} m = Mul(d, s) y = Gemm <transB = 1, beta = 0.5> (m, weight, w_c)",
    "a transposed weight": f"{TOKEN} {PAIR} t = Transpose <perm = [1, 0]> (weight) m = Mul(d, s) y = MatMul(m, t)",
    "another factor": f"{TENSOR} {PAIR} other = Neg(s) m = Mul(d, other) y = MatMul(m, weight)",
}
LEFT = {
    "along the sum": f"{COLUMN} {PAIR} m = Mul(d, s) y = MatMul(m, weight)",
    "a constant": f"{TENSOR} {PAIR} m = Mul(d, step) y = MatMul(m, weight)",
    "a float weight": f"{TENSOR} {PAIR} m = Mul(d, s) f = Relu(weight) y = MatMul(m, f)",
    "no product": f"{TENSOR} {PAIR} m = Mul(d, s) y = Add(m, w_c)",
}


@pytest.mark.parametrize("case", HOISTED)
def test_the_factor_goes_behind_the_product(case):
    done = run(HoistDynamicScales(), model(f"{HEAD} {{ {HOISTED[case]} }}"))
    assert done.count == 1
    product = next(node for node in done.model.graph if node.op_type in ("MatMul", "Gemm"))
    made = product.inputs[0].producer()
    assert made is not None and made.op_type == "DequantizeLinear"
    assert done.apart() <= 64
    # Below 1, so that sums fit fp16: codes are the same, for the step is a power of two.
    scale = done.constants[made.inputs[1].name]
    assert scale == (1 if case == "another factor" else np.float32(1 / 512))


@pytest.mark.parametrize("case", LEFT)
def test_what_does_not_commute_stays(case):
    done = run(HoistDynamicScales(), model(f"{HEAD} {{ {LEFT[case]} }}"))
    assert done.count == 0 and done.same()


@needs_rtx
@pytest.mark.parametrize("case", ["one number", "one a token", "a Gemm with a bias"])
def test_an_engine_computes_the_product_in_fp8(case, tmp_path):
    proto, out, engine = model(f"{HEAD} {{ {HOISTED[case]} }}"), tmp_path / "m.onnx", tmp_path / "m.engine"
    done = fp8graph.optimize(
        proto, target="tensorrt-rtx:sm89", high_precision_dtype="fp16", data=feeds(proto, 2), output=out,
        allow_unquantized=True,
    )  # fmt: skip
    # A value on its way through fp16 may fall to the next code.
    assert done.comparison is not None
    left = done.comparison.outputs["y"].sqnr_db
    assert left is None or left > 30
    fp8graph.build(out, output=engine, target="tensorrt-rtx:sm89")
    found = fp8graph.attest(engine, model=out)
    assert [op.verdict for op in (*found.verdicts.values(), *found.others.values())] == ["fp8"]


FLOORS = {
    "clipped": f"{SIZE} most_of = ReduceMax(size, last) peak = Clip(most_of, tiny) s = Div(peak, most)",
    "at least": f"{SIZE} most_of = ReduceMax(size, last) ratio = Div(most_of, most) s = Max(ratio, tiny)",
    "added": f"{SIZE} most_of = ReduceMax(size, last) ratio = Div(most_of, most) s = Add(ratio, tiny)",
    "two peaks": """high = ReduceMax(x, last) low = ReduceMin(x, last) down = Neg(low) most_of = Max(high, down)
        peak = Clip(most_of, tiny) s = Div(peak, most)""",
}


@pytest.mark.parametrize("target", ["reference", "tensorrt-rtx:sm89"])
@pytest.mark.parametrize("high", ["fp16", "bf16"])
@pytest.mark.parametrize("case", FLOORS)
def test_a_token_of_zeros_is_zero_in_half_precision_too(case, high, target):
    """fp16 has no 1e-12: a floor of it, rounded, is 0, and the token 0 / 0."""
    head = HEAD.replace("float one = {1}", "float one = {1}, float tiny = {1e-12}")
    proto = model(f"{head} {{ {FLOORS[case]} {PAIR} m = Mul(d, s) y = MatMul(m, weight) }}")
    seen = np.random.default_rng(7).standard_normal((3, 4, 32)).astype(np.float32)
    asked = seen.copy()
    asked[:, 1], asked[:, 2] = 0, asked[:, 2] * np.float32(1e-5)
    done = fp8graph.optimize(
        proto, target=target, high_precision_dtype=high, data={"x": seen}, allow_unquantized=True, compare=False
    )
    result = fp8graph.compare(proto, done.model, data={"x": asked}).outputs["y"]
    assert result.new_nonfinite == 0 and (result.sqnr_db or 0) > {"fp16": 60, "bf16": 45}[high]
    assert "" not in done.plan.ops
    stays = {item.op for item in done.findings if item.code == "FG214"}
    assert {"s", "part", "y"} <= stays and "y_unscaled" not in stays
