"""Every op gets the high-precision type that the plan says, with Casts where types meet."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.core.pipeline import Pipeline
from fp8graph.graph import walk
from fp8graph.testing import outputs, planned, random_feeds
from fp8graph_passes.cast_high_precision import CastHighPrecision
from tests.passes.doing import Done, planned_run
from tests.small import model

TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
WIDE = ir.DataType.FLOAT
# Nothing in FP8: what is left is casting alone.
ALL_KEPT: dict[str, Any] = {"op_types_to_exclude": ("MatMul",)}


def cast(text: str, high: str = "fp16", **how: Any) -> Done:
    return planned_run(CastHighPrecision(), model(text) if isinstance(text, str) else text, high=high, **how)


def types(done: Done, key: str) -> tuple[list[ir.DataType | None], list[ir.DataType | None]]:
    node = done.at(key)
    return [value.dtype for value in node.inputs if value is not None], [value.dtype for value in node.outputs]


PLAIN = """(float[2,16] x, float[16,16] w, float[16] w_b) => (float[2,16] y) {
    a = MatMul(x, w) b = Add(a, w_b) c = Relu(b) y = Tanh(c) }"""


@pytest.mark.parametrize("high", TYPES)
def test_ops_read_and_yield_the_type_and_the_model_keeps_its_own(high):  # cases 1 and 3
    done = cast(PLAIN, high, **ALL_KEPT)
    half = TYPES[high]
    assert types(done, "a") == ([half, half], [half])
    assert types(done, "b") == ([half, half], [half])
    assert [(v.name, v.dtype) for v in (*done.model.graph.inputs, *done.model.graph.outputs)] == [
        ("x", WIDE), ("y", WIDE)
    ]  # fmt: skip
    assert done.kinds["Cast"] == 2  # one in, one out
    onnx.checker.check_model(ir.to_proto(done.model), full_check=True)


@pytest.mark.parametrize(("high", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_constants_are_converted_once_as_they_are_written(high, dtype):
    text = "(float[2,4] x, float[4] w) => (float[2,4] y) { a = Add(x, w) b = Mul(a, w) y = Tanh(b) }"
    done = cast(text, high)
    assert list(done.constants) == [f"w_{high}"]
    assert isinstance(done.model.graph.initializers[f"w_{high}"].const_value, ir.LazyTensor)
    old = done.before.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(done.constants[f"w_{high}"], old.astype(dtype))
    assert done.inputs("a")[1] == done.inputs("b")[1] == f"w_{high}"


@pytest.mark.parametrize("high", TYPES)
def test_the_numbers_are_those_of_rounding_each_op(high):
    done = cast("(float[2,4] x, float[4] w) => (float[2,4] y) { a = Add(x, w) y = Mul(a, w) }", high)
    dtype = np.float16 if high == "fp16" else ml_dtypes.bfloat16
    feed = random_feeds(done.before)
    x, w = feed["x"].astype(dtype), done.before.graph.initializers["w"].const_value.numpy().astype(dtype)
    expected = ((x + w).astype(dtype) * w).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(outputs(done.model, feed)["y"], expected)


def test_what_the_plan_quantizes_is_left_as_its_producer_wrote_it():
    done = cast("(float[2,16] x, float[16,16] w) => (float[2,16] y) { y = MatMul(x, w) }")
    assert types(done, "y") == ([WIDE, WIDE], [TYPES["fp16"]])
    assert set(done.constants) == {"w"}


def test_one_cast_serves_all_readers_of_a_value():
    text = "(float[2,4] x) => (float[2,4] y, float[2,4] z) { a = Abs(x) b = Neg(x) y = Add(a, b) z = Mul(a, x) }"
    done = cast(text)
    assert done.inputs("a") == done.inputs("b") == ["x_fp16"]
    assert done.kinds["Cast"] == 3


def test_an_op_without_the_type_keeps_its_own_with_casts_around_it():
    # CumSum knows float32 and float64 alone
    text = "(float[2,4] x) => (float[2,4] y) <int64 axis = {1}> { a = Abs(x) s = CumSum(a, axis) y = Tanh(s) }"
    done = cast(text)
    plan = done.ctx.plan
    assert plan is not None
    half, own = TYPES["fp16"], types(done, "s")
    expected = half if plan.ops["s"].high == "fp16" else WIDE
    assert own[1] == [expected]
    onnx.checker.check_model(ir.to_proto(done.model), full_check=True)


def test_outputs_whose_type_is_said_elsewhere_stay():
    text = """(float[2,4] x, int64[1] n) => (float[2,4] y, int64[2,1] i) <int64[1] one = {1}> {
        c = Cast <to = 1> (n) f = ConstantOfShape(n) m = Mul(x, c) t, i = TopK(m, one)
        g = ReduceSum(f) y = Add(m, g) }"""
    done = cast(text)
    assert types(done, "c")[1] == [WIDE]
    assert types(done, "f")[1] == [WIDE]
    assert types(done, "t")[1] == [TYPES["fp16"], ir.DataType.INT64]
    onnx.checker.check_model(ir.to_proto(done.model), full_check=True)


# The product is quantized: its range is observed, and with it that of all others.
OVERFLOWS = """(float[2,4] x, float[4] w, float[4,4] w_m) => (float[2,4] y, float[2,4] m) {
    a = Neg(x) b = Mul(a, w) c = Mul(b, w) y = Tanh(c) m = MatMul(x, w_m) }"""
ONE = "(float[2,4] x, float[4] w, float[4,4] w_m) => (float[2,4] y) { a = Neg(x) b = Mul(a, w) y = MatMul(b, w_m) }"


def test_where_a_tensor_overflows_fp16_its_ops_stay_fp32_with_casts_around_them():  # case 2
    proto = model(OVERFLOWS, w=np.full(4, 300.0, np.float32))
    done = cast(proto)
    plan = done.ctx.plan
    assert plan is not None
    assert {key for key, op in plan.ops.items() if op.high == "fp32"} == {"c", "y"}
    assert plan.ops["c"].why.code == "FG214"
    assert types(done, "b") == ([TYPES["fp16"]] * 2, [TYPES["fp16"]])
    assert types(done, "c") == ([WIDE, WIDE], [WIDE])
    assert {"w", "w_fp16"} <= set(done.constants)
    whole = planned(proto, high="fp16").model
    onnx.checker.check_model(ir.to_proto(whole), full_check=True)
    assert np.isfinite(outputs(whole, random_feeds(whole))["y"]).all()


def test_bf16_has_the_range_of_fp32_and_nothing_retreats():
    done = cast(model(OVERFLOWS, w=np.full(4, 300.0, np.float32)), "bf16")
    plan = done.ctx.plan
    assert plan is not None
    assert {op.high for op in plan.ops.values()} == {"bf16"}


@pytest.mark.parametrize(("number", "says"), [(1e6, "reaches"), (1e-9, "would become zero")])
def test_a_constant_that_does_not_fit_fp16_keeps_its_op_in_fp32(number, says):
    done = cast(model(ONE, w=np.full(4, number, np.float32)))
    plan = done.ctx.plan
    assert plan is not None
    assert (plan.ops["b"].high, plan.ops["a"].high) == ("fp32", "fp16")
    assert says in plan.ops["b"].why.text
    assert done.constants["w"].dtype == np.float32


HALF = """(float16[2,4] x, float16[4] w) => (float16[2,4] y) { a = Add(x, w) y = Tanh(a) }"""


@pytest.mark.parametrize(("high", "count"), [("keep", 0), ("fp16", 0)])
def test_a_model_of_the_type_asked_for_is_not_touched(high, count):
    assert cast(HALF, high).count == count


@pytest.mark.parametrize("high", ["fp32", "bf16"])
def test_a_model_in_half_precision_is_taken_to_another_type(high):
    done = cast(HALF, high)
    wanted = WIDE if high == "fp32" else TYPES["bf16"]
    assert types(done, "a") == ([wanted, wanted], [wanted])
    assert {v.dtype for v in (*done.model.graph.inputs, *done.model.graph.outputs)} == {TYPES["fp16"]}
    onnx.checker.check_model(ir.to_proto(done.model), full_check=True)


BODIES = """(float[2,4] x, bool c, float[4] w) => (float[2,4] y, float[2,4] z) <int64 trips = {2}, bool yes = {1}> {
    r = Relu(x)
    y = If (c) <then_branch = t () => (float[2,4] a) { m = Mul(r, w) a = Tanh(m) },
                else_branch = e () => (float[2,4] b) { b = Neg(r) }>
    z = Loop (trips, yes, r) <body = step (int64 i, bool go, float[2,4] h) => (bool on, float[2,4] next) {
        on = Identity(go) s = Add(h, w) next = Tanh(s) }>
}"""


@pytest.mark.parametrize("high", TYPES)
def test_inputs_and_outputs_of_bodies_keep_their_types_and_names(high):
    done = cast(BODIES, high)
    half = TYPES[high]
    owners = {"y": ("then_branch", "else_branch"), "z": ("body",)}
    for output, bodies in owners.items():
        for body in bodies:
            old, new = (
                next(p.node for p in walk.walk(m) if p.key == output).attributes[body].as_graph()
                for m in (done.before, done.model)
            )
            for which in ("inputs", "outputs"):
                assert [(v.name, v.dtype) for v in getattr(new, which)] == [
                    (v.name, v.dtype) for v in getattr(old, which)
                ]
    for key in ("y.then_branch/m", "z.body/s"):
        assert types(done, key) == ([half, half], [half])
    onnx.checker.check_model(ir.to_proto(done.model), full_check=True)
    for seed in range(2):
        feed = random_feeds(done.before, seed=seed)
        old, new = outputs(done.before, feed), outputs(done.model, feed)
        for name in old:
            np.testing.assert_allclose(new[name], old[name], rtol=0.05, atol=0.02)


def test_the_cast_of_a_captured_value_serves_every_body():
    done = cast(BODIES)
    main = [node.op_type for node in done.model.graph]
    assert main.count("Cast") >= 1
    branches = [done.at("y").attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    assert [[node.op_type for node in graph] for graph in branches] == [["Mul", "Tanh", "Cast"], ["Neg", "Cast"]]


def test_a_value_that_is_returned_and_read_keeps_its_name_outside():
    done = cast("(float[2,4] x) => (float[2,4] y, float[2,4] a) { a = Abs(x) y = Neg(a) }")
    assert [value.name for value in done.model.graph.outputs] == ["y", "a"]
    assert done.inputs(done.at("y").outputs[0].name or "") == [done.at("a").outputs[0].name]
    assert done.at("a").outputs[0].name == "a_fp16"


def test_a_value_that_is_returned_twice_is_cast_once():
    prepared = planned(model("(float[2,4] x) => (float[2,4] y) { y = Abs(x) }"), until=CastHighPrecision(), high="fp16")
    prepared.model.graph.outputs.append(prepared.model.graph.outputs[0])
    CastHighPrecision().rewrite(prepared.model, prepared.ctx)
    first, second = prepared.model.graph.outputs
    assert first is second
    assert (first.name, first.dtype) == ("y", WIDE)


def test_functions_keep_their_types_and_casts_stand_around_the_call():
    functions = """<domain: "local", opset_import: ["" : 21]>
    Soft (a) => (b) { t = Tanh(a) b = Add(t, a) }"""
    proto = model("(float[2,4] x) => (float[2,4] y) { n = Neg(x) s = local.Soft(n) y = Abs(s) }", functions=functions)
    done = cast(proto)
    assert types(done, "s") == ([WIDE], [WIDE])
    assert types(done, "n")[1] == [TYPES["fp16"]]
    assert done.node("s").inputs[0].producer().op_type == "Cast"


def test_beside_a_custom_op_of_unknown_type_nothing_is_cast():
    proto = model("(float[2,16] x, float[16] w) => (float[2,16] y) { a = Neg(x) b = Relu(a) c = Add(b, w) y = Abs(c) }")
    proto.graph.node[1].domain, proto.graph.node[1].op_type = "acme", "Gate"
    proto.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    out = fp8graph.optimize(
        proto, high_precision_dtype="fp16", data="random", allow_unquantized=True, compare=False, target="reference"
    )
    nodes = {node.output[0]: node for node in out.model.graph.node}
    assert list(nodes["c"].input) == ["b", "w"]  # what Gate yields is not known, and Add wants two of one type
    assert {op.high for key, op in out.plan.ops.items() if key in ("b", "c")} == {"fp32"}
    assert out.plan.ops["a"].high == "fp16"


def test_sequences_stay_as_they_are():
    text = """(float[2,4] x) => (float[2,4] y) <int64 zero = {0}> {
        r = Relu(x) s = SequenceConstruct(r, x) t = SequenceInsert(s, r) a = SequenceAt(t, zero) y = Neg(a) }"""
    done = cast(text)
    for key in ("s", "t"):
        assert all(value.dtype == WIDE for value in done.at(key).inputs if value is not None)
    onnx.checker.check_model(ir.to_proto(done.model), full_check=True)
    feed = random_feeds(done.before)
    np.testing.assert_allclose(
        outputs(done.model, feed, by_reference=False)["y"], outputs(done.before, feed)["y"], rtol=1e-2, atol=1e-3
    )


def test_without_a_plan_nothing_is_done():
    out = Pipeline([CastHighPrecision()])(model(PLAIN))
    assert {node.op_type for node in out.graph.node} == {"MatMul", "Add", "Relu", "Tanh"}
