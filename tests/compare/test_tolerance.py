"""Bounds as Polygraphy holds them: sample by sample, an element within either tolerance, or a statistic."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.compare.tolerance import Judge, Tolerance
from fp8graph.data.comparison import Comparison, OutputDifference
from tests.small import feeds, model, refused

A = np.array([1.0, 10.0, 100.0, 0.0], np.float32)
NAN, INF = math.nan, math.inf


def holds(left, right, **bounds):
    judge = Judge(
        Tolerance(**{name: value if isinstance(value, dict) else {"": value} for name, value in bounds.items()})
    )
    judge.add(0, "y", np.asarray(left), np.asarray(right))
    return not judge.missed(Comparison({"y": OutputDifference(None, None, None)}, 1))


@pytest.mark.parametrize(
    ("left", "right", "bounds", "close"),
    [
        # elemwise: within one of the two is enough, and the one that is left out is 1e-5
        (A, A + np.float32(0.5), {"atol": 0.5}, True),
        (A, A + np.float32(0.5), {"atol": 0.4}, False),
        (A, A + np.float32(0.5), {"rtol": 0.4}, False),  # zero in A, 0.5 in B: relative 1
        (A, A * np.float32(1.01), {"rtol": 0.011}, True),
        (A, A * np.float32(1.01), {"rtol": 0.009}, False),
        (A, A * np.float32(1.01), {"rtol": 0.009, "atol": 1.1}, True),
        (A, A * np.float32(1.01), {"atol": 0.2, "rtol": 0.011}, True),
        (1e6, np.float32(1e6 + 1), {"atol": 0.1}, True),
        (1.0, 1.0 + 5e-6, {"rtol": 0.0}, True),
        (1.0, 1.0 + 5e-6, {"rtol": 0.0, "atol": 0.0}, False),
        # relative to B, where a zero is a tiny number
        (2.0, 1.0, {"rtol": 0.9, "atol": 0.0}, False),
        (1.0, 2.0, {"rtol": 0.5, "atol": 0.0}, True),
        (0.1, 0.0, {"rtol": 1e9, "atol": 0.0}, False),
        # a statistic of all elements, against each tolerance
        (A, A + np.float32(0.5), {"atol": 0.5, "stat": "max"}, True),
        ([0, 0, 0, 4.0], [0.0] * 4, {"atol": 1.0, "stat": "mean"}, True),
        ([0, 0, 0, 4.0], [0.0] * 4, {"atol": 0.9, "stat": "mean"}, False),
        ([0, 0, 0, 4.0], [0.0] * 4, {"atol": 0.0, "stat": "median"}, True),
        ([0, 0, 0, 4.0], [0.0] * 4, {"atol": 3.9, "stat": "max"}, False),
        ([0, 0, 0, 4.0], [0.0] * 4, {"atol": 0.0, "stat": "quantile", "quantile": 0.6}, True),
        ([0, 0, 0, 4.0], [0.0] * 4, {"atol": 3.0, "stat": "quantile"}, False),
        (A, A * np.float32(1.5), {"stat": "max"}, False),
        (A, A, {"stat": "elemwise"}, True),
        # what is not finite is a difference, unless both have it
        ([NAN, INF, -INF], [NAN, INF, -INF], {"atol": 0.0, "rtol": 0.0}, True),
        ([INF], [-INF], {"atol": 1e30, "rtol": 1e30}, False),
        ([1.0], [NAN], {"atol": 1e30, "rtol": 1e30}, False),
        ([1.0, 1.0], [1.0, INF], {"atol": 1e30, "rtol": 1e30, "stat": "mean"}, False),
        # other types
        ([1, 2], [1, 3], {"atol": 1}, True),
        ([1, 2], [1, 4], {"atol": 1}, False),
        ([True, False], [True, True], {"atol": 0.5}, False),
        (["a", "b"], ["a", "b"], {"atol": 0.0}, True),
        (["a", "b"], ["a", "c"], {"atol": 100.0}, False),
        ([], [], {"atol": 0.0}, True),
        # no bound, and bounds of others
        (A, -A, {}, True),
        (A, -A, {"atol": {"z": 0.0}}, True),
        (A, -A, {"atol": {"": 1e9, "y": 0.1}}, False),
        (A, -A, {"atol": {"": 0.1, "y": 1e9}}, True),
    ],
)  # fmt: skip
def test_two_outputs_are_close_where_polygraphy_says_so(left, right, bounds, close):
    assert holds(left, right, **bounds) is close


@pytest.mark.parametrize(
    ("bounds", "code", "says"),
    [
        ({"stat": {"": "mode"}}, "FG101", "did you mean 'mean'?"),
        ({"rtol": {"": -1.0}}, "FG100", "--rtol cannot be -1"),
        ({"quantile": {"y": 1.5}}, "FG100", "it is from 0 to 1"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(bounds, code, says):
    with refused(UsageError, code, says):
        Tolerance(**bounds)


ONE = model("""(float[n,8] x, float[8,8] w) => (float[n,8] y, int64[n] i) {
    y = MatMul(x, w)
    i = ArgMax <axis = 1, keepdims = 0> (y)
}""")
OTHER = model("""(float[n,8] x, float[8,8] w) => (float[n,8] y, int64[n] i) {
    c = Constant <value_float = 1.01> ()
    z = MatMul(x, w)
    y = Mul(z, c)
    i = ArgMin <axis = 1, keepdims = 0> (z)
}""")


@pytest.mark.parametrize(
    ("bounds", "missed"),
    [
        ({}, []),
        ({"min_sqnr": {"y": 39}}, []),
        ({"min_sqnr": {"y": 41}}, ["y: SQNR 40.00 dB is below 41 dB"]),
        ({"min_sqnr": 39}, ["i: differs and has no SQNR"]),
        ({"min_sqnr": 39, "atol": {"i": 7}}, []),
        ({"rtol": {"y": 0.02}}, []),
        ({"rtol": {"y": 0.001}}, ["y: 64 elements differ by up to"]),
        ({"rtol": {"y": 0.001}, "check_error_stat": "mean", "atol": {"i": 9}}, ["y: mean difference"]),
        ({"atol": {"i": 0}}, ["i: 8 elements"]),
    ],
)
def test_compare_says_what_does_not_hold(bounds, missed):
    found = fp8graph.compare(ONE, OTHER, data=feeds(ONE, 4), **bounds)
    assert len(found.missed) == len(missed) and all(map(str.startswith, found.missed, missed)), found.missed
    assert Comparison.from_json(found.to_json()) == found


def test_each_sample_is_held_to_the_bound_and_the_first_that_misses_is_named():
    judge = Judge(Tolerance(atol={"": 1.0}, stat={"": "mean"}))
    for sample, by in enumerate((0.0, 2.0, 0.0, 3.0)):
        judge.add(sample, "y", np.zeros(4), np.full(4, by))
    (said,) = judge.missed(Comparison({"y": OutputDifference(None, None, None)}, 4))
    assert said == "y: mean difference 3, relative 1, above atol 1 and rtol 1e-05, in 2 samples, first 1"


def test_texts_that_differ_are_counted():
    judge = Judge(Tolerance(atol={"": 100.0}))
    judge.add(0, "y", np.array(["a", "b", "c"]), np.array(["a", "x", "c"]))
    (said,) = judge.missed(Comparison({"y": OutputDifference(None, None, None)}, 1))
    assert said.startswith("y: 1 elements differ"), said


def test_a_bound_of_an_unknown_output_is_refused_before_anything_runs():
    with refused(UsageError, "FG101", "--rtol", "no output 'z'"):
        fp8graph.compare(ONE, OTHER, data=feeds(ONE, 1), rtol={"z": 1.0})
