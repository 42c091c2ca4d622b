"""Scales that keep the distribution of values: the least Kullback-Leibler divergence on a format's own grid.

As calibrators for integers do it (TensorRT's entropy calibration), but with the cells of the format in place of even
ones: values above the clipping point count as lying in the last bin below it, and what falls into one cell is spread
evenly over the bins of it that were not empty.
"""

from __future__ import annotations

import numpy as np

from fp8graph.formats.spec import Format
from fp8graph.numerics.grid import grid_of
from fp8graph.numerics.histogram import Magnitudes
from fp8graph.numerics.mse import COARSE


def least_divergence(seen: Magnitudes, amax: float, form: Format) -> float:
    """The magnitude that is to become the format's largest value: within 2^[-2, 1] of `amax`, in 1/16 octaves."""
    bins = seen.within(amax)
    peaks = [amax * 2.0 ** (step / 16) for step in COARSE]
    found = [_divergence(bins, peak, form) for peak in peaks]
    return float(peaks[int(np.argmin(found))])


def _divergence(seen: Magnitudes, peak: float, form: Format) -> float:
    """KL(P || Q) in nats: P are the values, clipped at `peak`, Q what is left of those below it."""
    grid = grid_of(form)
    cells = grid.middles * (peak / float(form.max))
    ends = np.unique(np.concatenate([seen.low, seen.high, cells, [peak]]))
    ends = ends[(ends >= seen.low[0]) & (ends <= seen.high[-1])]
    low, high = ends[:-1], ends[1:]
    index = np.minimum(np.searchsorted(seen.high, low, side="right"), seen.high.size - 1)
    inside = (low >= seen.low[index]) & (high <= seen.high[index])
    width = seen.high[index] - seen.low[index]
    mass = np.where(inside, seen.counts[index] * (high - low) / np.where(width > 0, width, 1), 0.0)
    kept = high <= peak
    if not mass[kept].any():
        return float("inf")
    lost = float(mass[~kept].sum()) + float(seen.counts[seen.high <= seen.low].sum())
    mass, low, length = mass[kept], low[kept], (high - low)[kept]
    cell = np.searchsorted(cells, low, side="right")
    used = mass > 0
    whole = np.bincount(cell, mass, grid.points.size)[cell]
    room = np.bincount(cell, np.where(used, length, 0), grid.points.size)[cell]
    real = mass.copy()
    real[np.flatnonzero(used)[-1]] += lost
    p = real[used] / real.sum()
    q = (whole * length / np.where(room > 0, room, 1))[used]
    return float((p * np.log(p / (q / q.sum()))).sum())
