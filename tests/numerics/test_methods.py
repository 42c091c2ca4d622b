"""Scales from counts, held against brute force on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest

from fp8graph import formats
from fp8graph.data.method import Method, parse
from fp8graph.formats.spec import Blocks2D, PerAxis, PerTensor
from fp8graph.numerics import entropy, mse
from fp8graph.numerics.cast import fake_quantize
from fp8graph.numerics.grid import grid_of
from fp8graph.numerics.observed import peak_of, peaks_of_weight
from fp8graph.numerics.ranges import Stat
from fp8graph.numerics.scale import channel_amax, scale_from_amax

RNG = np.random.default_rng(1)
N = 40_000
DATA = {
    "gaussian": RNG.standard_normal(N),
    "behind relu": np.maximum(RNG.standard_normal(N), 0),
    "laplace": RNG.laplace(size=N),
    "heavy tails": RNG.standard_t(3, N),
    "uniform": RNG.uniform(-1, 1, N),
    "outliers": np.concatenate([RNG.standard_normal(N), [80.0, -120.0]]),
    "tiny": RNG.standard_normal(N) * 1e-30,
}
ARRAYS = {name: array.astype(np.float32) for name, array in DATA.items()}
FORMATS = ("e4m3fn", "e5m2", "int8")


def error(array: np.ndarray, peak: float, form) -> float:
    """Squared error of the values themselves, relative to their sum of squares."""
    left = fake_quantize(array, form, np.float32(scale_from_amax(np.float32(peak), form))).astype(np.float64) - array
    return float((left**2).sum() / (array.astype(np.float64) ** 2).sum())


def peak(array: np.ndarray, method: str, form) -> float:
    return peak_of(Stat.of(array, histogram=True), parse(method), form)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ARRAYS)
def test_mse_from_counts_is_within_a_tenth_of_a_decibel_of_the_best_on_the_values(name, form):
    array, kind = ARRAYS[name], formats.get(form)
    amax = float(np.abs(array).max())
    best = min(error(array, amax * 2.0 ** (step / 16), kind) for step in range(-32, 17))
    found = error(array, peak(array, "mse", kind), kind)
    # Where two values are all there is to the squares, a bin does not tell where in it they lie.
    assert 10 * np.log10(found / best) < (1 if name == "outliers" else 0.1)


@pytest.mark.parametrize("form", FORMATS)
def test_the_error_that_counts_tell_is_that_of_the_values(form):
    kind = formats.get(form)
    for array in (ARRAYS["gaussian"], ARRAYS["laplace"]):
        seen = Stat.of(array, histogram=True)
        amax = seen.amax or 0.0
        for factor in (0.5, 0.8, 1.0, 1.3, 4.0):  # saturation, and subnormals where int8 has steps
            told = grid_of(kind).errors(seen.histogram.magnitudes().within(amax), amax * factor / float(kind.max))
            true = error(array, amax * factor, kind) * float((array.astype(np.float64) ** 2).sum())
            assert told == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("share", [60, 90, 99, 99.9, 100])
@pytest.mark.parametrize("name", ARRAYS)
def test_a_percentile_is_that_of_the_magnitudes_to_within_a_bin(name, share):
    array = ARRAYS[name]
    found, true = peak(array, f"percentile:{share}", formats.get("e4m3fn")), np.percentile(np.abs(array), share)
    if true:
        assert found == pytest.approx(float(true), rel=1 / 16)
    assert share < 100 or found == float(np.abs(array).max())


def divergence(array: np.ndarray, clip: float, form) -> float:
    """KL of the values' distribution in even bins against what rounding to the grid leaves of it, by hand."""
    magnitudes = np.abs(array)
    magnitudes = magnitudes[magnitudes > 0]
    edges = np.linspace(0, clip, 4001)
    inside = np.histogram(magnitudes, edges)[0].astype(np.float64)
    real = inside.copy()
    real[np.flatnonzero(inside)[-1]] += (magnitudes > clip).sum()
    cells = np.searchsorted(grid_of(form).middles * clip / float(form.max), (edges[:-1] + edges[1:]) / 2)
    left = np.zeros_like(inside)
    for cell in np.unique(cells):
        here = (cells == cell) & (inside > 0)
        left[here] = inside[cells == cell].sum() / max(here.sum(), 1)
    used = inside > 0
    p, q = real[used] / real.sum(), left[used] / left.sum()
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("name", ["gaussian", "laplace", "heavy tails"])
def test_entropy_clips_integers_as_brute_force_does_and_leaves_e4m3_as_good_as_it_was(name):
    array, int8 = ARRAYS[name], formats.get("int8")
    amax = float(np.abs(array).max())
    clips = [amax * 2.0 ** (step / 16) for step in range(-32, 1)]
    best = min(divergence(array, clip, int8) for clip in clips)
    assert divergence(array, min(peak(array, "entropy", int8), amax), int8) <= best * 2 + 0.01
    if name != "heavy tails":  # there it clips what squares are made of, whatever the format
        assert error(array, peak(array, "entropy", formats.get("e4m3fn")), formats.get("e4m3fn")) < 10**-3


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ARRAYS)
def test_pow2_is_the_least_power_of_two_under_which_nothing_saturates(name, form):
    kind, amax = formats.get(form), np.abs(ARRAYS[name]).max()
    scale = float(scale_from_amax(np.float32(peak(ARRAYS[name], "pow2", kind)), kind))
    assert np.log2(scale) == int(np.log2(scale))
    assert scale * float(kind.max) >= amax > scale / 2 * float(kind.max)


