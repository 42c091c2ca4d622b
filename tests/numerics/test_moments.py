"""Second moments in whole numbers: exact, however the rows are split, and however many threads add them up."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph import formats
from fp8graph.numerics import cast
from fp8graph.numerics.moments import MOST_ROWS, Moments, beside

thorough = settings(max_examples=60, deadline=None, derandomize=True)
FIELDS = ("gram", "cross", "sums", "lost")
E4M3 = formats.get("e4m3fn")


def pair(rows: int, columns: int, groups: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    f = draw.standard_normal((groups, rows, columns)).astype(np.float32)
    return (f + 0.1 * draw.standard_normal(f.shape)).astype(np.float32), f


def same(one: Moments, other: Moments) -> bool:
    alike = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)
    return alike and (one.unit, one.rows) == (other.unit, other.rows)


def test_they_are_the_sums_of_rationals_where_the_operand_is_in_fp8():
    scale = 0.37
    a = pair(9, 4, 2)[0]
    a = cast.decode(cast.encode(a, E4M3, np.float32(1)), E4M3)
    unit = 1 / 512  # of E4M3 under a scale of 1
    found = Moments.of(a * np.float32(scale), a * np.float32(scale), unit * float(np.float32(scale)))
    for group in range(2):
        exact = [[Fraction(float(value)) for value in row] for row in a[group]]
        for i in range(4):
            assert found.sums[group, i] == sum(row[i] for row in exact) * 512
            for j in range(4):
                assert found.gram[group, i, j] == sum(row[i] * row[j] for row in exact) * 512**2
    assert not found.cross.any() and not found.lost.any()


@thorough
@given(seed=st.integers(0, 99), rows=st.integers(1, 12), columns=st.integers(1, 5))
def test_they_are_the_sums_of_the_rounded_rows(seed, rows, columns):
    a, f = pair(rows, columns, 2, seed)
    unit = 2.0**-10
    found = Moments.of(a, f, unit)
    whole = [[[round(float(value) / unit) for value in row] for row in side[1]] for side in (a, f)]
    for i in range(columns):
        assert found.sums[1, i] == sum(row[i] for row in whole[0])
        assert found.lost[1, i] == sum(y[i] - x[i] for x, y in zip(*whole, strict=True))
        for j in range(columns):
            assert found.gram[1, i, j] == sum(row[i] * row[j] for row in whole[0])
            assert found.cross[1, i, j] == sum(x[i] * (y[j] - x[j]) for x, y in zip(*whole, strict=True))


@thorough
@given(cuts=st.lists(st.integers(0, 40), max_size=6), order=st.randoms(use_true_random=False))
def test_parts_in_any_order_add_up_to_the_whole(cuts, order):
    a, f = pair(40, 6, 2)
    edges = [0, *sorted(cuts), 40]
    parts = [Moments.of(a[:, i:j], f[:, i:j], 1e-4) for i, j in pairwise(edges)]
    order.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert same(merged, Moments.of(a, f, 1e-4))


def test_the_largest_numbers_of_as_many_rows_as_may_be_add_up_exactly():
    # Odd products, as large as they come, and the original at the other end: what is lost reaches beyond 2^53.
    top = 2**18 - 1
    a = np.full((1, MOST_ROWS, 2), float(top))
    f = 1 - a
    f[0, 0] = 3
    found = Moments.of(a, f, 1.0)
    assert found.gram[0, 0, 1] == MOST_ROWS * top**2
    assert found.cross[0, 0, 1] == (MOST_ROWS - 1) * top * (1 - 2 * top) + top * (3 - top)
    assert found.lost[0, 0] == (MOST_ROWS - 1) * (1 - 2 * top) + 3 - top


def test_values_beyond_the_range_are_taken_for_its_end():
    found = Moments.of(np.full((1, 1, 1), 1e9), np.full((1, 1, 1), -1e9), 1.0)
    assert (found.gram.item(), found.sums.item()) == (2**36, 2**18)
    assert (found.cross.item(), found.lost.item()) == (-(2**37), -(2**19))


@pytest.mark.parametrize(
    ("planned", "original"),
    [
        (np.zeros((1, 2, 3)), np.zeros((1, 3, 3))),
        (np.zeros((1, MOST_ROWS + 1, 1)), np.zeros((1, MOST_ROWS + 1, 1))),
        (np.full((1, 1, 1), np.nan), np.zeros((1, 1, 1))),
        (np.zeros((1, 1, 1)), np.full((1, 1, 1), np.inf)),
    ],
)
def test_what_has_no_moments_is_refused(planned, original):
    with pytest.raises(ValueError):
        Moments.of(planned, original, 1.0)


def test_moments_of_two_operands_are_not_added():
    a, f = pair(4, 3)
    with pytest.raises(ValueError):
        Moments.of(a, f, 1.0).merge(Moments.of(a, f, 2.0))
    with pytest.raises(ValueError):
        Moments.of(a, f, 1.0).merge(Moments.of(a[..., :2], f[..., :2], 1.0))


CHILD = """
import hashlib, numpy as np
from fp8graph.numerics.moments import Moments
a, f = (np.random.default_rng(seed).standard_normal((1, 4096, 96)).astype(np.float32) for seed in (1, 2))
found = Moments.of(a, f, 2.0**-16)
parts = [getattr(found, name).tobytes() for name in ("gram", "cross", "sums", "lost")]
print(hashlib.sha256(b"".join(parts)).hexdigest())
"""


def test_any_number_of_threads_finds_the_same():
    a, f = (np.random.default_rng(seed).standard_normal((1, 4096, 96)).astype(np.float32) for seed in (1, 2))
    found = Moments.of(a, f, 2.0**-16)
    here = hashlib.sha256(b"".join(getattr(found, name).tobytes() for name in FIELDS)).hexdigest()
    for threads in ("1", "3"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", CHILD], env=environment, check=True, capture_output=True, text=True
        )
        assert done.stdout.strip() == here


def test_those_of_samples_held_back_go_beside_the_others():
    learned, held = (Moments.of(*pair(4, 3, seed=seed), 1.0) for seed in (1, 2))
    both = beside(learned, held)
    assert same(both, learned) and both.held is held
    for alone in (beside(learned, None), beside(None, learned)):
        assert same(alone, learned) and alone.held is None
    with pytest.raises(ValueError):
        beside(None, None)
