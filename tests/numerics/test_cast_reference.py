"""Q and DQ of every format and of blocks are those of onnx.reference, for float32, where the reference is right.

It is not where it casts to E8M0: infinity becomes NaN there (the operator's table says the largest value), and numbers
below 2^-126 are rounded as if 2^-127 were 0; `test_cast_onnxruntime.py` holds those. Nor for a NaN that has no code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from fp8graph import formats
from fp8graph.formats.spec import PerAxis, PerBlock, PerTensor, ScaleFormat
from fp8graph.numerics.cast import decode, encode, ml_dtype
from fp8graph.numerics.scale import channel_amax, store_scales

ELEMENTS = [formats.get(name) for name in formats.names() if name != "e8m0"]
E8M0 = formats.get("e8m0")
RNG = np.random.default_rng


def evaluate(nodes, feeds: dict[str, np.ndarray], outputs: list[str], opset: int) -> list[np.ndarray]:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    graph = helper.make_graph(nodes, "pair", inputs, [onnx.ValueInfoProto(name=name) for name in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, feeds))


@pytest.mark.parametrize("format", ELEMENTS, ids=str)
@pytest.mark.parametrize(
    ("granularity", "shape", "at"),
    [
        (PerTensor(), (300, 40), {}),
        (PerAxis(0), (30, 40), {"axis": 0}),
        (PerAxis(2), (3, 4, 50), {"axis": 2}),
        (PerBlock(0, 32, 2), (100, 40), {"axis": 0, "block_size": 32}),
        (PerBlock(2, 16, 3), (3, 5, 41), {"axis": 2, "block_size": 16}),
    ],
    ids=str,
)
@pytest.mark.parametrize("scales", [ScaleFormat(), ScaleFormat("e8m0", "ocp")], ids=["float32", "e8m0"])
def test_pairs_are_those_of_the_reference(format, granularity, shape, at: dict[str, Any], scales):
    values = RNG(1).standard_normal(shape, np.float32) * np.exp(RNG(2).standard_normal(shape, np.float32))
    stored = store_scales(channel_amax(values, granularity) / np.float32(3), format, scales)
    scale = np.asarray(stored.effective)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=format.onnx_type, **at),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], **at),
    ]
    theirs, pair = evaluate(nodes, {"x": values, "s": scale}, ["q", "y"], max(format.min_opset, 21))
    codes = encode(values, format, scale, granularity)
    assert theirs.dtype == ml_dtype(format)
    assert np.array_equal(theirs.view(np.uint8) & (2**format.bits - 1), codes)
    assert np.array_equal(decode(codes, format, scale, granularity), pair)


@pytest.mark.parametrize("format", ELEMENTS, ids=str)
def test_every_finite_half_and_many_patterns_quantize_as_in_the_reference(format):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = RNG(3).integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([halves[np.isfinite(halves)].astype(np.float32), values[np.abs(values) < 1e8]])
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=format.onnx_type)
    scale = np.float32(0.3)
    theirs = evaluate([node], {"x": values, "s": np.array(scale)}, ["q"], max(format.min_opset, 21))[0]
    assert np.array_equal(theirs.view(np.uint8) & (2**format.bits - 1), encode(values, format, scale))


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_casts_to_e8m0_of_normal_numbers(mode):
    upper = np.arange(0x80, 0x7F80, dtype=np.uint32) << 16
    values = np.concatenate([upper, upper | 1, upper | 0xFFFF]).view(np.float32)
    node = helper.make_node("Cast", ["x"], ["q"], to=TensorProto.FLOAT8E8M0, round_mode=mode, saturate=1)
    theirs = evaluate([node], {"x": values}, ["q"], 24)[0]
    assert np.array_equal(theirs.view(np.uint8), encode(values, E8M0, round_mode=mode))


def test_two_levels_of_scales_are_two_dequantize_linears():
    """NVFP4: the stored scales times the one above them is what the values are divided by, bit for bit."""
    e2m1, granularity = formats.get("e2m1"), PerBlock(1, 16, 2)
    values = RNG(4).standard_normal((20, 70), np.float32)
    stored = store_scales(channel_amax(values, granularity), e2m1, ScaleFormat("e4m3fn", outer=True))
    assert stored.codes is not None
    codes = encode(values, e2m1, np.asarray(stored.effective), granularity)
    nodes = [
        helper.make_node("DequantizeLinear", ["scales", "outer"], ["s"]),
        helper.make_node("DequantizeLinear", ["codes", "s"], ["y"], axis=1, block_size=16),
    ]
    feeds = {
        "scales": stored.codes.view(ml_dtype(formats.get("e4m3fn"))),
        "outer": np.array(stored.outer),
        "codes": codes.view(ml_dtype(e2m1)),
    }
    scale, numbers = evaluate(nodes, feeds, ["s", "y"], 23)
    assert np.array_equal(scale, np.asarray(stored.effective))
    assert np.array_equal(numbers, decode(codes, e2m1, np.asarray(stored.effective), granularity))
