"""NVFP4 activations as TensorRT's own operator: what is written, what it computes, and where blocks do not fit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.testing import outputs
from tests.small import feeds, model, refused

TARGET = "tensorrt-rtx:sm120"


def product(x: str, w: str, op: str, y: str) -> str:
    """A product of an activation `a` and a weight `w`, of these shapes."""
    count = int(np.prod([int(size) for size in w.split(",")]))
    weight = ", ".join(f"{value:.3f}" for value in np.random.default_rng(0).standard_normal(count))
    return f"(float[{x}] x) => (float[{y}] y) <float[{w}] w = {{{weight}}}> {{ a = Relu(x) y = {op} }}"


SOUND = product("2,6,32", "32,8", "MatMul(a, w)", "2,6,8")


def optimized(text: str, target: str = TARGET, **options):
    proto = model(text)
    return fp8graph.optimize(
        proto, target=target, recipe="nvfp4", data=feeds(proto, 2), high_precision_dtype="fp16", **options
    )


def test_blocks_and_their_scales_come_from_one_node():
    done = optimized(SOUND)
    assert done.planned_by["fp4"] == 1 and done.comparison is not None
    held = load(done.model).model
    assert held.graph.opset_imports["trt"] == 1
    (node,) = (place.node for place in walk.walk(held) if place.node.domain == "trt")
    assert node.op_type == "TRT_FP4DynamicQuantize" and len(node.inputs) == 2
    assert [value.dtype for value in node.outputs] == [ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN]
    assert {name: value.value for name, value in node.attributes.items()} == {
        "axis": -1, "block_size": 16, "scale_type": int(ir.DataType.FLOAT8E4M3FN)
    }  # fmt: skip
    # What found the scales is gone; the two DequantizeLinear behind the node, and the weight's, stay.
    kinds = [place.node.op_type for place in walk.walk(held)]
    assert {"QuantizeLinear", "Abs", "ReduceMax", "Div"}.isdisjoint(kinds)
    assert kinds.count("DequantizeLinear") == 4


def test_the_node_computes_what_it_replaces():
    ours, plain = optimized(SOUND), optimized(SOUND, target="reference")
    assert any(place.node.op_type == "QuantizeLinear" for place in walk.walk(load(plain.model).model))
    for feed in feeds(model(SOUND), 3):
        left, right = (outputs(load(item.model).model, feed, by_reference=False)["y"] for item in (ours, plain))
        np.testing.assert_array_equal(left, right)


def test_activations_of_rank_4_are_kept_in_high_precision():
    """TensorRT's operator takes matrices and stacks of them: the importer refuses others."""
    text = product("2,3,6,32", "32,8", "MatMul(a, w)", "2,3,6,8")
    decision = optimized(text, allow_unquantized=True).plan.ops["y"]
    assert (decision.do, decision.why.code) == ("keep", "FG301") and "rank 2 and 3" in decision.why.text


@pytest.mark.parametrize(
    "text",
    [
        product("2,6,40", "40,8", "MatMul(a, w)", "2,6,8"),
        product("2,32,6", "8,32", "MatMul(w, a)", "2,8,6"),
        product("32,6", "32,8", "Gemm <transA = 1> (a, w)", "6,8"),
    ],
    ids=["a part of a block", "weight on the left", "transposed"],
)
def test_what_has_no_whole_blocks_along_its_last_axis_is_kept_in_high_precision(text):
    decision = optimized(text, allow_unquantized=True).plan.ops["y"]
    assert (decision.do, decision.why.code) == ("keep", "FG301")
    assert "blocks of 16 along the last axis" in decision.why.text


def test_older_chips_have_no_fp4():
    with refused(UsageError, "FG341", "nvfp4"):
        optimized(SOUND, target="tensorrt-rtx:sm89")
