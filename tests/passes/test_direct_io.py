"""Inputs and outputs in the high-precision type: which take it, which stay, and that comparisons go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.graph.load import load
from fp8graph.testing import corpus
from tests.small import feeds, model, refused, sha

KINDS = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
FLOAT = ir.DataType.FLOAT
SIMPLE = "(float[n,32] x, float[32,32] w) => (float[n,32] y) { y = MatMul(x, w) }"


def kinds(proto) -> dict[str, ir.DataType]:
    graph = load(proto).model.graph
    return {value.name: value.dtype for value in (*graph.inputs, *graph.outputs)}


def optimized(proto, high="fp16", data=None, **how):
    how = {"target": "reference", "allow_unquantized": True, "direct_io_types": True} | how
    return fp8graph.optimize(proto, data=feeds(proto) if data is None else data, high_precision_dtype=high, **how)


@pytest.mark.parametrize("high", KINDS)
@pytest.mark.parametrize(
    ("text", "stay"),
    [
        (SIMPLE, ""),  # read by Q alone
        ("(float[n,32] x, float[32,32] w) => (float[n,32] y) { r = Relu(x) y = MatMul(r, w) }", ""),
        ("(float[n,32] x, float[32,32] w) => (float[n,32] y) { r = Relu(x) m = MatMul(r, w) y = Add(m, x) }", ""),
        ("(float[n,32] x, int64[n] i) => (float[n,32] y, int64[n] j) { y = Relu(x) j = Identity(i) }", "ij"),
        ("(float[n,32] x) => (float[n,32] y, float[n,32] z) { y = Relu(x) z = Neg(y) }", ""),
        ("(float[n,32] x) => (float[n,32] y, int64[2] s) { y = Relu(x) s = Shape(x) }", "s"),
        ("(double[n,32] x) => (double[n,32] y) { y = Relu(x) }", "xy"),
    ],
)
def test_inputs_and_outputs_take_the_type_that_operators_have(high, text, stay):
    proto = model(text)
    before, done = kinds(proto), optimized(proto, high)
    onnx.checker.check_model(done.model, full_check=True)
    for name, kind in kinds(done.model).items():
        assert kind == (before[name] if name in stay else KINDS[high]), name
    if "Relu" in text and "double" not in text:  # a Q in front of which the target wants float32 has a Cast of its own
        assert [node.name for node in done.model.graph.node if node.op_type == "Cast" and node.input[0] in before] == []


@pytest.mark.parametrize("high", KINDS)
@pytest.mark.parametrize("name", sorted(corpus()))
def test_a_model_of_the_corpus_gives_the_same_as_with_types_of_its_own(name, high, tmp_path):
    proto = corpus()[name]
    how = {"data": "random", "samples": 2, "high": high}
    plain = optimized(proto, direct_io_types=False, **how)
    done = optimized(proto, output=tmp_path / "m.onnx", **how)
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)
    assert done.plan.ops == plain.plan.ops and not done.comparison.problems
    for output, item in done.comparison.outputs.items():
        one, other = (
            value.sqnr_db if value.sqnr_db is not None else 99 for value in (plain.comparison.outputs[output], item)
        )
        assert other > min(one, 40) - 6, output
    names = [[value.name for value in side] for side in (proto.graph.input, proto.graph.output)]
    made = onnx.load(tmp_path / "m.onnx").graph
    assert [[value.name for value in side] for side in (made.input, made.output)] == names


def test_the_result_is_compared_by_floats_and_by_its_own_type(tmp_path):
    proto, out = model(SIMPLE), tmp_path / "m.onnx"
    done = optimized(proto, output=out)
    data = {"x": np.concatenate([feed["x"] for feed in feeds(proto)])}
    assert fp8graph.compare(proto, out, data=data, batch=2).outputs["y"] == done.comparison.outputs["y"]
    half = {"x": data["x"].astype(np.float16)}
    assert fp8graph.compare(out, out, data=half).outputs["y"].equal
    with refused(fp8graph.InputError, "FG107", "float64"):
        fp8graph.compare(out, out, data={"x": data["x"].astype(np.float64)})


def test_a_plan_repeats_it_and_says_that_it_was_asked(tmp_path):
    proto, first, again = model(SIMPLE), tmp_path / "a.onnx", tmp_path / "b.onnx"
    done = optimized(proto, output=first)
    assert done.plan.asked["direct_io_types"] is True
    fp8graph.optimize(proto, output=again, plan=Path(f"{first}.plan.json"))
    fp8graph.optimize(proto, output=again, plan=Path(f"{first}.plan.json"), direct_io_types=True, force=True)
    assert sha(first) == sha(again)
    plain = optimized(proto, output=tmp_path / "c.onnx", direct_io_types=False)
    with refused(UsageError, "FG110", "--direct-io-types contradicts the plan"):
        fp8graph.optimize(proto, plan=plain.plan, direct_io_types=True)


@pytest.mark.parametrize("high", [None, "keep", "fp32"])
def test_without_a_type_asked_for_there_is_none_to_take(high):
    with refused(UsageError, "FG100", "--high-precision-dtype fp16"):
        optimized(model(SIMPLE), high)


def test_an_input_that_overflows_fp16_keeps_its_type():
    proto = model("""(float[n,32] x, float[32,32] w) => (float[n,32] y) {
        c = Constant <value_float = 0.0001> ()
        s = Mul(x, c)
        y = MatMul(s, w)
    }""")
    data = [{"x": feed["x"] * 1e6} for feed in feeds(proto)]
    done = optimized(proto, data=data)
    assert kinds(done.model) == {"x": FLOAT, "y": KINDS["fp16"]}
    assert [finding.text for finding in done.findings if finding.code == "FG234"] == [
        "the input 'x' keeps its type: no operator reads it in fp16"
    ]
    assert not done.comparison.problems


def test_a_reader_that_keeps_the_old_type_gets_a_cast():
    proto = model("""(float[2,32] x, int64 m) => (float[2,32] y, float[2,32] l) {
        y = Relu(x)
        c = Constant <value = bool {1}> ()
        l = Loop <body = b (int64 i, bool d, float[2,32] v) => (bool e, float[2,32] o) {
            e = Identity(d)
            o = Neg(v)
        }> (m, c, x)
    }""")
    done = optimized(proto, data=[{"x": feed["x"], "m": np.array(2)} for feed in feeds(proto)])
    onnx.checker.check_model(done.model, full_check=True)
    assert kinds(done.model) == {"x": KINDS["fp16"], "m": ir.DataType.INT64, "y": KINDS["fp16"], "l": FLOAT}
    assert not done.comparison.problems
    assert [node.input[2] for node in done.model.graph.node if node.op_type == "Loop"] == ["x_fp32"]
