"""The plan: what it may hold, and that it comes back from JSON as it was."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph.base.canon import pretty
from fp8graph.data.plan import Decision, Plan, Profile, Quant, Reason, Scale
from fp8graph.formats.spec import Granularity, PerAxis, PerTensor
from fp8graph.numerics.scale import SMALLEST_SCALE
from tests.small import model, plan_of

WHY = Reason("FG201", "recipe fp8-default", "both operands in FP8")
OBSERVED = Scale("observed", "amax")
LARGEST = float(np.finfo(np.float32).max)

words = st.text(min_size=1, max_size=12)
numbers = st.floats(float(SMALLEST_SCALE), LARGEST, width=32)
scales = st.one_of(
    st.builds(Scale, st.just("computed"), words),
    st.builds(Scale, st.just("dynamic"), words),
    st.builds(Scale, st.just("observed"), words, st.none() | numbers),
    st.builds(Scale, st.just("given"), words, numbers),
)
granularities = st.sampled_from([PerTensor(), PerAxis(0), PerAxis(-1), Granularity(((0, 128), (1, 128)))])
quants = st.builds(Quant, words, st.sampled_from(["e4m3fn", "e5m2"]), granularities, scales)
reasons = st.builds(Reason, words, words, words)
high = st.sampled_from(["fp32", "fp16", "bf16"])
decisions = st.one_of(
    st.builds(Decision, words, st.text(), st.just("keep"), reasons, high, group=st.text(max_size=5)),
    st.builds(
        Decision,
        words,
        st.text(),
        st.just("quantize"),
        reasons,
        high,
        st.dictionaries(st.integers(0, 3), quants, min_size=1, max_size=3),
        st.text(max_size=5),
    ),
)
profiles = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3).map(sorted), max_size=4).map(
    lambda axes: Profile(*(tuple(axis[i] for axis in axes) for i in range(3)))
)
plain = st.dictionaries(words, st.booleans() | words | st.lists(words, max_size=3), max_size=3)
plans = st.builds(
    Plan,
    words,
    words,
    plain,
    st.dictionaries(words, decisions, max_size=5),
    st.dictionaries(words, profiles, max_size=2),
    plain,
    st.text(max_size=8),
)


@given(plans)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_plan_comes_back_from_json_as_it_was(plan: Plan):
    text = pretty(plan.to_json())
    again = Plan.from_json(json.loads(text))
    assert again == plan
    assert list(again.ops) == list(plan.ops)  # graph order is kept
    assert pretty(again.to_json()) == text


@pytest.mark.parametrize(
    ("do", "inputs"),
    [
        ("quantize", {}),
        ("keep", {0: Quant("x", "e4m3fn", PerTensor(), OBSERVED)}),
        ("drop", {}),
    ],
)
def test_an_op_is_quantized_exactly_when_some_input_is(do: Any, inputs: dict[int, Quant]):
    with pytest.raises(ValueError):
        Decision("Conv", "", do, WHY, inputs=inputs)


def test_a_high_precision_type_is_one_of_three():
    with pytest.raises(ValueError, match="fp64"):
        Decision("Conv", "", "keep", WHY, "fp64")  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [("", "by", "text"), ("FG201", "", "text"), ("FG201", "by", "")])
def test_reason_never_empty(parts: tuple[str, str, str]):
    with pytest.raises(ValueError, match="a reason has"):
        Reason(*parts)


SCALES: list[tuple[Any, ...]] = [
    ("guessed", None),
    ("observed", 0.0),
    ("observed", -1.0),
    ("observed", math.nan),
    ("observed", math.inf),
    ("observed", 1e39),  # finite as a double, infinite as float32
    ("observed", 1e-60),  # positive as a double, zero as float32
    ("computed", 1.0),
    ("dynamic", 1.0),
    ("given", None),
]


@pytest.mark.parametrize(("origin", "value"), SCALES)
def test_a_scale_is_a_positive_finite_float32_where_its_origin_has_one(origin: Any, value: float | None):
    with pytest.raises(ValueError):
        Scale(origin, "amax", value)


@pytest.mark.parametrize(
    ("scale", "settled"),
    [
        (OBSERVED, False),
        (replace(OBSERVED, value=0.5), True),
        (Scale("computed", "amax"), True),
        (Scale("dynamic", "amax"), True),
        (Scale("given", "softmax", 1 / 448), True),
    ],
)
def test_only_an_observed_scale_without_a_number_is_not_settled(scale: Scale, settled: bool):
    quant = Quant("x", "e4m3fn", PerTensor(), scale)
    plan = Plan("s", "t", {}, {"y": Decision("MatMul", "", "quantize", WHY, inputs={0: quant})})
    assert quant.settled is plan.settled is settled


@pytest.mark.parametrize(
    ("least", "usual", "largest"),
    [((1,), (1, 2), (1,)), ((2,), (1,), (3,)), ((1,), (4,), (3,)), ((-1,), (1,), (1,))],
)
def test_a_profile_is_ordered_and_of_one_rank(least, usual, largest):
    with pytest.raises(ValueError):
        Profile(least, usual, largest)


BRANCHES = """(bool c, float[2,8] x, float[8,8] w) => (float[2,8] z) {
    h = MatMul(x, w)
    y = If (c) <
        then_branch = a () => (float[2,8] t) { s = Relu(h)  t = MatMul(s, w) },
        else_branch = b () => (float[2,8] t) { s = Sigmoid(h)  t = Add(s, h) }
    >
    z, extra = Split <axis = 0, num_outputs = 2> (y)
}""".replace("z, extra = Split <axis = 0, num_outputs = 2> (y)", "z = Identity(y)")


def test_every_op_of_the_normalized_graph_exactly_once():
    plan = plan_of(model(BRANCHES))
    assert {key: op.op_type for key, op in plan.ops.items()} == {
        "h": "MatMul",
        "y": "If",
        "y.then_branch/s": "Relu",
        "y.then_branch/t": "MatMul",
        "y.else_branch/s": "Sigmoid",
        "y.else_branch/t": "Add",
        "z": "Identity",
    }
    assert all(op.why.text and op.why.by for op in plan.ops.values())


def test_kept_and_quantized_share_the_ops_out_between_them():
    plan = plan_of(model(BRANCHES))
    both = {**dict(plan.quantized()), **dict(plan.kept())}
    assert both == dict(plan.ops) and sum(1 for _ in plan.quantized()) == 2


def test_equal_quants_are_listed_once():
    """Two products read `x` and one weight: two Quants, of which each becomes one Q/DQ pair."""
    proto = model("(float[2,8] x, float[8,8] w) => (float[2,8] z) { a = MatMul(x, w) b = MatMul(x, w) z = Add(a, b) }")
    assert [quant.value for quant in plan_of(proto).quants()] == ["x", "w"]


@pytest.mark.parametrize(
    ("slots", "precision"),
    [((0, 1), "fp8"), ((0,), "storage"), ((1,), "storage"), ((2,), "storage"), ((0, 1, 2), "fp8"), ((), "bf16")],
)
def test_what_a_decision_is_to_compute_in(slots, precision):
    inputs = {slot: Quant("x", "e4m3fn", PerTensor(), Scale("dynamic", "amax")) for slot in slots}
    assert Decision("MatMul", "n", "quantize" if slots else "keep", WHY, "bf16", inputs).precision == precision


def test_a_decision_turned_to_keep_quantizes_nothing():
    op = next(op for _, op in plan_of(model(BRANCHES)).quantized())
    kept = op.kept(Reason("FG212", "calibration data", "not finite"))
    assert (kept.do, kept.inputs, kept.why.code, kept.op_type) == ("keep", {}, "FG212", op.op_type)
