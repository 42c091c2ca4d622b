"""Scales with the least squared error on a format's own grid, subnormals and saturation included.

A floating format is as precise in each octave, so whole octaves hardly matter; the place in the octave does, by up to
2 dB for a single tensor. The search goes from a quarter of the largest value to twice that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

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

# A scale for fewer elements is tried on them; counts of so few do not tell where on the grid they lie.
_MANY = 256
# Bins of 1/128 octave, ten octaves down from the largest value, and one for that; what lies below is in the first.
_MANTISSA, _OCTAVES, _PARTS = 7, 10, 4
_SHIFT = 23 - _MANTISSA
_BINS = (_OCTAVES << _MANTISSA) + 1
_BELOW = (127 - _OCTAVES) << _MANTISSA
_CHUNK = 1 << 18  # elements, or bins, at once: what stays in the cache
# Rows that are multiplied at once: of more, OpenBLAS starts threads, which on shared cores cost four times the work.
_TOGETHER = 4


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
    """For each scale of a weight the magnitude that is to become the format's largest value.

    Where `channel_amax` has the largest magnitude: float32 in the shape of the scale. Tried are 49 places from a
    quarter of that to twice of it; of equals the nearest to it counts. Where a scale is for `_MANY` elements or
    more, but of INT4, they are counted once, in 1/128 octaves, and a place costs what the counts say; else each
    place is tried by rounding.

    weight  float32, float16 or bfloat16, finite
    """
    amax = channel_amax(weight, granularity)
    single = np.asarray(weight, np.float32)
    few = form.kind == "int" and form.bits < 8  # -8 has no counterpart, which magnitudes do not tell
    rows = None if few else _rows(single, granularity)
    if rows is not None and rows.shape[1] >= _MANY:
        return _counted(rows, amax.reshape(-1), form).reshape(amax.shape)
    best, least = amax.copy(), np.full(amax.shape, np.inf)
    for step in COARSE:
        peaks = _moved(amax, step)
        scale = np.asarray(scale_from_amax(peaks, form), np.float32)
        error = _sums((cast.fake_quantize(single, form, scale, granularity) - single) ** 2, granularity)
        better = error < least
        best, least = np.where(better, peaks, best), np.where(better, error, least)
    return best.astype(np.float32)


def _moved(amax: NDArray[np.float32], step: int | NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        factor = np.exp2(np.asarray(step, np.float32) / 16)
        return np.minimum(amax * factor, np.finfo(np.float32).max).astype(np.float32)


def _rows(weight: NDArray[np.float32], granularity: Granularity) -> NDArray[np.float32] | None:
    """The elements of each scale as a row, [scales, elements]; None where blocks would have to be cut out."""
    counts, sizes = granularity.counts(weight.shape), granularity.sizes(weight.shape)
    several = [axis for axis, count in enumerate(counts) if count > 1]
    if not several:
        return weight.reshape(1, -1)
    if len(several) > 1 or sizes[several[0]] > 1:
        return None
    return np.moveaxis(weight, several[0], 0).reshape(counts[several[0]], -1)


def _counted(rows: NDArray[np.float32], amax: NDArray[np.float32], form: Format) -> NDArray[np.float32]:
    """The best peak of each row, by counts of its magnitudes over its largest.

    Errors are whole multiples of a power of two, so small that their sums are exact: the choice depends on no order.
    """
    errors = np.rint(np.ldexp(_errors(form), 52 - rows.shape[1].bit_length()))
    best = np.empty(len(rows), np.float32)
    each = max(1, _CHUNK // max(_BINS, rows.shape[1]) // _TOGETHER) * _TOGETHER
    for begin in range(0, len(rows), each):
        top = amax[begin : begin + each]
        share = np.abs(rows[begin : begin + each]) / np.where(top > 0, top, 1)[:, None]
        places = (share.view(np.uint32) >> _SHIFT).astype(np.intp) - _BELOW
        np.maximum(places, 0, out=places)
        places += np.arange(len(top))[:, None] * _BINS
        counts = np.bincount(places.reshape(-1), minlength=-(-len(top) // _TOGETHER) * _TOGETHER * _BINS)
        costs = counts.reshape(-1, _TOGETHER, _BINS).astype(np.float64) @ errors
        steps = costs.reshape(-1, len(COARSE))[: len(top)].argmin(axis=1)
        best[begin : begin + each] = _moved(top, np.asarray(COARSE, np.float32)[steps])
    return best


@cache
def _errors(form: Format) -> NDArray[np.float64]:
    """Mean squared error of a value in each bin, over the largest value's square, with the scale of each step:
    [bins, steps]. The last bin holds the largest value alone."""
    edges = (np.arange(_BINS, dtype=np.uint32) + np.uint32(_BELOW)) << np.uint32(_SHIFT)
    low = edges.view(np.float32).astype(np.float64)
    parts = (np.arange(_PARTS) + 0.5) / _PARTS
    values = low[:, None] + np.append(np.diff(low), 0.0)[:, None] * parts
    single = values.astype(np.float32)
    found = np.empty((_BINS, len(COARSE)))
    for column, step in enumerate(COARSE):
        scale = np.asarray(scale_from_amax(np.float32(2.0 ** (step / 16)), form), np.float32)
        rounded = cast.fake_quantize(single, form, scale)
        found[:, column] = ((rounded.astype(np.float64) - single) ** 2).mean(axis=1)
    return found


def _sums(array: NDArray[np.float32], granularity: Granularity) -> NDArray[np.float64]:
    """The sum under each scale, in float64 and in one order."""
    counts, sizes = granularity.counts(array.shape), granularity.sizes(array.shape)
    total = array.astype(np.float64)
    for axis, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        starts = np.arange(count) * size if count > 1 else [0]
        total = np.add.reduceat(total, starts, axis) if array.shape[axis] else total
    return total.reshape(granularity.scale_shape(array.shape))
