"""Rounding for the sums that a weight makes: against brute force, against nearest, and the least-squares answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph import formats
from fp8graph.numerics import cast, rounding
from fp8graph.numerics.moments import Moments

thorough = settings(max_examples=40, deadline=None, derandomize=True)
E4M3 = formats.get("e4m3fn")
UNIT = 2.0**-14


def operand(rows: int, columns: int, seed: int = 0, lost: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Rows as they will be and as they were, of columns that depend on each other."""
    draw = np.random.default_rng(seed)
    mixed = draw.standard_normal((columns, columns)) + 2 * draw.standard_normal((1, columns))
    original = draw.standard_normal((rows, columns)) @ mixed / 4
    return original + lost * draw.standard_normal(original.shape), original


def moments(planned: np.ndarray, original: np.ndarray) -> Moments:
    return Moments.of(planned[None], original[None], UNIT)


def to_eighths(columns: np.ndarray, at: slice) -> np.ndarray:
    return np.asarray(np.rint(columns * 8) / 8, np.float32)


def to_fp8(columns: np.ndarray, at: slice) -> np.ndarray:
    return cast.decode(cast.encode(columns, E4M3, np.float32(1 / 64)), E4M3, np.float32(1 / 64))


def squares(weight: np.ndarray, rounded: np.ndarray, planned: np.ndarray, original: np.ndarray) -> float:
    """How far the sums lie apart, over the rows."""
    return float(np.square(original @ weight.T - planned @ rounded.T).sum())


@thorough
@given(seed=st.integers(0, 999))
def test_the_loss_is_the_squared_error_of_the_sums_less_what_no_weight_changes(seed):
    planned, original = operand(50, 5, seed)
    planned, original = (np.rint(side / UNIT) * UNIT for side in (planned, original))
    draw = np.random.default_rng(seed)
    weight, rounded = draw.standard_normal((2, 3, 5)).astype(np.float32)
    held = moments(planned, original)
    found = (rounding.loss(weight, rounded, held, 0) - rounding.loss(weight, weight, held, 0)) * UNIT**2
    wanted = squares(weight, rounded, planned, original) - squares(weight, weight, planned, original)
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("ridge", [1e-6, 0.05, 3.0])
def test_the_answer_solves_the_ridge_problem(ridge):
    planned, original = operand(200, 6)
    weight = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    held = moments(planned, original)
    found = rounding.answered(weight, held, 0, ridge)
    gram = held.gram[0] * UNIT**2
    strength = ridge * np.trace(gram) / len(gram)
    rows = np.vstack([planned, np.sqrt(strength) * np.eye(6)])
    for channel, exact in enumerate(weight):
        ends = np.concatenate([original @ exact, np.sqrt(strength) * exact])
        wanted = np.linalg.lstsq(rows, ends, rcond=None)[0]
        assert np.allclose(found[channel], wanted, rtol=1e-3, atol=1e-4)


def test_where_nothing_is_lost_the_answer_is_the_weight_and_without_an_operand_too():
    planned, _ = operand(50, 5)
    weight = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    assert np.array_equal(rounding.answered(weight, moments(planned, planned), 0, 0.05), weight)
    assert np.array_equal(rounding.answered(weight, moments(planned * 0, planned), 0, 0.05), weight)


def test_a_column_that_is_never_filled_stays():
    planned, original = operand(100, 5)
    planned[:, 2] = original[:, 2] = 0
    weight = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    held = moments(planned, original)
    assert np.array_equal(rounding.answered(weight, held, 0, 0.05)[:, 2], weight[:, 2])
    assert np.array_equal(
        rounding.compensated(weight, held.gram[0], to_eighths, 0.01)[:, 2], to_eighths(weight, slice(0))[:, 2]
    )


@pytest.mark.parametrize("seed", range(6))
def test_of_a_small_weight_it_comes_near_the_best_of_all_roundings(seed):
    """Down or up in each of five columns: all 3^5 that are one step from nearest."""
    planned, _ = operand(300, 5, seed)
    weight = np.random.default_rng(seed).standard_normal((1, 5)).astype(np.float32)
    gram = moments(planned, planned).gram[0]

    def cost(rounded: np.ndarray) -> float:
        gap = (weight - rounded).astype(np.float64)[0]
        return float(gap @ gram @ gap)

    nearest = to_eighths(weight, slice(0))
    steps = itertools.product((-0.125, 0.0, 0.125), repeat=5)
    best = min(cost(nearest + np.array(each, np.float32)) for each in steps)
    found = cost(rounding.compensated(weight, gram, to_eighths, 1e-6))
    assert best * 0.999 <= found <= cost(nearest)
    # of the way from nearest to the best it goes at least half
    assert found <= (cost(nearest) + best) / 2 + 1e-9 * cost(nearest)


def test_where_columns_do_not_depend_on_each_other_it_is_nearest():
    planned = np.diag([3.0, 1.0, 2.0, 5.0])
    weight = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    gram = moments(planned, planned).gram[0]
    assert np.array_equal(rounding.compensated(weight, gram, to_fp8, 0.01), to_fp8(weight, slice(0)))


@thorough
@given(seed=st.integers(0, 999), columns=st.integers(1, 300))
def test_each_column_is_rounded_once_and_stays_where_it_is(seed, columns):
    planned, _ = operand(64, columns, seed)
    weight = np.random.default_rng(seed).standard_normal((2, columns)).astype(np.float32)
    seen: list[int] = []

    def rounded(part: np.ndarray, at: slice) -> np.ndarray:
        assert part.dtype == np.float32 and part.shape == (2, at.stop - at.start)
        seen.extend(range(at.start, at.stop))
        return to_fp8(part, at)

    found = rounding.compensated(weight, moments(planned, planned).gram[0], rounded, 0.01)
    assert sorted(seen) == list(range(columns))
    assert found.dtype == np.float32 and np.array_equal(to_fp8(found, slice(0)), found)


@pytest.mark.parametrize("columns", [32, 200])
def test_answered_and_compensated_together_lose_less_than_nearest(columns):
    planned, original = operand(2000, columns, lost=0.2)
    weight = np.random.default_rng(3).standard_normal((8, columns)).astype(np.float32) / 8
    held = moments(planned, original)
    nearest = to_fp8(weight, slice(0))
    wanted = rounding.answered(weight, held, 0, 0.05)
    found = rounding.compensated(wanted, held.gram[0], to_fp8, 0.01)
    assert rounding.loss(weight, found, held, 0) < rounding.loss(weight, nearest, held, 0)
    assert squares(weight, found, planned, original) < 0.8 * squares(weight, nearest, planned, original)


def test_what_a_column_loses_is_made_good_by_columns_far_behind_it():
    """200 columns that are rounded, and 200 that see the same operand, weaker, and take any value."""
    planned = np.random.default_rng(0).standard_normal((1000, 200))
    planned = np.hstack([planned, planned / 2])
    weight = np.random.default_rng(1).standard_normal((2, 400)).astype(np.float32)

    def rounded(part: np.ndarray, at: slice) -> np.ndarray:
        return to_eighths(part, at) if at.start < 200 else part

    gram = moments(planned, planned).gram[0]
    found = rounding.compensated(weight, gram, rounded, 1e-6)
    nearest = np.hstack([to_eighths(weight[:, :200], slice(0)), weight[:, 200:]])
    left, plain = (float(np.square(planned @ (weight - each).T).sum()) for each in (found, nearest))
    assert left < 1e-4 * plain
