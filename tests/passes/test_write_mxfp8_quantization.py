"""MXFP8 operands as TensorRT's own operators: what is written, what it computes, who gets it and who does not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.core.check import check
from fp8graph.data import target as targets
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.testing import outputs
from fp8graph_passes.write_mxfp8_quantization import WriteMxfp8Quantization
from tests.passes.doing import run
from tests.passes.test_write_fp4_quantization import product
from tests.small import feeds, model, needs_rtx, refused

TARGET = "tensorrt:sm100"
SOUND = product("2,6,64", "64,8", "MatMul(a, w)", "2,6,8")
FORMS = {
    "matmul": SOUND,
    "matrix": product("6,64", "64,8", "MatMul(a, w)", "6,8"),
    "stack of weights": product("2,6,64", "2,64,8", "MatMul(a, w)", "2,6,8"),
    "gemm": product("6,32", "32,8", "Gemm(a, w)", "6,8"),
    "transposed weight": product("6,96", "8,96", "Gemm <transB = 1> (a, w)", "6,8"),
}
# Rounded up where OCP's rule rounds down: a recipe of the same scales for the reference.
ROUNDED_UP = """
extends = "mxfp8"
[quantize.activations]
scale_rule = "max"
[quantize.weights]
scale_rule = "max"
"""


def optimized(text: str, target: str = TARGET, recipe: str = "mxfp8", high: str = "fp16", **options):
    proto = model(text)
    return fp8graph.optimize(
        proto, target=target, recipe=recipe, data=feeds(proto, 2), high_precision_dtype=high, **options
    )


@pytest.mark.parametrize("high", ["fp16", "bf16", "fp32"])
def test_codes_and_scales_come_from_one_node_and_go_into_one(high):
    done = optimized(SOUND, high=high)
    assert done.planned_by["fp8"] == 1
    held = load(done.model).model
    own = [place.node for place in walk.walk(held) if place.node.domain == "trt"]
    kind = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16, "fp32": ir.DataType.FLOAT}[high]
    assert [node.op_type for node in own] == ["TRT_MXFP8DynamicQuantize", *["TRT_MXFP8DequantizeLinear"] * 2]
    assert [[int(value.dtype) for value in node.outputs] for node in own] == [[17, 24], [int(kind)], [int(kind)]]
    said = [{name: value.as_int() for name, value in node.attributes.items()} for node in own]
    assert said == [
        {"axis": axis, "block_size": 32, "output_dtype": of} for axis, of in ((-1, 17), (-1, int(kind)), (0, int(kind)))
    ]
    assert held.graph.opset_imports["trt"] == 1
    # What found the scales is gone, its constants, too; the weight's scales are bytes.
    kinds = {place.node.op_type for place in walk.walk(held)}
    assert {"QuantizeLinear", "DequantizeLinear", "Abs", "ReduceMax", "Div"}.isdisjoint(kinds)
    assert {(str(value.dtype), *map(int, value.shape)) for value in held.graph.initializers.values()} == {
        ("FLOAT8E4M3FN", 64, 8),
        ("UINT8", 2, 8),
    }
    assert [item for item in check(held, targets.load(TARGET)) if item.severity != "info"] == []


@pytest.mark.parametrize("high", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("name", FORMS)
def test_the_nodes_compute_what_they_replace(name, high, tmp_path):
    recipe = tmp_path / "up.toml"
    recipe.write_text(ROUNDED_UP, encoding="utf-8")
    ours, plain = (
        optimized(FORMS[name], high=high, recipe=recipe_, target=target)
        for recipe_, target in (("mxfp8", TARGET), (str(recipe), "reference"))
    )
    left, right = (load(item.model).model for item in (ours, plain))
    assert any(place.node.op_type == "TRT_MXFP8DynamicQuantize" for place in walk.walk(left))
    assert not any(place.node.domain == "trt" for place in walk.walk(right))
    for feed in feeds(model(FORMS[name]), 3):
        one, other = (outputs(item, feed, by_reference=False)["y"] for item in (left, right))
        np.testing.assert_array_equal(one, other)


def test_the_plan_says_which_rule_the_scales_have():
    ours, plain = optimized(SOUND).plan.ops["y"], optimized(SOUND, target="reference").plan.ops["y"]
    for slot in (0, 1):
        assert (ours.inputs[slot].scale.stored.rule, plain.inputs[slot].scale.stored.rule) == ("max", "ocp")
    assert "rounded up" in ours.why.text


def test_standard_onnx_stays_for_others():
    held = load(optimized(SOUND, target="reference").model).model
    (quantize,) = (place.node for place in walk.walk(held) if place.node.op_type == "QuantizeLinear")
    assert quantize.inputs[1].dtype == ir.DataType.FLOAT8E8M0
    assert run(WriteMxfp8Quantization(), fp8graph.optimize(model(SOUND), recipe="fp8-dynamic").model).count == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (product("2,6,80", "80,8", "MatMul(a, w)", "2,6,8"), "blocks of 32 along the last axis"),
        (product("2,64,6", "8,64", "MatMul(w, a)", "2,8,6"), "blocks of 32 along the last axis"),
        (product("64,6", "64,8", "Gemm <transA = 1> (a, w)", "6,8"), "blocks of 32 along the last axis"),
        (product("2,3,6,64", "64,8", "MatMul(a, w)", "2,3,6,8"), "rank 2 and 3"),
    ],
    ids=["a part of a block", "weight on the left", "transposed", "rank 4"],
)
def test_what_the_operator_does_not_take_is_kept_in_high_precision(text, why):
    decision = optimized(text, allow_unquantized=True).plan.ops["y"]
    assert (decision.do, decision.why.code) == ("keep", "FG301") and why in decision.why.text


def test_a_weight_that_came_with_scales_of_its_own_is_none_of_mxfp8():
    codes, scales = ", ".join(["1"] * 256), ", ".join(["0.5"] * 8)
    text = (
        f"(float[6,32] x) => (float[6,8] y) <float8e4m3fn[32,8] c = {{{codes}}}, float[8] s = {{{scales}}}> "
        "{ a = Relu(x) w = DequantizeLinear <axis = 1> (c, s) y = MatMul(a, w) }"
    )
    decision = optimized(text, allow_unquantized=True).plan.ops["y"]
    assert (decision.do, decision.why.code) == ("keep", "FG301") and "scales of its own" in decision.why.text


@pytest.mark.parametrize("target", ["tensorrt:sm89", "tensorrt:sm90", "tensorrt:sm90+sm100", "tensorrt"])
def test_older_chips_have_no_mxfp8(target):
    with refused(UsageError, "FG341", "from Blackwell on"):
        optimized(SOUND, target=target)


@pytest.mark.parametrize("chip", ["sm89", "sm120"])
def test_where_it_is_only_simulated_it_is_refused(chip):
    with refused(UsageError, "FG341", "only simulated", "fp8-default", "--fp8-everywhere"):
        optimized(SOUND, target=f"tensorrt-rtx:{chip}")


ASKED = {
    "everywhere": {"fp8_everywhere": True},
    "by name": {"nodes_to_quantize": ["y"]},
    "by type": {"op_types_to_quantize": ["MatMul"]},
}


@pytest.mark.parametrize("options", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("chip", ["sm89", "sm120"])
@needs_rtx
def test_who_asks_gets_it_and_an_engine_that_says_so(chip, options, tmp_path):
    out, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    done = optimized(SOUND, target=f"tensorrt-rtx:{chip}", output=out, **options)
    assert "only simulated" in done.plan.ops["y"].why.text
    assert "FG332" in {item.code for item in done.findings}
    fp8graph.build(out, output=engine, target=f"tensorrt-rtx:{chip}")
    (said,) = fp8graph.attest(engine, model=out).verdicts.values()
    assert (said.planned, said.forecast, said.verdict) == ("emulated",) * 3
    assert (said.macs, said.weight_bytes) == (2 * 6 * 64 * 8, 64 * 8)
    # Without the plan FP8 is what the model promises, and not what it gets.
    (tmp_path / "m.onnx.plan.json").unlink()
    (bare,) = fp8graph.attest(engine, model=out).verdicts.values()
    assert (bare.planned, bare.forecast, bare.verdict) == ("fp8", "emulated", "emulated")


@pytest.mark.parametrize("chip", ["sm100", "sm110", "sm120", "sm121"])
def test_nvfp4_has_the_same_form_there(chip):
    done = optimized(SOUND, target=f"tensorrt:{chip}", recipe="nvfp4")
    assert done.planned_by["fp4"] == 1
    kinds = {place.node.op_type for place in walk.walk(load(done.model).model)}
    assert "TRT_FP4DynamicQuantize" in kinds
    with refused(UsageError, "FG341", "nvfp4"):
        optimized(SOUND, target="tensorrt:sm90", recipe="nvfp4")
