"""The rows that a product sums over, held against loops, and against the products themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph.numerics.windows import Window

thorough = settings(max_examples=80, deadline=None, derandomize=True)


@st.composite
def windows(draw: st.DrawFn) -> tuple[Window, tuple[int, ...]]:
    """A Conv's window and the shape of an activation that it fits into at least once."""
    rank = draw(st.integers(1, 3))
    several = lambda low, high, count=rank: tuple(draw(st.integers(low, high)) for _ in range(count))  # noqa: E731
    kernel, strides, dilations, pads = several(1, 3), several(1, 3), several(1, 2), several(0, 2, 2 * rank)
    groups = draw(st.integers(1, 3))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    least = [max(1, reach[i] - pads[i] - pads[i + rank]) for i in range(rank)]
    sizes = tuple(draw(st.integers(low, low + 3)) for low in least)
    batch, each = several(1, 2, 2)
    return Window(1, kernel, strides, dilations, pads, groups), (batch, each * groups, *sizes)


def by_hand(window: Window, x: np.ndarray) -> np.ndarray:
    """Rows of a Conv, one number after the other."""
    rank, channels = len(window.kernel), x.shape[1] // window.groups

    def places(i: int) -> range:
        last = x.shape[2 + i] + window.pads[i + rank] - (window.kernel[i] - 1) * window.dilations[i] - 1
        return range(-window.pads[i], last + 1, window.strides[i])

    rows: list[list[list[float]]] = [[] for _ in range(window.groups)]
    for image in x:
        for at in itertools.product(*(places(i) for i in range(rank))):
            for group in range(window.groups):
                row = []
                for channel in range(group * channels, (group + 1) * channels):
                    for offset in itertools.product(*map(range, window.kernel)):
                        spot = [at[i] + offset[i] * window.dilations[i] for i in range(rank)]
                        inside = all(0 <= spot[i] < x.shape[2 + i] for i in range(rank))
                        row.append(float(image[(channel, *spot)]) if inside else 0.0)
                rows[group].append(row)
    return np.array(rows, x.dtype)


@thorough
@given(case=windows(), seed=st.integers(0, 99))
def test_rows_of_a_convolution_are_those_of_a_loop(case, seed):
    window, shape = case
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    wanted = by_hand(window, x)
    assert np.array_equal(window.rows(x), wanted)
    assert window.count(shape) == wanted.shape[1]


@thorough
@given(case=windows(), data=st.data())
def test_rows_that_are_asked_for_are_those_of_all_in_the_order_asked(case, data):
    window, shape = case
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    every = window.rows(x)
    at = np.array(data.draw(st.lists(st.integers(0, every.shape[1] - 1), max_size=6)), np.int64)
    assert np.array_equal(window.rows(x, at), every[:, at])


@pytest.mark.parametrize(
    ("shape", "axis"), [((5,), -1), ((4, 5), -1), ((4, 5), -2), ((2, 3, 4, 5), -1), ((2, 3, 4), -2)]
)
def test_rows_of_a_matrix_run_along_the_axis_that_is_summed_over(shape, axis):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    others = [range(size) for index, size in enumerate(shape) if index != axis % len(shape)]
    wanted = []
    for place in itertools.product(*others):
        index: list[int | slice] = list(place)
        index.insert(axis % len(shape), slice(None))
        wanted.append(x[tuple(index)])
    window = Window(axis)
    assert np.array_equal(window.rows(x), np.stack(wanted)[None])
    assert window.count(shape) == len(wanted)
    assert np.array_equal(window.rows(x, np.array([0])), np.stack(wanted)[None, :1])


def test_a_window_that_does_not_fit_has_no_rows():
    window = Window(1, (3, 3), (1, 1), (1, 1), (0, 0, 0, 0))
    assert window.count((2, 1, 2, 5)) == 0
