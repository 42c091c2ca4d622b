"""Error sums: numbers that can be worked out by hand, streaming, and what is not finite."""

from __future__ import annotations

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from fp8graph.numerics.error import ErrorSums


def sums(*pairs) -> ErrorSums:
    total = ErrorSums()
    for reference, candidate in pairs:
        total.add(np.asarray(reference), np.asarray(candidate))
    return total


def test_worked_example():
    total = sums(([3.0, 4.0], [3.0, 4.5]))
    assert total.sqnr_db == pytest.approx(20)  # 25 to 0.25
    assert total.cosine == pytest.approx(27 / (5 * math.sqrt(29.25)))
    assert total.max_abs == 0.5
    assert (total.count, total.new_nonfinite, total.lost_nonfinite) == (2, 0, 0)


def test_nothing_and_equal_outputs_have_no_sqnr():
    for total in (ErrorSums(), sums((np.zeros((3, 0)), np.zeros((3, 0)))), sums(([1.0, 2.0], [1.0, 2.0]))):
        assert total.sqnr_db is None
        assert total.max_abs == 0
    assert ErrorSums().cosine is None
    assert sums(([1.0, 2.0], [1.0, 2.0])).cosine == pytest.approx(1)
    assert sums(([0.0, -0.0], [-0.0, 0.0])).sqnr_db is None


def test_a_zero_reference_has_no_signal():
    total = sums(([0.0, 0.0], [0.0, 1e-3]))
    assert total.sqnr_db == -math.inf
    assert total.cosine is None


def test_cosine_looks_at_direction_only():
    values = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    assert sums((values, 2 * values)).cosine == pytest.approx(1)
    assert sums((values, -values)).cosine == pytest.approx(-1)
    assert -1 <= sums((values, -values)).cosine <= sums((values, values * 3)).cosine <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8, bool], ids=str)
def test_streaming_in_parts_is_the_whole_in_float64(dtype):
    rng = np.random.default_rng(2)
    reference = (5 * rng.standard_normal((900, 500))).astype(dtype)
    candidate = (reference.astype(np.float32) + rng.standard_normal(reference.shape, np.float32)).astype(np.float32)
    left, right = reference.astype(np.float64), candidate.astype(np.float64)
    parts = [slice(0, 1), slice(1, 400), slice(400, 400), slice(400, 900)]
    for total in (sums((reference, candidate)), sums(*((reference[part], candidate[part]) for part in parts))):
        assert total.sqnr_db == pytest.approx(10 * math.log10((left**2).sum() / ((left - right) ** 2).sum()), abs=1e-9)
        assert total.cosine == pytest.approx((left * right).sum() / math.sqrt((left**2).sum() * (right**2).sum()))
        assert total.max_abs == np.abs(left - right).max()
        assert total.count == reference.size


def test_differences_are_taken_in_float64():
    assert sums((np.float32([1e8]), np.float32([1e8 + 8]))).max_abs == 8
    assert sums((np.float16([60000]), np.float16([-60000]))).max_abs == 120000
    assert sums((np.uint8([1]), np.uint8([2]))).max_abs == 1
    assert sums((np.float32([3e38, -3e38]), np.float32([3e38, 3e38]))).sqnr_db == pytest.approx(10 * math.log10(0.5))


def test_any_shape_and_strides():
    values = np.random.default_rng(3).standard_normal((40, 50, 60)).astype(np.float32)
    assert sums((values.T, values.T + 1)).sqnr_db == pytest.approx(sums((values, values + 1)).sqnr_db)
    assert sums((np.float32(2), np.float32(1))).max_abs == 1


def test_values_that_turned_into_nan_or_infinity_are_an_infinite_error():
    for bad in (np.nan, np.inf, -np.inf):
        total = sums(([1.0, 2.0, 3.0], [1.0, bad, 3.0]), ([1.0], [1.0]))
        assert (total.new_nonfinite, total.lost_nonfinite, total.count) == (1, 0, 4)
        assert (total.sqnr_db, total.max_abs) == (-math.inf, math.inf)
        assert total.cosine == pytest.approx(1)


def test_infinities_and_nan_that_were_in_the_reference_count_only_where_they_changed():
    same = sums(([np.inf, -np.inf, np.nan, 3.0, 4.0], [np.inf, -np.inf, -np.nan, 3.0, 4.5]))
    assert (same.new_nonfinite, same.lost_nonfinite) == (0, 0)
    assert (same.sqnr_db, same.max_abs) == (pytest.approx(20), 0.5)
    lost = sums(([np.inf, -np.inf, np.nan, np.nan], [np.nan, np.inf, np.inf, 1.0]))
    assert (lost.new_nonfinite, lost.lost_nonfinite) == (0, 4)
    assert (lost.sqnr_db, lost.max_abs) == (-math.inf, math.inf)


def test_signalling_nan_of_16_bits_does_not_warn():
    signalling = np.array([0x7C01], np.uint16).view(np.float16)
    assert sums((signalling, signalling)).lost_nonfinite == 0


def test_arrays_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="shape"):
        ErrorSums().add(np.zeros(3), np.zeros((1, 3)))
    with pytest.raises(TypeError, match="real"):
        ErrorSums().add(np.zeros(3, complex), np.zeros(3))


def test_memory_does_not_grow_with_the_arrays():
    values = np.ones((8, 1 << 20), np.float16)
    tracemalloc.start()
    ErrorSums().add(values, values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
