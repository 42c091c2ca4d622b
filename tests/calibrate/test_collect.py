"""Observing tensors: exact, mergeable, the same whatever the number of workers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fp8graph
from fp8graph.base.canon import pretty
from fp8graph.base.findings import Notes
from fp8graph.calibrate import collect as collecting
from fp8graph.calibrate.samples import open_samples
from fp8graph.data.plan import Profile
from fp8graph.graph.load import load
from fp8graph.graph.stages import Normalized
from fp8graph.numerics.ranges import Ranges, Stat
from tests.small import BRANCHES, feeds, model

singles = st.floats(allow_nan=False, allow_infinity=False, width=32)
pairs = st.tuples(singles, singles).map(sorted)
stats = st.one_of(
    st.builds(Stat, st.integers(0, 9), st.integers(1, 3)),
    st.just(Stat()),
    st.builds(lambda count, odd, ends: Stat(count, odd, *ends), st.integers(1, 99), st.integers(0, 3), pairs),
)
shapes = st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.integers(1, 5), max_size=3)
ranges = st.builds(
    Ranges,
    st.just("sha256:0"),
    st.sampled_from(["", "a.npz", "b.npz", "c.npz"]),
    st.integers(0, 9),
    st.dictionaries(st.sampled_from("xz"), shapes, max_size=2),
    st.dictionaries(st.sampled_from("abc"), stats, max_size=3),
)
thorough = settings(max_examples=80, deadline=None, derandomize=True)
EMPTY = Ranges("sha256:0", "")


def spelt(found: Ranges) -> str:
    return pretty(found.to_json())


@thorough
@given(a=ranges, b=ranges, c=ranges)
def test_merging_is_associative(a: Ranges, b: Ranges, c: Ranges):
    assert spelt(a.merge(b).merge(c)) == spelt(a.merge(b.merge(c)))


@thorough
@given(a=ranges, b=ranges)
def test_merging_is_commutative(a: Ranges, b: Ranges):
    assert spelt(a.merge(b)) == spelt(b.merge(a))


@thorough
@given(a=ranges)
def test_merging_has_an_identity(a: Ranges):
    assert spelt(a.merge(EMPTY)) == spelt(EMPTY.merge(a)) == spelt(a)


@thorough
@given(a=ranges)
def test_ranges_come_back_from_json_as_they_were(a: Ranges):
    again = Ranges.from_json(json.loads(spelt(a)))
    assert again == a and spelt(again) == spelt(a)


def test_ranges_of_two_models_do_not_merge():
    with pytest.raises(ValueError, match="two models"):
        EMPTY.merge(Ranges("sha256:1", ""))


@thorough
@given(st.lists(singles, min_size=1, max_size=40), st.integers(1, 7))
def test_parts_merged_equal_the_whole(numbers: list[float], parts: int):
    array = np.array(numbers, np.float32)
    merged = Stat()
    for part in np.array_split(array, parts):
        merged = merged.merge(Stat.of(part))
    assert merged == Stat.of(array)
    assert merged.amax == float(np.abs(array).max())


@pytest.mark.parametrize(
    ("array", "stat", "amax"),
    [
        ([1.0, -2.0, 0.5], Stat(3, 0, -2.0, 1.0), 2.0),
        ([3.0, 2.0], Stat(2, 0, 2.0, 3.0), 3.0),
        ([-3.0, -2.0], Stat(2, 0, -3.0, -2.0), 3.0),
        ([0.0, -0.0], Stat(2, 0, 0.0, 0.0), 0.0),
        ([], Stat(), None),
        ([1.0, math.nan], Stat(2, 1), None),
        ([1.0, math.inf], Stat(2, 1), None),
        ([1.0, -math.inf], Stat(2, 1), None),
    ],
)
def test_a_statistic_of_an_array(array, stat, amax):
    found = Stat.of(np.array(array, np.float32))
    assert found == stat and found.amax == amax


TEXT = """(float[n,32] x, float[32,32] w_a, float[32,32] w_b) => (float[n,32] y) {
    h = MatMul(x, w_a)
    r = Relu(h)
    y = MatMul(r, w_b)
}"""


def observed(proto: onnx.ModelProto, names: list[str], data: Any) -> Ranges:
    source = load(proto)
    samples = open_samples(data, source.model, Notes())
    return collecting.collect(Normalized(source.model, source, ""), names, samples, "sha256:0")


def test_what_is_observed_is_what_the_model_computes():
    proto, data = model(TEXT), feeds(model(TEXT), 5)
    found = observed(proto, ["x", "h", "r"], data)
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    inner = np.concatenate([feed["x"] @ weight for feed in data])
    assert found.values["x"] == Stat.of(np.concatenate([feed["x"] for feed in data]))
    assert found.values["h"].count == inner.size
    assert found.values["h"].amax == pytest.approx(float(np.abs(inner).max()), rel=1e-6)
    assert found.values["r"].min == 0.0
    assert found.samples == 5 and found.shapes == {"x": {(2, 32): 5}}


def test_the_same_ranges_whatever_the_number_of_workers(monkeypatch):
    proto, data = model(TEXT), feeds(model(TEXT), 23)
    found = []
    for workers in (1, 2, 3, 8):
        monkeypatch.setattr(collecting, "_WORKERS", workers)
        found.append(spelt(observed(proto, ["x", "h", "r"], data)))
    assert len(set(found)) == 1


def test_seven_parts_merged_equal_one_run():
    proto, data = model(TEXT), feeds(model(TEXT), 21)
    whole = observed(proto, ["x", "h", "r"], data)
    merged = Ranges("sha256:0", "feeds")
    for part in range(7):
        merged = merged.merge(observed(proto, ["x", "h", "r"], data[part::7]))
    assert spelt(merged) == spelt(whole)


def test_sets_of_equal_size_in_any_order_give_equal_ranges():
    proto, data = model(TEXT), feeds(model(TEXT), 9)
    assert spelt(observed(proto, ["h"], data)) == spelt(observed(proto, ["h"], data[::-1]))


def test_a_branch_that_was_not_taken_has_no_range():
    proto = model(BRANCHES)
    data = [feed | {"c": np.array([True])} for feed in feeds(proto)]
    found = observed(proto, ["y.then_branch/s", "y.else_branch/s"], data).values
    amax = max(float(feed["x"].max()) for feed in data)
    assert found["y.then_branch/s"].amax == amax
    assert found.get("y.else_branch/s", Stat()).count == 0
    plan = fp8graph.optimize(proto, data=data, plan_only=True).plan
    assert plan.ops["y.then_branch/t"].do == "quantize"
    assert (plan.ops["y.else_branch/t"].do, plan.ops["y.else_branch/t"].why.code) == ("keep", "FG213")


def test_profiles_hold_the_least_the_usual_and_the_largest_shape():
    work = load(model(TEXT)).model
    sizes = [3, 1, 2, 2, 5, 2]
    samples = open_samples([{"x": np.zeros((size, 32), np.float32)} for size in sizes], work, Notes())
    assert collecting.profiles(samples) == {"x": Profile((1, 32), (2, 32), (5, 32))}


def test_profiles_are_taken_axis_by_axis():
    work = load(model("(float[n,m] x) => (float[n,m] y) { y = Relu(x) }")).model
    shapes = [(1, 9), (4, 2), (2, 2)]
    samples = open_samples([{"x": np.zeros(shape, np.float32)} for shape in shapes], work, Notes())
    assert collecting.profiles(samples) == {"x": Profile((1, 2), (1, 9), (4, 9))}


def test_the_shapes_that_calibration_saw_are_those_of_the_plan(digits, calibration):
    plan = fp8graph.optimize(digits / "cnn.onnx", data=calibration, batch=16, plan_only=True).plan
    assert plan.shapes == {"image": Profile(*([(16, 1, 8, 8)] * 3))}


def test_calibrating_writes_ranges_that_optimize_takes(tmp_path, digits, calibration):
    model_path, out = digits / "cnn.onnx", tmp_path / "r.json"
    made = fp8graph.calibrate(model_path, data=calibration, output=out, samples=8)
    assert [file.path for file in made.files] == [str(out)] and made.ranges.samples == 8
    assert Ranges.from_json(json.loads(out.read_text())) == made.ranges
    assert made.ranges.source.startswith("sha256:") and made.ranges.data == "calibration.npz"


def test_of_an_input_that_is_read_as_a_shape_the_values_make_the_profile():
    samples = [{"n": np.array(3, np.int64)}, {"n": np.array(5, np.int64)}, {"n": np.array(3, np.int64)}]
    assert collecting.profiles(samples, {"n"}) == {"n": Profile((3,), (3,), (5,))}
