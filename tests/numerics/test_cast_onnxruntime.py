"""Our Q and DQ are those of ONNX Runtime, bit for bit. Opset 21, output_dtype, no zero point, optimisations off."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from fp8graph import formats
from fp8graph.formats.spec import PerAxis, PerBlock, PerTensor
from fp8graph.numerics.cast import decode, encode, fake_quantize
from fp8graph.numerics.scale import channel_amax, scale_from_amax

FORMATS = [formats.get(name) for name in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "int8", "int4")]
RNG = np.random.default_rng


def onnxruntime(values, scale, format, axis, block_size=0) -> dict[str, np.ndarray]:
    """`codes` as numbers (DQ by 1: its E5M2 codes cannot be had as an array) and `pair`, Q then DQ by `scale`."""
    at: dict[str, Any] = {} if axis is None else {"axis": axis}
    at |= {"block_size": block_size} if block_size else {}
    dtype = helper.np_dtype_to_tensor_dtype(values.dtype)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=format.onnx_type, **at),
        helper.make_node("DequantizeLinear", ["q", "one"], ["codes"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["pair"], **at),
    ]
    graph = helper.make_graph(
        nodes,
        "pair",
        [
            helper.make_tensor_value_info("x", dtype, values.shape),
            helper.make_tensor_value_info("s", dtype, scale.shape),
        ],
        [
            helper.make_tensor_value_info("codes", TensorProto.FLOAT, values.shape),
            helper.make_tensor_value_info("pair", dtype, values.shape),
        ],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(("codes", "pair"), session.run(["codes", "pair"], {"x": values, "s": scale}), strict=True))


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal numbers, zeros by sign, NaN at the same places, whatever their signs."""
    signs = (np.signbit(left) == np.signbit(right)) | np.isnan(left)
    return np.array_equal(left, right, equal_nan=True) and bool(signs.all())


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("shape", "granularity"),
    [
        ((1 << 19,), PerTensor()),
        ((64, 32, 3, 3), PerTensor()),
        ((64, 32, 3, 3), PerAxis(0)),
        ((16, 24, 20, 20), PerAxis(1)),
        ((300, 700), PerAxis(-1)),
    ],
    ids=str,
)
def test_random_tensors_under_their_amax_scales(format, shape, granularity):
    values = RNG(1).standard_normal(shape, np.float32) * np.exp(2 * RNG(2).standard_normal(shape, np.float32))
    # a third of amax, so that some values saturate
    scale = np.asarray(scale_from_amax(channel_amax(values, granularity) / np.float32(3), format))
    broadcast = scale.reshape(granularity.broadcast_shape(shape))
    theirs = onnxruntime(values, scale, format, granularity.blocks[0][0] if granularity.blocks else None)
    codes = encode(values, format, broadcast)
    assert same(decode(codes, format), theirs["codes"])
    assert same(decode(codes, format, broadcast), theirs["pair"])
    assert same(fake_quantize(values, format, broadcast), theirs["pair"])


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1 / 3, 0.0173, 1e-3, 1e-40, 3e38, 0.0, np.inf, np.nan, -0.25])
def test_random_bit_patterns_under_any_scale(format, scale):
    values = RNG(3).integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    scale = np.array(scale, np.float32)
    if format.kind == "int":  # NaN has no code: ONNX Runtime makes it the least integer
        with np.errstate(all="ignore"):
            values = values[~np.isnan(values / scale)]
    theirs = onnxruntime(values, scale, format, None)
    assert same(decode(encode(values, format, scale), format), theirs["codes"])
    assert same(fake_quantize(values, format, scale), theirs["pair"])


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.0173, 1 / 3, 1e-3])
def test_every_float16_under_a_float16_scale_is_divided_in_fp32(format, scale):
    values, scale = np.arange(1 << 16, dtype=np.uint16).view(np.float16), np.array(scale, np.float16)
    if format.kind == "int":  # NaN has no code, and of float16's infinity ONNX Runtime makes the least integer
        values = values[~np.isnan(values) & (values < np.inf)]
    theirs = onnxruntime(values, scale, format, None)
    widened = scale.astype(np.float32)
    assert same(decode(encode(values, format, widened), format), theirs["codes"])
    with np.errstate(over="ignore"):  # E5M2's largest values times the scale
        assert same(fake_quantize(values, format, widened).astype(np.float16), theirs["pair"])


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("shape", "axis", "size"),
    [((64, 96), 0, 32), ((64, 100), 1, 32), ((7, 33, 5), 1, 16), ((3, 2, 130), -1, 128), ((40, 60), 0, 64)],
    ids=str,
)
def test_blocks_along_an_axis_with_a_shorter_last_one(format, shape, axis, size):
    granularity = PerBlock(axis, size, len(shape))
    values = RNG(5).standard_normal(shape, np.float32)
    scale = np.asarray(scale_from_amax(channel_amax(values, granularity) / np.float32(2), format))
    theirs = onnxruntime(values, scale, format, axis, size)
    codes = encode(values, format, scale, granularity)
    assert same(decode(codes, format), theirs["codes"])
    assert same(decode(codes, format, scale, granularity), theirs["pair"])


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_casts_to_e8m0_of_what_is_not_negative(mode):
    upper = np.arange(0x7F80, dtype=np.uint32) << 16
    special = np.array([0x7F800000, 0x7FC00000], np.uint32)
    values = np.concatenate([upper, upper | 1, upper | 0xFFFF, special]).view(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["q"], to=TensorProto.FLOAT8E8M0, round_mode=mode),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape) for name in "xy"]
    graph = helper.make_graph(nodes, "cast", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=12)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    e8m0 = formats.get("e8m0")
    ours = decode(encode(values, e8m0, round_mode=mode), e8m0)
    assert same(ours, session.run(None, {"x": values})[0])
