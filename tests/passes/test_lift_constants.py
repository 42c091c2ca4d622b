"""Constants become initializers, and readers of an Identity on a constant read the constant."""

from __future__ import annotations

import numpy as np
import pytest

from fp8graph_passes.lift_constants import LiftConstants
from tests.passes.doing import run
from tests.small import model


@pytest.mark.parametrize(
    ("spelling", "array"),
    [
        ("value = float[2] {1.5, -2}", np.array([1.5, -2], np.float32)),
        ("value = float {0.25}", np.float32(0.25)),
        ("value_float = 0.5", np.float32(0.5)),
        ("value_floats = [1.0, 3.0]", np.array([1, 3], np.float32)),
    ],
)
def test_a_constant_of_every_spelling_becomes_an_initializer_of_its_name(spelling, array):
    done = run(LiftConstants(), model(f"(float[2] x) => (float[2] y) {{ k = Constant <{spelling}> () y = Add(x, k) }}"))
    assert done.count == 1
    assert not done.kinds["Constant"]
    assert done.inputs("y") == ["x", "k"]
    assert done.constants["k"].dtype == np.float32
    np.testing.assert_array_equal(done.constants["k"], array)
    assert done.same()


@pytest.mark.parametrize("spelling", ["value_int = 3", "value = int64 {3}"])
def test_integers_are_lifted_too(spelling):
    text = "(float[4,8] x) => (float[4] y) { k = Constant <SPELLING> () y = Gather <axis = 1> (x, k) }"
    done = run(LiftConstants(), model(text.replace("SPELLING", spelling)))
    assert done.count == 1
    assert done.constants["k"].dtype == np.int64
    assert done.same()


def test_a_constant_that_the_graph_returns_stays_a_node():
    text = "(float[2] x) => (float[2] y, float k) { k = Constant <value_float = 2.0> () y = Mul(x, k) }"
    done = run(LiftConstants(), model(text))
    assert done.count == 0
    assert done.kinds["Constant"] == 1


def test_constants_in_bodies_become_initializers_of_the_body():
    text = """(float[2] x, bool c) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { k = Constant <value_float = 2.0> () a = Mul(x, k) },
                    else_branch = e () => (float[2] b) { b = Neg(x) }>
    }"""
    done = run(LiftConstants(), model(text))
    assert done.count == 1
    assert list(done.node("y").attributes["then_branch"].as_graph().initializers) == ["k"]
    assert not done.model.graph.initializers
    assert done.same()


def test_constants_in_functions_stay_for_a_function_holds_no_initializers():
    functions = """<domain: "local", opset_import: ["" : 21]>
    Twice (a) => (b) { k = Constant <value_float = 2.0> () b = Mul(a, k) }"""
    done = run(LiftConstants(), model("(float[2] x) => (float[2] y) { y = local.Twice(x) }", functions=functions))
    assert done.count == 0
    assert done.kinds["Constant"] == 1


def test_an_identity_on_a_constant_is_passed_by_through_a_chain_of_them():
    text = "(float[2,4] x, float[4,4] w) => (float[2,4] y) { a = Identity(w) b = Identity(a) y = MatMul(x, b) }"
    done = run(LiftConstants(), model(text))
    assert done.count == 2
    assert done.inputs("y") == ["x", "w"]
    assert done.same()


@pytest.mark.parametrize(
    "text",
    [
        "(float[4] x, float[4] w) => (float[4] y, float[4] a) { a = Identity(w) y = Add(x, a) }",
        "(float[4] x) => (float[4] y) { a = Identity(x) y = Neg(a) }",
    ],
    ids=["returned by the graph", "on an activation"],
)
def test_another_identity_stays(text):
    done = run(LiftConstants(), model(text))
    assert done.count == 0
    assert done.kinds["Identity"] == 1


def test_an_identity_on_a_constant_that_an_input_may_override_stays():
    proto = model("(float[4] x, float[4] w) => (float[4] y) { a = Identity(w) y = Add(x, a) }")
    value = proto.graph.input.add()
    value.CopyFrom(proto.graph.input[0])
    value.name = "w"
    done = run(LiftConstants(), proto)
    assert done.count == 0
    assert done.kinds["Identity"] == 1
