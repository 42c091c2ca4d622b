"""Scales with the least squared error on a format's own grid, subnormals and saturation included.

A floating format is as precise in each octave, so whole octaves hardly matter; the place in the octave does, by up to
2 dB for a single tensor. The search goes from a quarter of the largest value to twice that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fp8graph.formats.spec import Format, Granularity
from fp8graph.numerics import cast
from fp8graph.numerics.grid import grid_of
from fp8graph.numerics.histogram import Magnitudes
from fp8graph.numerics.scale import channel_amax, scale_from_amax

# Sixteenths of an octave from the largest value, in the order in which equals are preferred: that itself first.
COARSE = tuple(sorted(range(-32, 17), key=abs))
_FINE = (0, -0.75, 0.75, -0.5, 0.5, -0.25, 0.25)


def least_squares(seen: Magnitudes, amax: float, form: Format) -> float:
    """The magnitude that is to become the format's largest value: within 2^[-2, 1] of `amax`, in 1/64 octaves."""
    grid, bins = grid_of(form), seen.within(amax)

    def error(step: float) -> float:
        return grid.errors(bins, amax * 2.0 ** (step / 16) / float(form.max))

    best = _least(error, COARSE)
    return float(amax * 2.0 ** (_least(error, [best + step for step in _FINE]) / 16))


def _least(error: Callable[[float], float], steps: list[float] | tuple[float, ...]) -> float:
    found = [error(step) for step in steps]
    return steps[int(np.argmin(found))]


def weight_peaks(weight: NDArray[np.generic], granularity: Granularity, form: Format) -> NDArray[np.float32]:
    """For each scale of a weight the magnitude that is to become the format's largest value, on the values themselves.

    Where `channel_amax` has the largest magnitude: float32 in the shape of the scale. Tried are 49 places from a
    quarter of that to twice of it, each by rounding the whole weight; of equals the nearest to it counts.

    weight  float32, float16 or bfloat16, finite
    """
    amax = channel_amax(weight, granularity)
    single = np.asarray(weight, np.float32)
    best, least = amax.copy(), np.full(amax.shape, np.inf)
    for step in COARSE:
        with np.errstate(over="ignore"):
            peaks = np.minimum(amax * np.float32(2.0 ** (step / 16)), np.finfo(np.float32).max)
        scale = np.asarray(scale_from_amax(peaks, form), np.float32)
        error = _sums((cast.fake_quantize(single, form, scale, granularity) - single) ** 2, granularity)
        better = error < least
        best, least = np.where(better, peaks, best), np.where(better, error, least)
    return best.astype(np.float32)


def _sums(array: NDArray[np.float32], granularity: Granularity) -> NDArray[np.float64]:
    """The sum under each scale, in float64 and in one order."""
    counts, sizes = granularity.counts(array.shape), granularity.sizes(array.shape)
    total = array.astype(np.float64)
    for axis, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        starts = np.arange(count) * size if count > 1 else [0]
        total = np.add.reduceat(total, starts, axis) if array.shape[axis] else total
    return total.reshape(granularity.scale_shape(array.shape))
