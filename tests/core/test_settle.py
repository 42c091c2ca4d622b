"""Settling fills numbers in, and else only retreats, with a reason."""

from __future__ import annotations

import numpy as np
import pytest

import fp8graph
from fp8graph.data.plan import Plan
from fp8graph.numerics.ranges import Ranges, Stat
from tests.small import TWO, feeds, model, plan_of, refused, why


def seen(**amax: float | Stat) -> Ranges:
    values = {name: stat if isinstance(stat, Stat) else Stat(64, 0, -stat, stat) for name, stat in amax.items()}
    return Ranges("", "made up", 1, {}, values)


def settled(text: str, ranges: Ranges, **asked) -> tuple[Plan, list[tuple[str, str]]]:
    weights = asked.pop("weights", {})
    done = fp8graph.optimize(model(text, **weights), ranges=ranges, plan_only=True, **asked)
    # FG225 is a note of planning, FG240 one of repairs
    return done.plan, [(item.code, item.op) for item in done.findings if item.code not in ("FG225", "FG240")]


@pytest.mark.parametrize("amax", [1.0, 448.0, 0.1, 1e-30, 3.4028234e38, 1e-38, 6.5504e4])
def test_an_observed_scale_is_amax_over_448_in_float32(amax):
    plan, _ = settled(TWO, seen(x=float(np.float32(amax)), r=2.0))
    wanted = max(np.float32(amax) / np.float32(448), np.float32(2.0**-126))
    assert plan.ops["h"].inputs[0].scale.value == float(wanted)
    assert plan.ops["y"].inputs[0].scale.value == float(np.float32(2) / np.float32(448))


@pytest.mark.parametrize(
    ("low", "high", "amax"), [(-3.0, 1.0, 3.0), (-1.0, 3.0, 3.0), (2.0, 3.0, 3.0), (-3.0, -2.0, 3.0)]
)
def test_amax_is_that_of_both_ends(low, high, amax):
    plan, _ = settled(TWO, seen(x=Stat(4, 0, low, high), r=1.0))
    assert plan.ops["h"].inputs[0].scale.value == float(np.float32(amax) / np.float32(448))


def test_a_tensor_that_was_zero_throughout_has_the_scale_one():
    plan, _ = settled(TWO, seen(x=0.0, r=1.0))
    assert plan.ops["h"].inputs[0].scale.value == 1.0 and why(plan, "h")[0] == "quantize"


def test_a_settled_plan_has_no_needs_and_asks_for_no_data():
    plan, _ = settled(TWO, seen(x=1.0, r=1.0))
    assert plan.settled and plan.data == "made up"
    done = fp8graph.optimize(model(TWO), plan=plan)
    assert done.planned == 2 and done.plan == plan
    assert not plan_of(model(TWO)).settled


@pytest.mark.parametrize(
    ("stat", "code", "says"),
    [
        (Stat(64, 1, -1.0, 1.0), "FG212", "'x' held a NaN or an infinity"),
        (Stat(64, 3), "FG212", "'x' held a NaN or an infinity"),
        (Stat(), "FG213", "'x' was never computed"),
    ],
)
def test_an_op_without_a_finite_range_is_kept_and_the_others_are_not(stat, code, says):
    plan, _ = settled(TWO, seen(x=stat, r=1.0))
    assert why(plan, "h") == ("keep", code) and says in plan.ops["h"].why.text
    assert why(plan, "y") == ("quantize", "FG201") and plan.settled


def test_ranges_that_lack_what_the_plan_needs_are_refused_and_no_guess_is_made():
    with refused(fp8graph.UsageError, "FG120", "1 of 2 tensors, first: r"):
        settled(TWO, seen(x=1.0))
    # without these, nobody would know whether fp16 holds them
    with refused(fp8graph.UsageError, "FG120", "3 of 5 tensors, first: h", "calibrate --plan"):
        settled(WIDE, seen(x=1.0, t=1.0), **FP16)


def test_a_plan_made_with_ranges_of_nothing_keeps_everything():
    empty = seen(x=Stat(), r=Stat())
    done = fp8graph.optimize(model(TWO), ranges=empty, plan_only=True)
    assert {why(done.plan, key) for key in "hy"} == {("keep", "FG213")}
    with pytest.raises(fp8graph.UnmetError) as raised:
        fp8graph.optimize(model(TWO), ranges=empty)
    assert raised.value.code == "FG150" and "FG213" in raised.value.why


FP16 = {"high_precision_dtype": "fp16"}
WIDE = """(float[2,32] x, float[32,32] w_a, float[32,32] w_b, float[1] w_s) => (float[2,32] y) {
    h = MatMul(x, w_a)
    r = Mul(h, w_s)
    t = Relu(r)
    y = MatMul(t, w_b)
}"""


