"""The reference computes TensorRT's quantization operators as their documents say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fp8graph import formats
from fp8graph.formats.spec import PerAxis, PerBlock, ScaleFormat
from fp8graph.graph import tensors
from fp8graph.graph.load import load
from fp8graph.numerics import cast
from fp8graph.numerics.scale import channel_amax, store_scales
from fp8graph.runners.expand.vendor_quantization import expand
from fp8graph.runners.onnxruntime import fill_types
from fp8graph.runners.reference import reference
from tests.small import model

Array = np.ndarray[Any, Any]
E4M3FN, E2M1, E8M0, INT4 = (formats.get(name) for name in ("e4m3fn", "e2m1", "e8m0", "int4"))
OUTER = np.float32(0.003)


def activations(shape: tuple[int, ...]) -> Array:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x.reshape(-1, shape[-1])[1] *= 1e-4
    x.reshape(-1, shape[-1])[2] = 0  # blocks of zeros
    return x


def mxfp8(x: Array, axis: int) -> tuple[Array, Array]:
    """What is dequantized, and the scales."""
    kind = PerBlock(axis, 32, x.ndim)
    amax = channel_amax(x, kind)
    scale = np.asarray(store_scales(amax, E4M3FN, ScaleFormat("e8m0")).effective)
    scale = np.where(amax == 0, np.float32(2.0**-127), scale).astype(np.float32)  # what Cast makes of 0
    return cast.fake_quantize(x, E4M3FN, scale, kind), scale


def nvfp4(x: Array, axis: int) -> tuple[Array, Array]:
    kind = PerBlock(axis, 16, x.ndim)
    codes = cast.encode(channel_amax(x, kind) / np.float32(6), E4M3FN, OUTER)
    step = cast.decode(codes, E4M3FN, OUTER)
    return cast.fake_quantize(x, E2M1, np.where(step == 0, np.float32(1), step), kind) * (step != 0).repeat(
        16, axis
    ), cast.decode(codes, E4M3FN)


DYNAMIC: dict[str, tuple[str, Callable[[Array, int], tuple[Array, Array]]]] = {
    "mxfp8": (
        """q, s = trt.TRT_MXFP8DynamicQuantize <axis = AXIS, block_size = 32, output_dtype = 17> (x)
        y = trt.TRT_MXFP8DequantizeLinear <axis = AXIS, block_size = 32, output_dtype = 1> (q, s)
        t = Cast <to = 1> (s)""",
        mxfp8,
    ),
    "nvfp4": (
        """q, s = trt.TRT_FP4DynamicQuantize <axis = AXIS, block_size = 16, scale_type = 17> (x, w_o)
        d = DequantizeLinear(s, w_o)
        y = DequantizeLinear <axis = AXIS, block_size = 16> (q, d)
        t = Cast <to = 1> (s)""",
        nvfp4,
    ),
}


def text_of(shape: tuple[int, ...], body: str) -> str:
    dims = ",".join(map(str, shape))
    return f"(float[{dims}] x, float w_o) => (float[{dims}] y, float t) {{ {body} }}"


def vendor(text: str, *, opset: int = 21, version: int = 10, **weights: Array) -> onnx.ModelProto:
    proto = model(text, opset=opset, ir=version, **weights)
    proto.opset_import.add(domain="trt", version=1)
    for value in proto.graph.output:
        if value.name == "t":
            value.type.tensor_type.ClearField("shape")
    return proto


CASES = [
    (kind, opset, shape, axis)
    for kind in DYNAMIC
    for opset in ((17, 21, 25) if kind == "mxfp8" else (21, 25))  # below 21 ONNX's DequantizeLinear has no blocks
    for shape, axis in (((8, 64), -1), ((8, 64), 1), ((64, 8), 0), ((2, 4, 64), -1), ((3, 64, 8), -2), ((3, 64, 8), 1))
]


@pytest.mark.parametrize(("kind", "opset", "shape", "axis"), CASES)
def test_dynamic_quantization_is_what_the_documents_say(kind, opset, shape, axis):
    body, computed = DYNAMIC[kind]
    x, text = activations(shape), text_of(shape, body.replace("AXIS", str(axis)))
    got = reference(load(vendor(text, opset=opset, w_o=OUTER)).model).run({"x": x})
    expected, scale = computed(x, axis)
    np.testing.assert_array_equal(got["y"], expected)
    np.testing.assert_array_equal(got["t"], scale)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", DYNAMIC)
def test_half_precision_is_quantized_alike(kind, dtype):
    body, computed = DYNAMIC[kind]
    to = {"float16": 10, "bfloat16": 16}[dtype]
    body = body.replace("AXIS", "-1").replace("(x", "(h").replace("output_dtype = 1>", f"output_dtype = {to}>")
    body = body.replace("y = trt.", "z = trt.") + " y = Cast <to = 1> (z)" if kind == "mxfp8" else body
    x = activations((8, 64)).astype(tensors.NUMPY[{"float16": "fp16", "bfloat16": "bf16"}[dtype]]).astype(np.float32)
    text = text_of((8, 64), f"h = Cast <to = {to}> (x) {body}")
    got = reference(load(vendor(text, opset=21, w_o=OUTER)).model).run({"x": x})["y"]
    np.testing.assert_array_equal(got, computed(x, -1)[0])


def bytes_of(shape: tuple[int, ...]) -> Array:
    finite = np.array([code for code in E4M3FN.codes if E4M3FN.value(code) is not None], np.uint8)
    return np.random.default_rng(1).permutation(np.resize(finite, shape).ravel()).reshape(shape)


X = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
S = np.float32(0.01)
ROWS = np.random.default_rng(3).uniform(0.01, 0.1, 8).astype(np.float32)
BLOCKS = np.random.default_rng(4).uniform(0.01, 0.1, (8, 4)).astype(np.float32)
POWERS = np.random.default_rng(5).integers(120, 130, (8, 2)).astype(np.uint8)
BYTES = bytes_of((8, 64))
NIBBLES = np.random.default_rng(6).integers(0, 16, (8, 64)).astype(np.uint8)
POWER_SCALES = cast.decode(POWERS, E8M0)
MX = PerBlock(1, 32, 2)
LINEAR: dict[str, tuple[str, str, dict[str, Array], Array]] = {  # types of weights, body, weights, expected
    "FP8": (
        "float w_s",
        "q = trt.TRT_FP8QuantizeLinear(x, w_s) y = trt.TRT_FP8DequantizeLinear(q, w_s)",
        {"w_s": S},
        cast.fake_quantize(X, E4M3FN, S),
    ),
    "FP8 in no domain": (
        "float w_s",
        "q = TRT_FP8QuantizeLinear(x, w_s) y = TRT_FP8DequantizeLinear(q, w_s)",
        {"w_s": S},
        cast.fake_quantize(X, E4M3FN, S),
    ),
    "FP8 per row, moved": (
        "float[8] w_s",
        """q = trt.TRT_FP8QuantizeLinear <axis = 0> (x, w_s) t = Transpose(q)
        d = trt.TRT_FP8DequantizeLinear <axis = -1> (t, w_s) y = Transpose(d)""",
        {"w_s": ROWS},
        cast.fake_quantize(X, E4M3FN, ROWS, PerAxis(0)),
    ),
    "FP8 as bytes": (
        "float w_s, uint8[8,64] w",
        "d = trt.TRT_FP8DequantizeLinear(w, w_s) y = Mul(d, one)",
        {"w_s": S, "w": BYTES},
        cast.decode(BYTES, E4M3FN, S),
    ),
    "INT4, blocks by the shape of the scale": (
        "float[8,4] w_s, int4[8,64] w",
        "d = trt.TRT_INT4DequantizeLinear(w, w_s) y = Mul(d, one)",
        {"w_s": BLOCKS, "w": (NIBBLES ^ 8).astype(np.int8) - 8},
        cast.decode(NIBBLES, INT4, BLOCKS, PerBlock(1, 16, 2)),
    ),
    "INT4 in the graph": (
        "float[8,4] w_s",
        """q = trt.TRT_INT4QuantizeLinear <axis = -1, block_size = 16> (x, w_s)
        y = trt.TRT_INT4DequantizeLinear <axis = -1, block_size = 16> (q, w_s)""",
        {"w_s": BLOCKS},
        cast.fake_quantize(X, INT4, BLOCKS, PerBlock(1, 16, 2)),
    ),
    "MXFP8 weights": (
        "uint8[8,2] w_s, float8e4m3fn[8,64] w",
        "d = trt.TRT_MXFP8DequantizeLinear <axis = -1, block_size = 32> (w, w_s) y = Mul(d, one)",
        {"w_s": POWERS, "w": BYTES.view(cast.ml_dtype(E4M3FN))},
        cast.decode(BYTES, E4M3FN, POWER_SCALES, MX),
    ),
    "MXFP8, scales said as E8M0": (
        "float8e8m0[8,2] w_s, float8e4m3fn[8,64] w",
        """d = trt.TRT_MXFP8DequantizeLinear <axis = -1, block_size = 32, output_dtype = 10> (w, w_s)
        y = Cast <to = 1> (d)""",
        {"w_s": POWER_SCALES, "w": BYTES.view(cast.ml_dtype(E4M3FN))},
        cast.decode(BYTES, E4M3FN, POWER_SCALES, MX).astype(np.float16).astype(np.float32),
    ),
    "MXFP8, scales computed as bytes": (
        "uint8[8,2] w_s, uint8 w_z",
        """s = Add(w_s, w_z) q = trt.TRT_MXFP8QuantizeLinear <axis = 1, block_size = 32> (x, s)
        y = trt.TRT_MXFP8DequantizeLinear <axis = 1, block_size = 32> (q, s)""",
        {"w_s": POWERS, "w_z": np.array(0)},
        cast.fake_quantize(X, E4M3FN, POWER_SCALES, MX),
    ),
    "ONNX's own in the domain of TensorRT": (
        "float w_s",
        "q = trt.QuantizeLinear <output_dtype = 17> (x, w_s) y = trt.DequantizeLinear(q, w_s)",
        {"w_s": S},
        cast.fake_quantize(X, E4M3FN, S),
    ),
}


def linear(case: str, opset: int) -> onnx.ModelProto:
    types, body, weights, _ = LINEAR[case]
    text = f"(float[8,64] x, {types}) => (float[8,64] y) <float one = {{1}}> {{ {body} }}"
    return vendor(text, opset=opset, version=10 if opset < 24 else 13, **weights)


@pytest.mark.parametrize("opset", [17, 21, 25])
@pytest.mark.parametrize("case", LINEAR)
def test_codes_and_scales_are_what_the_documents_say(case, opset, tmp_path):
    if opset == 17 and case.startswith("ONNX"):
        opset = 23
    path = tmp_path / "m.onnx"
    onnx.save(linear(case, opset), path)
    for runner in (reference(load(linear(case, opset)).model), reference(path)):
        np.testing.assert_array_equal(runner.run({"x": X})["y"], LINEAR[case][3])


def test_codes_that_the_file_calls_bytes_are_moved_as_what_they_are():
    proto = linear("FP8 per row, moved", 21)
    for name in "qt":
        shape = (8, 64) if name == "q" else (64, 8)
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, shape))
    np.testing.assert_array_equal(reference(load(proto).model).run({"x": X})["y"], LINEAR["FP8 per row, moved"][3])


def test_a_function_of_such_a_name_is_the_models_own():
    text = "(float[8,64] x) => (float[8,64] y) { y = trt.TRT_FP4DynamicQuantize(x) }"
    inner = '<domain: "trt", opset_import: ["" : 21]> TRT_FP4DynamicQuantize (a) => (b) { b = Neg(a) }'
    proto = model(text, functions=inner)
    proto.opset_import.add(domain="trt", version=1)
    held = load(proto).model
    assert expand(held) is held
    np.testing.assert_array_equal(reference(held).run({"x": X})["y"], -X)


def test_operators_in_a_function_are_written_out_and_the_model_stays():
    text = "(float[8,64] x) => (float[8,64] y) { y = local.pair(x) }"
    inner = """<domain: "local", opset_import: ["" : 21, "trt" : 1]> pair (a) => (b) {
        s = Constant <value_float = 0.01> () q = trt.TRT_FP8QuantizeLinear(a, s) b = trt.TRT_FP8DequantizeLinear(q, s)
    }"""
    proto = model(text, functions=inner)
    proto.opset_import.add(domain="trt", version=1)
    held = load(proto).model
    before = ir.to_proto(held).SerializeToString(deterministic=True)
    np.testing.assert_array_equal(reference(held).run({"x": X})["y"], cast.fake_quantize(X, E4M3FN, S))
    assert ir.to_proto(held).SerializeToString(deterministic=True) == before


def test_types_behind_the_operators_are_those_of_the_codes():
    body = DYNAMIC["mxfp8"][0].replace("AXIS", "-1")
    held = load(vendor(text_of((8, 64), body), w_o=OUTER)).model
    fill_types(held)
    types = {value.name: value.dtype for node in held.graph for value in node.outputs}
    assert types["q"] == ir.DataType.FLOAT8E4M3FN
    assert types["s"] == ir.DataType.FLOAT8E8M0
    assert types["y"] == ir.DataType.FLOAT
