"""Recipes whose [[quantize.for]] lines quantize some ops in another way: who is spoken for, by which line, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.data import recipe
from fp8graph.data.plan import Decision
from fp8graph.data.recipe import Recipe
from fp8graph.runners.reference import reference
from tests.small import TWO, feeds, model, plan_of, refused

MIXED = """(float[2,32] x, float[2,2,64,32] q, float[32,32] w_a, float[32,32] w_b, float[32,16] w_c)
    => (float[2,16] y, float[2,2,64,32] o) {
    a = MatMul(x, w_a)
    b = MatMul(a, w_b)
    r = Relu(b)
    y = Gemm(r, w_c)
    t = Transpose <perm = [0, 1, 3, 2]> (q)
    s = MatMul(q, t)
    p = Softmax <axis = -1> (s)
    o = MatMul(p, q)
}"""
INT8, E5M2, STORED = {"format": "int8"}, {"format": "e5m2"}, {"activations": {"format": "none"}}
E5 = {"format": "e5m2", "per": "tensor", "scale": "amax"}
TOKENS = {"activations": {"per": "token", "scale": "dynamic"}}


def mixed(*lines: dict[str, Any], **quantize: Any) -> Recipe:
    """The default recipe with these lines."""
    table = recipe.load("fp8-default").to_json()
    return Recipe.from_mapping(table | {"quantize": table["quantize"] | quantize | {"for": list(lines)}}, "mixed.toml")


def line(*ops: str, **said: Any) -> dict[str, Any]:
    return {"ops": list(ops), **said}


def told(op: Decision) -> str:
    """What is done with an op, and in which formats."""
    return f"{op.do} {op.why.code} {' '.join(quant.format for quant in op.inputs.values())}".rstrip()


BOTH = "quantize FG201 e4m3fn e4m3fn"
TABLE: list[tuple[str, list[dict[str, Any]], dict[str, Any], dict[str, str]]] = [
    ("no line", [], {}, {"a": BOTH, "y": BOTH, "s": BOTH}),
    ("one op", [line("b", **INT8)], {}, {"a": BOTH, "b": "quantize FG201 int8 int8", "y": BOTH}),
    ("a type", [line("type:Gemm", **E5M2)], {}, {"a": BOTH, "y": "quantize FG201 e5m2 e5m2"}),
    ("the first counts", [line("b", **INT8), line("*", **E5M2)], {}, {"b": "quantize FG201 int8 int8"}),
    ("in their order", [line("*", **E5M2), line("b", **INT8)], {}, {"b": "quantize FG201 e5m2 e5m2"}),
    ("one operand", [line("y", weights=INT8)], {}, {"y": "quantize FG201 e4m3fn int8"}),
    ("a weight alone", [line("y", **STORED)], {}, {"y": "quantize FG201 e4m3fn", "a": BOTH}),
    ("no weight to store", [line("s", "o", **STORED)], {}, {"s": "keep FG227", "o": "keep FG227", "a": BOTH}),
    ("both of attention", [line("s", "o", **INT8)], {}, {"s": "quantize FG201 int8 int8", "a": BOTH}),
    ("half of attention", [line("s", **INT8)], {}, {"s": "keep FG210", "o": "keep FG210", "a": BOTH}),
    ("an option excludes", [line("b", **INT8)], {"nodes_to_exclude": ["b"]}, {"b": "keep FG203"}),
    ("an option asks", [line("b", **INT8)], {"nodes_to_quantize": ["b"]}, {"b": "quantize FG204 int8 int8"}),
    ("other types are asked for", [line("b", **INT8)], {"op_types_to_quantize": ["Gemm"]}, {"b": "keep FG203"}),
    ("the target refuses", [line("b", **E5M2)], {"target": "tensorrt-rtx:sm89"}, {"b": "keep FG301", "a": BOTH}),
]


@pytest.mark.parametrize(("lines", "asked", "wanted"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_line_says_how_and_never_whether(lines: Any, asked: dict[str, Any], wanted: dict[str, str]):
    plan = plan_of(model(MIXED), recipe=mixed(*lines), **({"target": "reference"} | asked))
    assert {key: told(plan.ops[key]) for key in wanted} == wanted


def test_types_that_only_a_line_names_are_quantized_and_rules_are_asked_before():
    plan = plan_of(model(MIXED), recipe=mixed(line("b", **INT8), ops=[]), target="reference")
    assert [key for key, _ in plan.quantized()] == ["b"]
    image = model("(float[1,3,8,8] x, float[32,3,3,3] w) => (float[1,32,6,6] y) { y = Conv(x, w) }")
    plan = plan_of(image, recipe=mixed(line("type:Conv", **INT8)), target="reference")
    assert told(plan.ops["y"]) == "keep FG208"


def test_the_reason_names_the_pattern_and_says_why():
    plan = plan_of(model(MIXED), recipe=mixed(line("b", why="it spans little", **INT8)))
    assert plan.ops["b"].why.by == "recipe fp8-default: 'b'"
    assert plan.ops["b"].why.text == "both operands in int8: it spans little"
    assert plan.ops["a"].why.by == "recipe fp8-default"


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("c", "matches no op"),
        ("r", "matches no op"),
        ("type:Relu", "Conv, ConvTranspose, Gemm, MatMul"),
        ("re:(", "read"),
    ],
)
def test_a_pattern_has_to_match_what_can_be_quantized(pattern: str, says: str):
    with refused(UsageError, "FG109", "quantize.for", says):
        plan_of(model(MIXED), recipe=mixed(line(pattern, **INT8)))


def test_a_user_that_asks_for_what_the_line_cannot_have_is_told():
    with refused(UsageError, "FG302", "asked for in e5m2", "E5M2 is not imported"):
        plan_of(model(MIXED), recipe=mixed(line("b", **E5M2)), nodes_to_quantize=["b"], target="tensorrt-rtx:sm89")


def test_a_tensor_that_two_read_in_two_formats_has_two_pairs_and_the_numbers_of_each(tmp_path: Path):
    """Each product gives what it gives in a model that is quantized in its format alone."""
    text = """(float[2,32] x, float[32,32] w_a, float[32,32] w_b) => (float[2,32] y, float[2,32] z) {
        y = MatMul(x, w_a)
        z = MatMul(x, w_b)
    }"""
    proto = model(text)
    data = feeds(proto)

    def of(one: Any) -> dict[str, Any]:
        fp8graph.optimize(proto, data=data, recipe=one, target="reference", output=tmp_path / "o.onnx", force=True)
        return reference(tmp_path / "o.onnx").run(data[0])

    int8_line = line("z", **INT8, weights={"scale": "amax"})
    both, fp8, int8 = of(mixed(int8_line)), of("fp8-default"), of("int8")
    assert np.array_equal(both["y"], fp8["y"]) and np.array_equal(both["z"], int8["z"])
    assert not np.array_equal(both["z"], fp8["z"])


@pytest.mark.parametrize(
    ("lines", "formats"),
    [
        ([line("y", **INT8)], {"FLOAT8E4M3FN", "INT8"}),
        ([line("y", **TOKENS)], {"FLOAT8E4M3FN"}),
        ([line("h", **STORED)], {"FLOAT8E4M3FN"}),
        (
            [line("y", weights={"format": "e2m1", "per": "block", "block": [16]}, activations={"format": "none"})],
            {"FLOAT8E4M3FN", "FLOAT4E2M1"},
        ),
    ],
)
def test_a_mixed_plan_is_carried_out_checked_and_replayed(lines: Any, formats: set[str], tmp_path: Path):
    proto = model(TWO)
    data = feeds(proto)
    done = fp8graph.optimize(proto, data=data, recipe=mixed(*lines), target="reference", output=tmp_path / "o.onnx")
    held = {TensorProto.DataType.Name(tensor.data_type) for tensor in done.model.graph.initializer}
    assert held - {"FLOAT", "INT64"} == formats
    assert [item for item in done.findings if item.severity in ("warning", "error")] == []
    again = fp8graph.optimize(proto, plan=done.plan, output=tmp_path / "again.onnx")
    assert again.model.SerializeToString() == done.model.SerializeToString()


def test_a_weight_that_came_in_fp8_is_not_rounded_to_int8_unasked():
    codes = (np.random.default_rng(0).standard_normal((32, 32)) * 16).astype(ml_dtypes.float8_e4m3fn)
    proto = model(
        """(float[2,32] x, float[32,32] w_a, float w_s) => (float[2,32] y) {
            r = Relu(x)
            d = DequantizeLinear(w_a, w_s)
            y = MatMul(r, d)
        }""",
        w_s=np.float32(0.01),
    )
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(codes, "w_a"))
    assert told(plan_of(proto, target="reference").ops["y"]) == BOTH
    kept = plan_of(proto, target="reference", recipe=mixed(line("y", **INT8))).ops["y"]
    assert told(kept) == "keep FG230" and "came in e4m3fn" in kept.why.text
    asked = plan_of(proto, target="reference", recipe=mixed(line("y", **INT8)), nodes_to_quantize=["y"]).ops["y"]
    assert told(asked) == "quantize FG204 int8 int8"


def test_a_recipe_of_which_the_target_runs_no_more_than_a_line_is_none_that_it_refuses():
    asked: dict[str, Any] = {"target": "tensorrt-rtx:sm89", "nodes_to_exclude": ["b"]}
    both = mixed(line("b", format="e4m3fn"), activations=dict(E5), weights=dict(E5))
    assert not list(plan_of(model(MIXED), recipe=both, **asked).quantized())
    with refused(UsageError, "FG341", "E5M2 is not imported"):
        plan_of(model(MIXED), recipe=mixed(line("b", **E5M2), activations=dict(E5), weights=dict(E5)), **asked)
