"""Counts by the top bits: exact, mergeable in any order, and what they tell of the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph.numerics.histogram import BINS, Histogram
from fp8graph.numerics.ranges import Need, Peaks, Stat, joined

thorough = settings(max_examples=80, deadline=None, derandomize=True)
patterns = st.lists(st.integers(0, 2**32 - 1), max_size=40).map(lambda bits: np.array(bits, np.uint32).view(np.float32))
RNG = np.random.default_rng(0)


def counted(array: np.ndarray) -> Histogram:
    """By hand, one value after the other."""
    counts, zeros, nans = np.zeros(BINS, np.int64), 0, 0
    for bits, value in zip(array.reshape(-1).view(np.uint32), array.reshape(-1), strict=True):
        counts[int(bits) >> 19] += 1
        zeros, nans = zeros + bool(value == 0), nans + bool(np.isnan(value))
    return Histogram(counts, zeros, nans)


@thorough
@given(array=patterns)
def test_any_bit_patterns_are_counted_by_their_top_bits(array):
    found = Histogram.of(array)
    assert found == counted(array)
    assert found.infinities == int(np.isinf(array).sum())


@thorough
@given(parts=st.lists(patterns, max_size=5), order=st.randoms(use_true_random=False))
def test_parts_in_any_order_add_up_to_the_whole(parts, order):
    whole = Stat.of(np.concatenate([*parts, np.zeros(0, np.float32)]), histogram=True, axes=(0,))
    order.shuffle(parts)
    merged = Stat()
    for part in parts:
        merged = merged.merge(Stat.of(part, histogram=True))
    assert merged.count == whole.count and merged.histogram == whole.histogram
    if not whole.nonfinite and whole.count:
        assert (merged.min, merged.max) == (whole.min, whole.max)


@thorough
@given(st.tuples(patterns, patterns, patterns))
def test_statistics_of_any_kind_merge_associatively(parts):
    a, b, c = (Stat.of(part, histogram=index != 1, axes=(0,)) for index, part in enumerate(parts))
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) and a.merge(b) == b.merge(a)
    assert a.merge(Stat()) == Stat().merge(a) == a


def test_the_least_of_zeros_has_no_sign():
    both = [Stat.of(np.array(pair, np.float32)) for pair in ([0.0, -0.0], [-0.0, 0.0], [-0.0, -0.0])]
    assert all(str(stat.min) == str(stat.max) == "0.0" for stat in both)


def test_magnitudes_leave_signs_and_zeros_out_and_end_at_the_largest():
    seen = Histogram.of(np.array([0.0, -0.0, 1.0, -1.0, 1.0625, 3e38, np.inf, np.nan], np.float32)).magnitudes()
    assert seen.zeros == 2 and list(seen.counts) == [2, 1, 1]
    assert list(seen.low[:2]) == [1.0, 1.0625] and seen.high[0] == 1.0625
    assert seen.within(3e38).high[-1] == 3e38
    tiny = Histogram.of(np.array([1e-45, 0.0], np.float32)).magnitudes()
    assert tiny.zeros == 1 and list(tiny.counts) == [1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_peaks_are_the_largest_values_along_an_axis(axis):
    array = RNG.standard_normal((3, 4, 5)).astype(np.float32)
    stat = Stat.of(array, axes=(axis,))
    others = tuple(index for index in range(3) if index != axis)
    assert np.array_equal(stat.channels[axis].values, np.abs(array).max(others))
    more = stat.merge(Stat.of(array * 2, axes=(axis,)))
    assert np.array_equal(more.channels[axis].values, np.abs(array).max(others) * 2)


def test_an_axis_that_changes_its_length_is_not_told_and_a_nan_stays_in_its_channel():
    array = np.ones((2, 3), np.float32)
    assert Stat.of(array, axes=(1,)).merge(Stat.of(array[:, :2], axes=(1,))).channels == {}
    assert Peaks.of(array, 2) is None
    array[0, 1] = np.nan
    assert np.array_equal(Stat.of(array, axes=(1,)).channels[1].values, [1, np.nan, 1], equal_nan=True)


def test_needs_are_joined_by_tensor_and_the_larger_covers_the_smaller():
    wanted = ["a", Need("b", "range"), Need("a", "histogram"), Need("a", axis=1), Need("a", axis=0), "b"]
    found = joined(wanted)
    assert found == [Need("a", "histogram", 0), Need("a", "histogram", 1), Need("b", "range")]
    assert [need.text for need in found] == ["a:histogram@0", "a:histogram@1", "b:range"]
    stat = Stat.of(np.ones((2, 2), np.float32))
    assert stat.has(Need("a")) and not stat.has(found[0]) and Stat().has(found[0])
    for wrong in ({"stat": "mean"}, {"axis": -1}):
        with pytest.raises(ValueError):
            Need("a", **wrong)


def test_of_a_large_tensor_every_element_is_counted():
    array = RNG.standard_normal(200_003).astype(np.float32)
    assert Histogram.of(array).counts.sum() == array.size
    assert Histogram.of(array) == Histogram.of(array[:70_000]).merge(Histogram.of(array[70_000:]))
    assert Histogram.of(array.reshape(-1, 1)[::-1]) == Histogram.of(array)
