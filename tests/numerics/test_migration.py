"""Factors of channels, and the noise that is foreseen with them against what rounding really does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph import formats
from fp8graph.data.plan import Quant, Scale
from fp8graph.formats.spec import PerAxis, PerTensor
from fp8graph.numerics import cast, migration
from fp8graph.numerics.migration import Read
from fp8graph.numerics.scale import scale_from_amax

SIZES = st.lists(st.floats(2.0**-20, 2.0**20), min_size=1, max_size=12)


@settings(deadline=None)
@given(SIZES, st.data(), st.floats(0, 1))
def test_factors_are_powers_of_two_and_the_largest_quotient_stays_in_its_octave(sizes, data, alpha):
    peaks = np.array(sizes, np.float32)
    weights = np.array(data.draw(st.lists(SIZES.map(lambda x: x[0]), min_size=len(sizes), max_size=len(sizes))))
    found = migration.factors(peaks, weights, alpha)
    assert found.dtype == np.float32 and (np.log2(found) % 1 == 0).all()
    assert (np.abs(np.log2(found)) <= 12).all()
    largest = float((peaks / found).max())
    assert largest <= peaks.max()
    unclipped = (np.abs(np.log2(found)) < 12).all()
    assert not unclipped or largest > peaks.max() / 2


def test_the_ends_of_alpha_even_out_one_side():
    peaks, weights = np.exp2(np.arange(8.0)), np.exp2(np.array([3.0, 1, 4, 1, 5, 9, 2, 6]))
    assert len(set(peaks / migration.factors(peaks, weights, 1))) == 1
    assert len(set(weights * migration.factors(peaks, weights, 0))) == 1


def test_channels_of_zeros_keep_their_size():
    found = migration.factors(np.array([0, 1, 4.0]), np.array([1, 0, 2.0]), 0.5)
    assert found[0] == found[1] == 1
    assert (migration.factors(np.zeros(3), np.ones(3), 0.5) == 1).all()


def rounded(array, form, scale):
    return cast.decode(cast.encode(array, form, scale), form, scale)


@pytest.mark.parametrize("name", ["int8", "e4m3fn", "e5m2"])
@pytest.mark.parametrize("power", [0, 4])
def test_the_noise_foreseen_is_that_of_rounding_within_a_decibel(name, power):
    random, form = np.random.default_rng(3), formats.get(name)
    sizes = np.exp2(random.uniform(-power, power, 48)).astype(np.float32)
    x = (random.standard_normal((4096, 48)) * sizes).astype(np.float32)
    w = (random.standard_normal((48, 32)) / sizes[:, None]).astype(np.float32)
    operand = Quant("x", name, PerTensor(), Scale("observed", "amax", 1.0))
    weight = Quant("w", name, PerAxis(1), Scale("computed", "amax"))
    read = Read(w, np.arange(48)[:, None], operand, weight)
    powers, peaks = np.square(x.astype(np.float64)).mean(0), np.abs(x).max(0)
    for factors in (np.ones(48, np.float32), migration.factors(peaks, np.abs(w).max(1), 0.5)):
        a, b = x / factors, w * factors[:, None]
        done = rounded(a, form, scale_from_amax(np.abs(a).max(), form)) @ rounded(
            b, form, np.asarray(scale_from_amax(np.abs(b).max(0), form))[None, :]
        )
        exact = x.astype(np.float64) @ w
        measured = np.square(done - exact).sum() / np.square(exact).sum()
        assert abs(10 * np.log10(read.lost(factors, peaks, powers) / measured)) < 1


def test_a_depthwise_and_a_grouped_weight_count_by_their_channels():
    weight = np.arange(1, 9, dtype=np.float32).reshape(4, 2, 1, 1)  # four outputs, two channels in each of two groups
    channels = np.array([[0, 1], [0, 1], [2, 3], [2, 3]])[:, :, None, None]
    operand = Quant("x", "int8", PerTensor(), Scale("observed", "amax", 1.0))
    read = Read(weight, channels, operand, Quant("w", "int8", PerAxis(0), Scale("computed", "amax")))
    assert read.peaks(4).tolist() == [3, 4, 7, 8]
    assert read.powers(np.square(weight), 4).tolist() == [1 + 9, 4 + 16, 25 + 49, 36 + 64]
