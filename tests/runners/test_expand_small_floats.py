"""The reference computes Q/DQ of every format that ONNX has, bit for bit as the project's numbers and ONNX say."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from fp8graph import formats
from fp8graph.base.errors import BackendError
from fp8graph.formats.spec import Format, Granularity, PerAxis, PerBlock, PerTensor
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.numerics import cast
from fp8graph.runners.expand import everything
from fp8graph.runners.expand.small_floats import CARRIERS, expand
from fp8graph.runners.onnxruntime import OnnxRuntime
from fp8graph.runners.reference import reference
from tests.small import model, refused

SMALL = ("e2m1", "e2m3", "e3m2")
ONNX_NAMES = {
    "e2m1": "float4e2m1", "e2m3": "float6e2m3", "e3m2": "float6e3m2", "e8m0": "float8e8m0",
    "e4m3fn": "float8e4m3fn", "e5m2": "float8e5m2", "int4": "int4", "int8": "int8",
}  # fmt: skip
SHAPE = (6, 20)
GRANULARITIES: dict[str, tuple[Granularity, str]] = {  # and the attributes of Q and DQ
    "per tensor": (PerTensor(), ""),
    "per row": (PerAxis(0), "axis = 0"),
    "per column": (PerAxis(-1), "axis = -1"),
    "blocks of rows": (PerBlock(0, 4, 2), "axis = 0, block_size = 4"),
    "blocks of columns": (PerBlock(1, 5, 2), "axis = 1, block_size = 5"),
    "ragged blocks": (PerBlock(-1, 8, 2), "axis = -1, block_size = 8"),
}
SCALES = ("float32", "computed float32", "e8m0", "computed e8m0")


def numbers(form: Format) -> np.ndarray[Any, Any]:
    """Every tie of the format and its neighbours in fp32, values beyond it, zeros: in no order."""
    table = cast.decode(np.array([code for code in form.codes if form.value(code) is not None], np.uint8), form)
    table = np.unique(table)
    ties = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(np.float32)
    near = np.concatenate(
        [table, ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    )
    huge = [np.inf, -np.inf, 1e30, -1e30] if form.kind == "float" else [1e6, -1e6]  # ONNX Runtime ends at 2^31
    more = [0.0, -0.0, *huge, 1e-30, -1e-45]
    draw = np.random.default_rng(0)
    count = SHAPE[0] * SHAPE[1]
    chosen = draw.choice(near, max(0, count - len(more) - 20))
    return draw.permutation(np.concatenate([chosen, more, draw.standard_normal(20) * 3])).astype(np.float32)


def scales(granularity: Granularity, stored: str) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(1)
    shape = granularity.scale_shape(SHAPE)
    if "e8m0" in stored:
        return np.float32(2.0) ** draw.integers(-3, 4, shape).astype(np.float32)
    return np.asarray(draw.uniform(0.3, 3, shape), np.float32)


def text_of(name: str, attributes: str, stored: str, shape: tuple[int, ...]) -> str:
    kind = formats.get(name).onnx_type
    more = f", {attributes}" if attributes else ""
    scale = f"float[{','.join(map(str, shape))}]" if shape else "float"
    made = {
        "float32": "s = Identity(w_s)",
        "computed float32": "s = Mul(w_s, one)",
        "e8m0": "s = Cast <to = 24> (w_s)",
        "computed e8m0": 't = Mul(w_s, one) s = Cast <to = 24, round_mode = "down"> (t)',
    }[stored]
    return f"""(float[6,20] x, float one, {scale} w_s) => (float[6,20] y) {{
        {made}
        q = QuantizeLinear <output_dtype = {kind}{more}> (x, s)
        y = DequantizeLinear <output_dtype = 1{more}> (q, s)
    }}"""


@pytest.mark.parametrize("stored", SCALES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", [*SMALL, "e4m3fn", "e5m2", "int4", "int8"])
def test_what_is_quantized_in_the_graph_is_what_the_numbers_say(name, granularity, stored):
    form, (kind, attributes) = formats.get(name), GRANULARITIES[granularity]
    x, scale = numbers(form).reshape(SHAPE), scales(kind, stored)
    proto = model(text_of(name, attributes, stored, scale.shape), opset=28, ir=13, w_s=scale)
    feed = {"x": x, "one": np.array(1, np.float32)}
    got = reference(load(proto).model).run(feed)["y"]
    expected = cast.fake_quantize(x, form, scale, kind)
    np.testing.assert_array_equal(got.view(np.uint32) << 1, expected.view(np.uint32) << 1)
    if form.negative_zero:
        np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def coded(name: str, shape: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Codes of all finite values, and the same array in the type of ml_dtypes."""
    form = formats.get(name)
    finite = np.array([code for code in form.codes if form.value(code) is not None], np.uint8)
    codes = np.random.default_rng(2).permutation(np.resize(finite, shape).ravel()).reshape(shape)
    signed = codes
    if form.kind == "int" and form.bits < 8:  # a nibble's sign fills its byte
        signed = ((codes ^ 8).astype(np.int8) - 8).view(np.uint8)
    return codes, signed.view(cast.ml_dtype(form))


