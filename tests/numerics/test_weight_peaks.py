"""Scales of weights with the least squared error, where so many elements have one that they are counted."""

from __future__ import annotations

import numpy as np
import pytest

from fp8graph import formats
from fp8graph.formats.spec import Granularity, PerAxis, PerTensor
from fp8graph.numerics.cast import decode, fake_quantize
from fp8graph.numerics.mse import COARSE, weight_peaks
from fp8graph.numerics.scale import channel_amax, scale_from_amax

RNG = np.random.default_rng(0)
SHAPE = (12, 640)
WEIGHTS = {
    "gaussian": RNG.standard_normal(SHAPE),
    "heavy tails": RNG.standard_t(3, SHAPE),
    "uniform": RNG.uniform(-1, 1, SHAPE),
    "a code book": RNG.choice(np.linspace(-1, 1, 16), SHAPE),
    "pruned": RNG.standard_normal(SHAPE) * (RNG.random(SHAPE) < 0.2),
    "an outlier": np.where(np.arange(SHAPE[1]) == 7, 3000.0, 1.0) * RNG.standard_normal(SHAPE),
    "tiny": 1e-30 * RNG.standard_normal(SHAPE),
}


def lost(weight: np.ndarray, granularity: Granularity, name: str, peaks: np.ndarray) -> np.ndarray:
    """Squared error of each row."""
    form = formats.get(name)
    rounded = fake_quantize(weight, form, np.asarray(scale_from_amax(peaks, form), np.float32), granularity)
    return np.sum((rounded.astype(np.float64) - weight) ** 2, axis=1)


# A step of INT8 is as wide as what is counted together: whether few points lie on it is not told.
CASES = [
    (name, title)
    for name in ("e4m3fn", "e4m3fnuz", "e5m2", "e2m1", "int8")
    for title in WEIGHTS
    if (name, title) != ("int8", "a code book")
]


@pytest.mark.parametrize(("name", "title"), CASES)
def test_counts_find_what_trying_each_place_finds(name: str, title: str):
    weight, granularity = WEIGHTS[title].astype(np.float32), PerAxis(0)
    amax = channel_amax(weight, granularity)
    least = np.min([lost(weight, granularity, name, amax * np.float32(2 ** (step / 16))) for step in COARSE], axis=0)
    found = lost(weight, granularity, name, weight_peaks(weight, granularity, formats.get(name)))
    assert np.sum(found) <= 1.03 * np.sum(least)
    assert np.all(found <= 1.12 * least)


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e2m1"])
def test_a_weight_on_the_grid_stays_there(name: str):
    form = formats.get(name)
    values = decode(RNG.integers(0, 1 << form.bits, SHAPE).astype(np.uint8), form)
    weight = np.where(np.isfinite(values), values, 0).astype(np.float32) * RNG.uniform(0.1, 9, (12, 1)).astype(
        np.float32
    )
    found = weight_peaks(weight, PerAxis(0), form)
    assert np.array_equal(found, channel_amax(weight, PerAxis(0)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_channel_has_its_own_whatever_lies_beside_it(axis: int):
    weight = RNG.standard_normal((26, 24, 30)).astype(np.float32)
    weight[3], weight[:, 3], weight[:, :, 3] = 0, 0, 0
    form = formats.get("e4m3fn")
    found = weight_peaks(weight, PerAxis(axis), form)
    assert found.shape == (weight.shape[axis],) and found[3] == 0
    for index in (0, 5, 23):
        assert found[index] == weight_peaks(np.take(weight, index, axis), PerTensor(), form)


def test_more_rows_than_are_counted_at_once_are_all_found():
    weight = np.tile(WEIGHTS["gaussian"], (60, 1)).astype(np.float32)
    found = weight_peaks(weight, PerAxis(0), formats.get("e4m3fn"))
    assert np.array_equal(found, np.tile(found[:12], 60))
