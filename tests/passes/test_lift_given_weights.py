"""Weights that came in FP8: their codes and scales stay, and the plan says where a target cannot take them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fp8graph
from fp8graph.base.errors import InputError
from fp8graph.data.plan import Scale
from fp8graph.graph import tensors, walk
from fp8graph.graph.load import load
from tests.small import feeds, model, needs_rtx, refused

HEAD = "(float[4,32] x, float8e4m3fn[32,32] w) => (float[4,32] y)"
ONE, EACH = "<float s = {0.03}>", f"<float[32] s = {{{', '.join(str(0.01 + i / 512) for i in range(32))}}}>"
BLOCKS = f"<float[2,32] s = {{{', '.join(str(0.01 + i / 512) for i in range(64))}}}>"
# What stands between: text of the body, scales, and what becomes of the weight in the reference.
CASES = {
    "one scale": (ONE, "d = DequantizeLinear(w, s) y = MatMul(x, d)", None),
    "one for each output": (EACH, "d = DequantizeLinear <axis = 1> (w, s) y = MatMul(x, d)", 1),
    "one for each input": (EACH, "d = DequantizeLinear <axis = 0> (w, s) y = MatMul(x, d)", 0),
    "blocks": (BLOCKS, "d = DequantizeLinear <axis = 0, block_size = 16> (w, s) y = MatMul(x, d)", 0),
    "a Gemm": (EACH, "d = DequantizeLinear <axis = 0> (w, s) y = Gemm <transB = 1> (x, d)", 0),
    "transposed": (
        EACH,
        "d = DequantizeLinear <axis = 0> (w, s) t = Transpose <perm = [1, 0]> (d) y = MatMul(x, t)",
        1,
    ),
    "blocks, transposed": (
        BLOCKS.replace("2,32", "32,2"),
        "d = DequantizeLinear <axis = 1, block_size = 16> (w, s) t = Transpose <perm = [1, 0]> (d) y = MatMul(x, t)",
        0,
    ),
    "a negative axis": (EACH, "d = DequantizeLinear <axis = -1> (w, s) y = MatMul(x, d)", 1),
}


def source(case: str) -> onnx.ModelProto:
    scales, body, _ = CASES[case]
    return model(f"{HEAD} {scales} {{ {body} }}")


def optimized(proto: onnx.ModelProto, target: str = "reference", **options):
    return fp8graph.optimize(proto, target=target, data=feeds(proto, 2), **options)


def stored(made, key: str = "y"):
    """Codes, scales and attributes of the weight of an op."""
    node = next(place.node for place in walk.walk(load(made.model).model) if place.key == key)
    made_by = [value.producer() for value in node.inputs if value is not None]
    (found,) = [one for one in made_by if one is not None and tensors.is_constant(one.inputs[0])]
    codes, scale = (tensors.read(value) for value in found.inputs)
    return codes, scale, {name: item.value for name, item in found.attributes.items()}


@pytest.mark.parametrize("case", CASES)
def test_codes_and_scales_are_those_that_came(case):
    proto, axis = source(case), CASES[case][2]
    done = optimized(proto)
    codes, scale, attributes = stored(done)
    came = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    turned = (lambda array: array.T) if "transposed" in case else (lambda array: array)
    np.testing.assert_array_equal(codes.view(np.uint8), turned(came["w"].view(np.uint8)))
    np.testing.assert_array_equal(scale, turned(came["s"]) if "blocks" in case else came["s"])
    assert attributes == ({} if axis is None else {"axis": axis} | ({"block_size": 16} if "blocks" in case else {}))
    decision = done.plan.ops["y"]
    assert decision.do == "quantize" and set(decision.inputs) == {0, 1}
    assert decision.inputs[1].scale == Scale("given", "model") and decision.inputs[0].scale.origin == "observed"
    assert done.comparison is not None and (done.comparison.outputs["y"].sqnr_db or 0) > 25  # activations alone


@needs_rtx
@pytest.mark.parametrize("case", ["one scale", "one for each output", "one for each input", "blocks", "a Gemm"])
def test_an_engine_runs_it_in_fp8_with_those_scales_or_the_plan_says_what_is_lost(case, tmp_path):
    path, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    done = optimized(source(case), "tensorrt-rtx:sm89", high_precision_dtype="fp16", output=path)
    fp8graph.build(path, output=engine, target="tensorrt-rtx:sm89")
    assert fp8graph.attest(engine, model=path).verdicts["y"].verdict == "fp8"
    told = [item for item in done.findings if item.code == "FG229"]
    if case in ("one for each input", "blocks"):
        assert done.plan.ops["y"].inputs[1].scale.origin == "computed"
        assert len(told) == 1 and "dB of it are left" in told[0].text and "per output channel" in told[0].text
    else:
        assert done.plan.ops["y"].inputs[1].scale.origin == "given" and told == []


PAIR = """q = QuantizeLinear <output_dtype = 17> (x, t) a = DequantizeLinear(q, t)
    d = DequantizeLinear <axis = 0, block_size = 16> (w, s) y = MatMul(a, d)"""


@needs_rtx
@pytest.mark.parametrize("high", ["fp16", None])
def test_a_pair_that_came_stays_where_the_blocks_beside_it_cannot_run(high, tmp_path):
    proto = model(f"{HEAD} {BLOCKS[:-1]}, float t = {{0.01}}> {{ {PAIR} }}")
    path, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    done = optimized(proto, "tensorrt-rtx:sm89", high_precision_dtype=high, output=path)
    inputs = done.plan.ops["y"].inputs
    assert inputs[0].scale == Scale("given", "pair", float(np.float32(0.01)))
    assert inputs[1].scale.origin == "computed"
    kinds = [place.node.op_type for place in walk.walk(load(path).model)]
    assert kinds.count("QuantizeLinear") == 1 and kinds.count("DequantizeLinear") == 2  # none is left over
    fp8graph.build(path, output=engine, target="tensorrt-rtx:sm89")
    assert fp8graph.attest(engine, model=path).verdicts["y"].verdict == "fp8"
    assert optimized(proto).plan.ops["y"].inputs[1].scale == Scale("given", "model")  # the reference runs blocks


LEFT = {
    "another reader": "d = DequantizeLinear(w, s) y0 = MatMul(x, d) r = ReduceSum <keepdims = 0> (d) y = Add(y0, r)",
    "the activation is quantized otherwise": """q = QuantizeLinear <output_dtype = 3> (x, s) a = DequantizeLinear(q, s)
        d = DequantizeLinear(w, s) y = MatMul(a, d)""",
}


@pytest.mark.parametrize("case", LEFT)
def test_others_stay_as_they_came(case):
    proto = model(f"{HEAD} <float s = {{0.03}}> {{ {LEFT[case]} }}")
    done = optimized(proto, allow_unquantized=True)
    key = "y" if "y0" not in LEFT[case] else "y0"
    assert done.plan.ops[key].why.code == "FG230" and done.planned == 0


def test_a_recipe_for_weights_alone_leaves_them_alone():
    done = optimized(source("one scale"), recipe="fp8-weight-only", allow_unquantized=True)
    assert done.plan.ops["y"].why.code == "FG230"


def test_a_plan_is_replayed_byte_for_byte_and_refuses_a_float_weight(tmp_path):
    proto, plan = source("one for each output"), tmp_path / "a.onnx.plan.json"
    optimized(proto, output=tmp_path / "a.onnx")
    fp8graph.optimize(proto, plan=plan, output=tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    wide = model("(float[4,32] x, float[32,32] w) => (float[4,32] y) { y = MatMul(x, w) }")
    with refused(InputError, "FG110"):
        fp8graph.optimize(wide, plan=plan, output=tmp_path / "c.onnx")
    assert not (tmp_path / "c.onnx").exists()