def weights(name: str, attributes: str, scale: np.ndarray[Any, Any], stored: str) -> onnx.ModelProto:
    """The weight that `name` codes, times x."""
    dims = ",".join(map(str, scale.shape))
    kind = ("float8e8m0" if stored == "e8m0" else "float") + (f"[{dims}]" if dims else "")
    more = f", {attributes}" if attributes else ""
    text = f"""(float x, {ONNX_NAMES[name]}[6,20] w, {kind} w_s) => (float[6,20] y) {{
        d = DequantizeLinear <output_dtype = 1{more}> (w, w_s)
        y = Mul(d, x)
    }}"""
    return model(text, opset=28, ir=13, w=coded(name, SHAPE)[1], w_s=scale)


@pytest.mark.parametrize("stored", ["float32", "e8m0"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", [*SMALL, "e4m3fn", "e5m2", "int4", "int8"])
def test_weights_of_each_format_are_what_their_codes_say(name, granularity, stored, tmp_path):
    kind, attributes = GRANULARITIES[granularity]
    scale = scales(kind, stored)
    path, proto = tmp_path / "m.onnx", weights(name, attributes, scale, stored)
    held = load(onnx.ModelProto.FromString(proto.SerializeToString())).model
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    expected = cast.decode(coded(name, SHAPE)[0], formats.get(name), scale, kind)
    for runner in (reference(held), reference(path)):
        np.testing.assert_array_equal(runner.run({"x": np.array(1, np.float32)})["y"], expected)


CASES = {  # body, opset; all of them also in onnx.reference
    "cast to E2M1": ("c = Cast <to = 23> (x) y = Cast <to = 1> (c)", 25),
    "cast to E2M3": ("c = Cast <to = 27> (x) y = Cast <to = 1> (c)", 28),
    "cast to E3M2": ("c = Cast <to = 28> (x) y = Cast <to = 1> (c)", 28),
    "cast from fp16": ("h = Cast <to = 10> (x) c = Cast <to = 23> (h) d = Cast <to = 10> (c) y = Cast <to=1> (d)", 25),
    "cast from bf16": ("h = Cast <to = 16> (x) c = Cast <to = 23> (h) d = Cast <to = 16> (c) y = Cast <to=1> (d)", 25),
    "to E8M0, up": ('a = Abs(x) c = Cast <to = 24, round_mode = "up"> (a) y = Cast <to = 1> (c)', 25),
    "to E8M0, down": ('a = Abs(x) c = Cast <to = 24, round_mode = "down"> (a) y = Cast <to = 1> (c)', 25),
    "to E8M0, nearest": ('a = Abs(x) c = Cast <to = 24, round_mode = "nearest"> (a) y = Cast <to = 1> (c)', 25),
    "cast alike": ("c = Cast <to = 23> (x) d = CastLike(one, c) e = Cast <to = 1> (d) y = Mul(x, e)", 25),
    "moved": (
        """c = Cast <to = 23> (x) t = Transpose <perm = [1, 0]> (c) r = Reshape(t, shape) i = Identity(r)
        u = Unsqueeze(i, zero) f = Flatten(u) s = Cast <to = 1> (f) g = Reshape(s, back)
        y = Transpose <perm = [1, 0]> (g)""",
        25,
    ),
    "scales moved": (
        """a = Abs(x) m = ReduceMax <keepdims = 1> (a, ones) e = Cast <to = 24> (m) t = Transpose(e)
        v = Unsqueeze(t, zero) w = Squeeze(v, zero) u = Transpose(w) k = Reshape(u, rows)
        q = QuantizeLinear <output_dtype = 17, axis = 0> (x, k) y = DequantizeLinear <axis = 0, output_dtype = 1> (q, k)
        """,
        25,
    ),
    "FP8 moved": (
        """q = QuantizeLinear <output_dtype = 17> (x, one) u = Unsqueeze(q, zero) t = Squeeze(u, zero)
        p = Pad(t, pads) f = Flatten(p) i = Identity(f) y = DequantizeLinear(i, one)
        """,
        25,
    ),
    "E8M0 and fp16": (
        """h = Cast <to = 10> (x) e = Cast <to = 24> (halves) q = QuantizeLinear <output_dtype = 23> (h, e)
        d = DequantizeLinear <output_dtype = 10> (q, e) y = Cast <to = 1> (d)
        """,
        25,
    ),
    "E8M0 and bf16": (
        """h = Cast <to = 16> (x) e = Cast <to = 24> (halves) q = QuantizeLinear <output_dtype = 17> (h, e)
        d = DequantizeLinear <output_dtype = 16> (q, e) y = Cast <to = 1> (d)
        """,
        25,
    ),
    "two levels": (
        """o = QuantizeLinear <output_dtype = 17> (blocks, half) s = DequantizeLinear(o, half)
        q = QuantizeLinear <output_dtype = 23, axis = 1, block_size = 16> (x, s)
        y = DequantizeLinear <axis = 1, block_size = 16> (q, s)
        """,
        25,
    ),
    "MX": (
        """a = Abs(x) m = ReduceMax <keepdims = 1> (a, ones) r = Div(m, six) e = Cast <to = 24, round_mode = "down"> (r)
        q = QuantizeLinear <output_dtype = 23, axis = -1, block_size = 20> (x, e)
        y = DequantizeLinear <axis = -1, block_size = 20, output_dtype = 1> (q, e)
        """,
        25,
    ),
    "in a branch": (
        """b = Cast <to = 9> (one)
        y = If(b) <then_branch = t () => (float[6,20] p) { c = Cast <to = 23> (x) p = Cast <to = 1> (c) },
                   else_branch = e () => (float[6,20] n) { n = Identity(x) }>
        """,
        25,
    ),
    "a zero point": ("q = QuantizeLinear(x, half, nothing) y = DequantizeLinear(q, half, nothing)", 25),
    "a precision": (
        "q = QuantizeLinear <output_dtype = 23, precision = 1> (x, half) y = DequantizeLinear(q, half)",
        25,
    ),
}  # fmt: skip
INITIALIZERS = """<int64[2] shape = {4, 30}, int64[2] back = {20, 6}, int64[1] zero = {0}, int64[1] ones = {1},
    int64[1] rows = {6}, int64[4] pads = {0, 0, 0, 0}, float one = {1}, float half = {0.5}, float[1] halves = {0.5},
    float six = {6},
    float[6,2] blocks = {1, 2, 3, 1, 2, 3, 0.3, 0.2, 0.1, 5, 6, 7}, float4e2m1 nothing = {0}>"""


def written(case: str) -> onnx.ModelProto:
    body, opset = CASES[case]
    proto = model(f"(float[6,20] x) => (float[6,20] y) {INITIALIZERS} {{ {body} }}", opset=opset, ir=13)
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name == "nothing"]:
        tensor.CopyFrom(onnx.helper.make_tensor("nothing", onnx.TensorProto.FLOAT4E2M1, [], b"\0", raw=True))
    return proto


@pytest.mark.parametrize("case", CASES)
def test_onnx_says_the_same(case, tmp_path):
    proto, path = written(case), tmp_path / "m.onnx"
    onnx.save(proto, path)
    feed = {"x": np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32) * 3}
    (expected,) = ReferenceEvaluator(proto).run(None, feed)
    for runner in (reference(load(proto).model), reference(path)):
        np.testing.assert_array_equal(runner.run(feed)["y"], expected)