def test_a_tensor_that_fp16_cannot_hold_stays_fp32_and_is_noted():
    plan, notes = settled(WIDE, seen(x=1.0, h=1.0, r=65505.0, t=65505.0, y=1.0), **FP16)
    assert {key: op.high for key, op in plan.ops.items()} == {"h": "fp16", "r": "fp32", "t": "fp32", "y": "fp32"}
    assert notes == [("FG214", key) for key in "rty"]
    assert why(plan, "r") == ("keep", "FG214") and "'r' reaches 6.55" in plan.ops["r"].why.text
    assert why(plan, "y") == ("quantize", "FG201")  # FP8 it is all the same: only its type is another


def test_65504_is_held_by_fp16():
    plan, notes = settled(WIDE, seen(x=1.0, h=1.0, r=65504.0, t=65504.0, y=1.0), **FP16)
    assert {op.high for op in plan.ops.values()} == {"fp16"} and notes == []


@pytest.mark.parametrize(
    ("value", "says"), [(7e4, "reaches 7e+04"), (1e-9, "would become zero"), (-7e4, "reaches 7e+04")]
)
def test_a_constant_that_fp16_cannot_hold_keeps_its_op_in_fp32(value, says):
    ranges = seen(x=1.0, h=1.0, r=1.0, t=1.0, y=1.0)
    plan, notes = settled(WIDE, ranges, weights={"w_s": np.array([value])}, **FP16)
    assert {key: op.high for key, op in plan.ops.items()} == {"h": "fp16", "r": "fp32", "t": "fp16", "y": "fp16"}
    assert notes == [("FG214", "r")] and "'w_s'" in plan.ops["r"].why.text and says in plan.ops["r"].why.text


def test_a_large_weight_in_fp8_codes_asks_for_no_fp32_until_its_op_is_kept():
    large = {"w_a": np.full((32, 32), 7e4)}
    names = dict.fromkeys("xhrty", 1.0)
    plan, _ = settled(WIDE, seen(**names), weights=large, **FP16)
    assert (plan.ops["h"].do, plan.ops["h"].high) == ("quantize", "fp16")
    plan, notes = settled(WIDE, seen(**(names | {"x": Stat(4, 1)})), weights=large, **FP16)
    assert (plan.ops["h"].do, plan.ops["h"].high) == ("keep", "fp32") and ("FG214", "h") in notes


def test_bf16_has_the_range_of_fp32():
    plan, notes = settled(WIDE, seen(x=1.0, t=1e30), high_precision_dtype="bf16")
    assert {op.high for op in plan.ops.values()} == {"bf16"} and notes == []


def test_what_data_has_found_is_what_ranges_say(tmp_path):
    proto, data = model(TWO), feeds(model(TWO))
    ranges = fp8graph.calibrate(proto, data=data).ranges
    one = fp8graph.optimize(proto, data=data, plan_only=True).plan
    other = fp8graph.optimize(proto, ranges=ranges, plan_only=True).plan
    assert one.ops == other.ops
    amax = max(float(np.abs(feed["x"]).max()) for feed in data)
    assert one.ops["h"].inputs[0].scale.value == float(np.float32(amax) / np.float32(448))


PLAIN = """(float[2,32] x, float[1] w_s) => (float[2,32] y) {
    r = Mul(x, w_s)
    y = Relu(r)
}"""


@pytest.mark.parametrize("way", ["data", "ranges", "plan and data"])
def test_fp16_is_held_against_data_where_nothing_is_quantized(way):
    proto = model(PLAIN, w_s=np.array([6e4]))
    data = feeds(proto, scale=3.0)
    asked = {"allow_unquantized": True, "plan_only": True}
    if way == "data":
        done = fp8graph.optimize(proto, data=data, **FP16, **asked)
    elif way == "ranges":
        done = fp8graph.optimize(proto, ranges=seen(x=9.0, r=7e4, y=7e4), **FP16, **asked)
    else:
        alone = fp8graph.optimize(proto, **FP16, **asked).plan
        assert {op.high for op in alone.ops.values()} == {"fp16"}
        done = fp8graph.optimize(proto, plan=alone, data=data, allow_unquantized=True)
    assert {op.high for op in done.plan.ops.values()} == {"fp32"}
    assert [finding.op for finding in done.findings if finding.code == "FG214"] == ["r", "y"]


def test_a_plan_that_saw_no_data_says_so_and_is_not_settled_again():
    proto = model(PLAIN, w_s=np.array([6e4]))
    done = fp8graph.optimize(proto, allow_unquantized=True, **FP16)
    assert done.plan.data == "none"
    again = fp8graph.optimize(proto, plan=done.plan, data=feeds(proto, scale=3.0), allow_unquantized=True)
    assert again.plan == done.plan
