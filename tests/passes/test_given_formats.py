"""FP8 weights in a format that the target does not run: written in the recipe's, under scales times a power of two."""

from __future__ import annotations

import importlib.util

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fp8graph
from fp8graph.data.plan import Scale
from fp8graph.graph import tensors, walk
from fp8graph.graph.load import load
from tests.small import feeds, needs_rtx

KINDS = {
    "e4m3fn": (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    "e5m2": (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
    "e4m3fnuz": (TensorProto.FLOAT8E4M3FNUZ, ml_dtypes.float8_e4m3fnuz),
    "e5m2fnuz": (TensorProto.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz),
}
# Exponent of about the largest value.
TOP = {"e4m3fn": 8.5, "e5m2": 15.5, "e4m3fnuz": 7.5, "e5m2fnuz": 15.5}
RTX = "tensorrt-rtx:sm89"
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: pip install 'fp8graph[openvino]'"
)
# What the weight's format becomes, under a recipe that asks for E4M3FN.
BECOMES = [
    *[(kind, RTX, "e4m3fn") for kind in KINDS],
    *[(kind, "tensorrt:sm90", "e4m3fn") for kind in KINDS],
    *[(kind, "reference", kind) for kind in KINDS],
    ("e5m2", "onnxruntime", "e5m2"),
    ("e5m2", "openvino:cpu", "e5m2"),
    ("e4m3fnuz", "onnxruntime", "e4m3fn"),
    ("e5m2fnuz", "openvino:cpu", "e4m3fn"),
]


def source(kind: str, per: str = "channel", reader: str = "MatMul") -> onnx.ModelProto:
    """A product of [8, 64] with a weight of [64, 32] behind DequantizeLinear; values within 2^13 of the largest."""
    code, dtype = KINDS[kind]
    draw = np.random.default_rng(3)
    codes = (np.exp2(draw.uniform(-13, 0, (64, 32)) + TOP[kind]) * draw.choice([-1, 1], (64, 32))).astype(dtype)
    scales = {
        "tensor": np.float32(0.01),
        "channel": draw.uniform(0.01, 0.02, 32),
        "block": draw.uniform(0.01, 0.02, (4, 32)),
    }
    said = {"tensor": {}, "channel": {"axis": 1}, "block": {"axis": 0, "block_size": 16}}[per]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], **said),
        helper.make_node(reader, ["x", "d"], ["y"]),
    ]
    wide = helper.make_tensor_value_info("x", 1, [8, 64] if reader == "MatMul" else [64, 32])
    made = helper.make_tensor_value_info("y", 1, [8, 32] if reader == "MatMul" else [64, 32])
    held = [
        helper.make_tensor("w", code, (64, 32), codes.tobytes(), raw=True),
        numpy_helper.from_array(np.asarray(scales[per], np.float32), "s"),
    ]
    graph = helper.make_graph(nodes, "g", [wide], [made], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def floats(proto: onnx.ModelProto) -> np.ndarray:
    """What the weight behind DequantizeLinear stands for."""
    node = next(place.node for place in walk.walk(load(proto).model) if place.key == "y")
    values = [value for value in node.inputs if value is not None]
    if tensors.is_constant(values[1]):
        return tensors.read(values[1]).astype(np.float64)
    maker = values[1].producer()
    assert maker is not None and maker.op_type == "DequantizeLinear"
    codes, scale = (tensors.read(value).astype(np.float64) for value in maker.inputs[:2])
    if "block_size" in maker.attributes:
        scale = np.repeat(scale, maker.attributes["block_size"].as_int(), maker.attributes["axis"].as_int())
    return codes * scale


def optimized(proto: onnx.ModelProto, target: str, **options):
    return fp8graph.optimize(proto, target=target, data=feeds(proto, 2), **options)


@pytest.mark.parametrize(("kind", "target", "wanted"), BECOMES)
def test_a_weight_keeps_its_values_in_a_format_that_the_target_runs(kind, target, wanted):
    proto = source(kind)
    done = optimized(proto, target)
    quant = done.plan.ops["y"].inputs[1]
    assert (quant.format, quant.scale) == (wanted, Scale("given" if kind == wanted else "computed", "model"))
    np.testing.assert_array_equal(floats(done.model), floats(proto))
    told = [item.text for item in done.findings if item.code == "FG236"]
    assert bool(told) == (kind != wanted) and [item for item in done.findings if item.code == "FG330"] == []
    if told:
        assert f"came in {kind}" in told[0] and "e4m3fn, nothing of it is lost" in told[0]
        assert told[0] in done.plan.ops["y"].why.text
    again = optimized(done.model, target, allow_unquantized=True)
    np.testing.assert_array_equal(floats(again.model), floats(proto))


def test_what_lies_too_far_below_the_largest_is_rounded_and_said():
    proto = source("e5m2")
    codes = np.full((64, 32), 128, ml_dtypes.float8_e5m2)
    codes[0] = 2.0**-16
    proto.graph.initializer[0].raw_data = codes.tobytes()
    done = optimized(proto, RTX)
    left = floats(done.model)
    assert not left[0].any() and (left[1:] == floats(proto)[1:]).all()
    assert " dB of it are left" in done.plan.ops["y"].why.text


@pytest.mark.parametrize("per", ["tensor", "block"])
def test_scales_of_a_tensor_and_of_blocks_keep_their_power_of_two_or_are_coarser_as_the_row_says(per):
    proto = source("e5m2", per)
    done = optimized(proto, RTX)
    quant = done.plan.ops["y"].inputs[1]
    assert quant.format == "e4m3fn"
    if per == "tensor":
        np.testing.assert_array_equal(floats(done.model), floats(proto))
    assert bool([item for item in done.findings if item.code == "FG229"]) == (
        per == "block" and quant.scale.rule != "model"
    )


OTHER = {
    "weights alone": ({"recipe": "fp8-weight-only"}, "e4m3fn"),
    "nothing quantized": ({"recipe": "fp16"}, ""),
    "another family": ({"recipe": "int8"}, "int8"),
    "excluded": ({"nodes_to_exclude": ["*"], "allow_unquantized": True}, ""),
}


@pytest.mark.parametrize("case", OTHER)
def test_no_code_that_the_target_does_not_read_is_left_whatever_the_plan_says(case):
    options, wanted = OTHER[case]
    done = optimized(source("e5m2"), RTX, **options)
    decision = done.plan.ops["y"]
    assert (decision.inputs[1].format if wanted else decision.do) == (wanted or "keep")
    kinds = {tensor.data_type for tensor in done.model.graph.initializer}
    assert TensorProto.FLOAT8E5M2 not in kinds and [item for item in done.findings if item.code == "FG330"] == []


def test_a_reader_that_is_no_product_reads_the_floats():
    proto = source("e5m2", reader="Mul")
    done = optimized(proto, RTX, allow_unquantized=True)
    np.testing.assert_array_equal(floats(done.model), floats(proto).astype(np.float32))
    assert [node.op_type for node in done.model.graph.node] == ["Mul"]
    kept = optimized(proto, "reference", allow_unquantized=True)
    assert [node.op_type for node in kept.model.graph.node] == ["DequantizeLinear", "Mul"]


@needs_rtx
@pytest.mark.parametrize("kind", ["e5m2", "e4m3fnuz"])
def test_an_engine_runs_it_in_fp8(kind, tmp_path):
    path, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    optimized(source(kind), RTX, high_precision_dtype="fp16", output=path)
    fp8graph.optimize(source(kind), plan=tmp_path / "m.onnx.plan.json", output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    fp8graph.build(path, output=engine, target=RTX)
    assert fp8graph.attest(engine, model=path).verdicts["y"].verdict == "fp8"


# Length that is summed over, block, and what becomes of the blocks for each target: kept, or one scale per channel.
RAGGED = [
    (64, 16, "openvino:cpu", True),
    (72, 16, "openvino:cpu", False),
    (72, 64, "openvino:cpu", False),
    (16, 128, "openvino:cpu", False),
    (72, 16, "onnxruntime", True),
    (72, 64, "reference", True),
]


def blocks(length: int, size: int) -> onnx.ModelProto:
    draw = np.random.default_rng(5)
    codes = draw.standard_normal((length, 32)).astype(ml_dtypes.float8_e4m3fn)
    scales = draw.uniform(0.01, 0.2, (-(-length // size), 32)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=size),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    held = [
        helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, (length, 32), codes.tobytes(), raw=True),
        numpy_helper.from_array(scales, "s"),
    ]
    wide, made = (helper.make_tensor_value_info(*item) for item in (("x", 1, [8, length]), ("y", 1, [8, 32])))
    graph = helper.make_graph(nodes, "g", [wide], [made], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(("length", "size", "target", "kept"), RAGGED)
def test_blocks_stay_where_the_target_reads_them(length, size, target, kept):
    done = optimized(blocks(length, size), target)
    decision = done.plan.ops["y"]
    assert (decision.inputs[1].scale.origin == "given") == kept
    told = [item.text for item in done.findings if item.code == "FG229"]
    assert bool(told) != kept  # once for what is lost, once for the reason
    assert ("OpenVINO reads no blocks" in decision.why.text) != kept


@needs_openvino
@pytest.mark.parametrize("options", [{}, {"nodes_to_exclude": ["*"], "allow_unquantized": True}])
@pytest.mark.parametrize(("length", "size"), [(64, 16), (72, 16), (16, 128)])
def test_openvino_compiles_what_is_written_for_it(length, size, options, tmp_path):
    path = tmp_path / "m.onnx"
    optimized(blocks(length, size), "openvino:cpu", output=path, **options)
    assert fp8graph.build(path, output=tmp_path / "m.xml", target="openvino:cpu").chips == ("cpu",)


CUT = [(72, 16, True), (72, 64, True), (16, 128, False), (64, 16, False)]


@pytest.mark.parametrize(("length", "size", "bad"), CUT)
def test_check_finds_blocks_that_the_builder_cuts_otherwise(length, size, bad):
    for target in (RTX, "tensorrt:sm90"):
        found = [item for item in fp8graph.check(blocks(length, size), target=target) if item.code == "FG335"]
        assert [item.severity for item in found] == (["error"] if bad else [])
        done = optimized(blocks(length, size), target, nodes_to_exclude=["*"], allow_unquantized=True)
        assert [item for item in done.findings if item.severity == "error"] == []
    assert not [item for item in fp8graph.check(blocks(length, size), target="reference") if item.code == "FG335"]