FILES = {  # text, versions
    "FP8 Q/DQ": (
        "q = QuantizeLinear <output_dtype = 17> (x, w_s) u = Reshape(q, shape) y = DequantizeLinear(u, w_s)", 21, 10
    ),
    "INT4": ("q = QuantizeLinear <output_dtype = 22> (x, w_s) y = DequantizeLinear(q, w_s)", 25, 13),
    "the newest versions": ("y = Relu(x)", 26, 13),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_needs_nothing_is_opened_by_the_runtime_itself(case, tmp_path, monkeypatch):
    body, opset, version = FILES[case]
    text = f"(float[2,4] x, float w_s) => (float[2,4] y) <int64[2] shape = {{2, 4}}> {{ {body} }}"
    proto, path, given = model(text, opset=opset, ir=version, w_s=np.array(0.5)), tmp_path / "m.onnx", []
    onnx.save(proto, path)
    opened = onnxruntime.InferenceSession

    def session(file: Any, *more: Any, **options: Any) -> Any:
        given.append(file)
        return opened(file, *more, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    reference(path)
    assert given == [str(path)]
    held = load(proto).model
    assert everything.numbers(everything.operators_of(held)) is held


def test_the_model_itself_stays():
    held = load(written("moved")).model
    before = ir.to_proto(held).SerializeToString(deterministic=True)
    done = expand(held)
    assert ir.to_proto(held).SerializeToString(deterministic=True) == before
    assert not any(value.dtype in CARRIERS for value in walk.values(done.graph) if "Cast" not in (value.name or ""))
    assert {value.name for value in done.graph.inputs} == {"x"}


def test_inputs_and_outputs_of_small_types_are_fed_and_read_in_what_holds_them():
    text = "(float4e2m1[6,20] c, float8e8m0[6] s) => (float4e2m1[6,20] t, float[6,20] y)"
    body = "t = Identity(c) y = DequantizeLinear <axis = 0, output_dtype = 1> (c, s)"
    proto = model(f"{text} {{ {body} }}", opset=25, ir=13)
    codes, array = coded("e2m1", SHAPE)
    scale = np.float32(2.0) ** np.arange(-3, 3, dtype=np.float32)
    got = reference(load(proto).model).run({"c": array, "s": scale.astype(ml_dtypes.float8_e8m0fnu)})
    expected = cast.decode(codes, formats.get("e2m1"), scale, PerAxis(0))
    np.testing.assert_array_equal(got["y"], expected)
    np.testing.assert_array_equal(cast.decode(got["t"], formats.get("e4m3fn")), cast.decode(codes, formats.get("e2m1")))


def test_nan_stays_nan():
    x = np.full(SHAPE, np.nan, np.float32)
    assert np.isnan(reference(load(written("cast to E2M1")).model).run({"x": x})["y"]).all()


def test_bits_of_a_small_type_are_not_read():
    proto = model("(float[4] x) => (uint8[4] y) { c = Cast <to = 24> (x) y = BitCast <to = 2> (c) }", opset=26, ir=13)
    with refused(BackendError, "FG133", "BitCast", "the bits of FP4, FP6 or E8M0"):
        reference(load(proto).model)


def test_a_function_that_makes_small_types_is_expanded():
    called = "(float[6,20] x) => (float[6,20] y) { y = local.half(x) }"
    inner = (
        '<domain: "local", opset_import: ["" : 25]> half (a) => (b) { c = Cast <to = 23> (a) b = Cast <to = 1> (c) }'
    )
    x = numbers(formats.get("e2m1")).reshape(SHAPE)
    got = reference(load(model(called, functions=inner, opset=25, ir=13)).model).run({"x": x})["y"]
    np.testing.assert_array_equal(got, cast.fake_quantize(x, formats.get("e2m1")))


TYPES = {"float": 1, "float16": 10, "bfloat16": 16}


@pytest.mark.parametrize("made", TYPES)
@pytest.mark.parametrize("scale", [*TYPES, "float8e8m0"])
@pytest.mark.parametrize("given", TYPES)
@pytest.mark.parametrize("name", ["e2m1", "e4m3fn", "int8"])
def test_types_of_value_scale_and_result_may_all_differ(name, given, scale, made, tmp_path):
    to = {**TYPES, "float8e8m0": 24}[scale]
    body = f"""g = Cast <to = {TYPES[given]}> (x) s = Cast <to = {to}> (halves)
        q = QuantizeLinear <output_dtype = {formats.get(name).onnx_type}> (g, s)
        d = DequantizeLinear <output_dtype = {TYPES[made]}> (q, s) y = Cast <to = 1> (d)"""
    proto = model(f"(float[6,20] x) => (float[6,20] y) <float[1] halves = {{0.5}}> {{ {body} }}", opset=25, ir=13)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    feed = {"x": np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32) * 3}
    (expected,) = ReferenceEvaluator(proto).run(None, feed)  # exact, for the scale is a power of two
    # not `reference`, which tries once more
    np.testing.assert_array_equal(OnnxRuntime(load(path).model).run(feed)["y"], expected)


@pytest.mark.parametrize("granularity", ["per row", "ragged blocks"])
@pytest.mark.parametrize("name", ["e2m1", "e4m3fn"])
def test_a_quotient_is_rounded_to_the_precision_asked_for(name, granularity):
    form, (kind, attributes) = formats.get(name), GRANULARITIES[granularity]
    scale = scales(kind, "float32").astype(np.float16).astype(np.float32)
    spread = cast.decode(np.ones(SHAPE, np.uint8), formats.get("int8"), scale, kind)
    # values of fp16 whose codes depend on it: x / s lies beside a tie, and on it in fp16
    tried = numbers(form)[np.abs(numbers(form)) < 1000]
    near = np.random.default_rng(0).choice(tried, (4000, *SHAPE)) * spread
    halves = near.astype(np.float16).astype(np.float32)
    rounded = (halves / spread).astype(np.float16).astype(np.float32)
    differs = cast.encode(halves / spread, form) != cast.encode(rounded, form)
    x = np.take_along_axis(halves, differs.argmax(0)[None], 0)[0]
    assert differs.any(0).sum() > 20
    body = f"""h = Cast <to = 10> (x)
        q = QuantizeLinear <output_dtype = {form.onnx_type}, precision = 10, {attributes}> (h, w_s)
        y = DequantizeLinear <{attributes}> (q, w_s)"""
    dims = ",".join(map(str, scale.shape))
    proto = model(f"(float[6,20] x, float[{dims}] w_s) => (float[6,20] y) {{ {body} }}", opset=25, ir=13, w_s=scale)
    expected = cast.decode(cast.encode((x / spread).astype(np.float16), form), form, scale, kind)
    np.testing.assert_array_equal(reference(load(proto).model).run({"x": x})["y"], expected)