@pytest.mark.parametrize("method", ["amax", "percentile:99", "mse", "entropy", "pow2"])
def test_degenerate_tensors_have_scales_by_every_method(method):
    kind = formats.get("e4m3fn")
    for values in ([0.0, 0.0], [0.0, 1e-45], [3.4028235e38, 1.0], [5.0], [0.0] * 999 + [5.0]):
        found = peak(np.array(values, np.float32), method, kind)
        assert 0 <= found <= 3.4028235e38 and float(scale_from_amax(np.float32(found), kind)) > 0
    assert peak_of(Stat(), parse(method), kind) == 0


def test_a_method_that_counts_needs_counts_and_headroom_is_times():
    stat = Stat.of(ARRAYS["gaussian"])
    with pytest.raises(ValueError, match="reads counts"):
        peak_of(stat, parse("mse"), formats.get("e4m3fn"))
    assert peak_of(stat, parse("amax*4"), formats.get("e4m3fn")) == (stat.amax or 0.0) * 4


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerAxis(1), Blocks2D(8, 16)], ids=str)
@pytest.mark.parametrize("form", ["e4m3fn", "e5m2", "int8"])
def test_weights_have_the_scales_of_least_error_among_all_that_were_tried(granularity, form):
    kind = formats.get(form)
    weight = (RNG.standard_normal((24, 40)) * RNG.uniform(0.1, 3, (24, 1))).astype(np.float32)
    weight[3] = 0
    found, amax = peaks_of_weight(weight, granularity, kind, "mse"), channel_amax(weight, granularity)
    assert found.shape == amax.shape and found.dtype == np.float32
    assert np.array_equal(peaks_of_weight(weight, granularity, kind, "amax"), amax)

    def errors(peaks: np.ndarray) -> np.ndarray:
        scale = np.asarray(scale_from_amax(peaks, kind), np.float32)
        return (fake_quantize(weight, kind, scale, granularity).astype(np.float64) - weight) ** 2

    sums = {step: mse._sums(errors(amax * np.float32(2 ** (step / 16))), granularity) for step in mse.COARSE}
    assert np.allclose(mse._sums(errors(found), granularity), np.minimum.reduce(list(sums.values())), rtol=1e-5)
    assert mse._sums(errors(found), granularity).sum() <= sums[0].sum()


def test_a_weight_that_is_not_finite_keeps_saying_so():
    weight = np.array([[1, np.nan], [1, 2]], np.float32)
    assert np.isnan(peaks_of_weight(weight, PerAxis(0), formats.get("e4m3fn"), "mse")).any()


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("amax", Method()),
        ("absmax", Method()),
        ("max", Method()),
        ("amax*2", Method(headroom=2)),
        ("percentile", Method("percentile", 99.99)),
        ("percentile:99.9*4", Method("percentile", 99.9, 4)),
        ("mse", Method("mse")),
        ("entropy*2", Method("entropy", headroom=2)),
        ("pow2", Method("pow2")),
    ],
)
def test_methods_are_read_and_written(text, method):
    assert parse(text) == method == parse(method.text)


@pytest.mark.parametrize(
    "text", ["", "kl", "amax:3", "percentile:x", "percentile:101", "percentile:nan", "mse*", "mse*0", "mse*x", "mse*-1"]
)
def test_what_is_no_method_is_refused(text):
    if text == "mse*":
        assert parse(text) == Method("mse")
        return
    with pytest.raises(ValueError):
        parse(text)


def test_entropy_of_a_single_magnitude_keeps_it():
    seen = Stat.of(np.full(9, 3.0, np.float32), histogram=True)
    assert seen.histogram is not None
    assert entropy.least_divergence(seen.histogram.magnitudes(), 3.0, formats.get("e4m3fn")) >= 3.0 / 4
