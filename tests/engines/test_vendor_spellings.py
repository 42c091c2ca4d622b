"""Models that came in FP8 as torch, Transformer Engine and ModelOpt spell it: optimized, built, and found in FP8."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fp8graph
from fp8graph.engines.attest import attest_engine
from fp8graph.testing import from_text

pytestmark = pytest.mark.usefixtures("rtx")
HEAD = '<ir_version: 9, opset_import: ["" : {opset}, "trt" : 1]>\n'
TORCH = (
    HEAD.format(opset=19)
    + """torch (float[16,64] x, float8e4m3fn[32,64] w_1) => (float[16,32] y)
<float s = {0.017}, float t = {0.0021}, float low = {-448}, float high = {448}> {
    div = Div (x, s)
    clip = Clip (div, low, high)
    q = Cast <to = 17> (clip)
    back = Cast <to = 1> (q)
    d = Mul (back, s)
    u = Cast <to = 1> (w_1)
    v = Mul (u, t)
    y = Gemm <transB = 1> (d, v)
}"""
)
ENGINE = (
    HEAD.format(opset=17)
    + """transformer_engine (float[16,64] x, float[32,64] w_1) => (float[16,32] y)
<float s = {0.017}, float t = {0.0021}> {
    q = trt.TRT_FP8QuantizeLinear (x, s)
    d = trt.TRT_FP8DequantizeLinear (q, s)
    u = trt.TRT_FP8QuantizeLinear (w_1, t)
    v = trt.TRT_FP8DequantizeLinear (u, t)
    y = Gemm <transB = 1> (d, v)
}"""
)
# Numbers in fp16 are written as their bits.
MODELOPT = (
    HEAD.format(opset=19)
    + """modelopt (float16[16,64] x, float16[32,64] w_1) => (float16[16,32] y)
<float16 s = {9306}, float16 t = {6221}, float8e4m3fn zero = {0}> {
    q = QuantizeLinear (x, s, zero)
    d = DequantizeLinear (q, s, zero)
    u = QuantizeLinear (w_1, t, zero)
    v = DequantizeLinear (u, t, zero)
    vt = Transpose <perm = [1, 0]> (v)
    y = MatMul (d, vt)
}"""
)


@pytest.mark.parametrize("high", ["keep", "fp16"])
@pytest.mark.parametrize("text", [TORCH, ENGINE, MODELOPT], ids=["torch", "transformer_engine", "modelopt"])
def test_it_runs_in_fp8_with_the_scales_that_it_came_with(text, high, tmp_path):
    model, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    onnx.save(from_text(text), tmp_path / "theirs.onnx")
    asked = {} if high == "keep" else {"high_precision_dtype": high}
    done = fp8graph.optimize(tmp_path / "theirs.onnx", target="tensorrt-rtx:sm89", output=model, **asked)
    assert done.plan.ops["y"].why.code == "FG230" and done.plan.data == "none" and done.planned == 1
    held = {item.name: numpy_helper.to_array(item) for item in onnx.load(model).graph.initializer}
    assert [array.shape for array in held.values() if array.dtype == ml_dtypes.float8_e4m3fn and array.size > 1]
    scales = sorted(float(array) for array in held.values() if array.dtype != ml_dtypes.float8_e4m3fn)
    assert np.allclose(scales, [0.0021, 0.017], rtol=1e-3) and len(held) <= 4
    fp8graph.build(model, output=engine, target="tensorrt-rtx:sm89")
    attested = attest_engine(engine, model, None)
    assert not attested.others
    assert {key: item.verdict for key, item in attested.verdicts.items()} == {"y": "fp8"}
