"""The numbers that a format rounds magnitudes to, and the error that it leaves on counted values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fp8graph.formats.spec import Format
from fp8graph.numerics.histogram import Magnitudes

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """Magnitudes of a format: `points`, ascending from 0, and `middles`, where rounding goes from one to the next.

    What is above the last point saturates to it.
    """

    points: Numbers
    middles: Numbers

    def errors(self, seen: Magnitudes, scale: float) -> float:
        """The sum of squared errors that a scale leaves, with the values of a bin taken as evenly spread over it."""
        low, high = seen.low / scale, seen.high / scale
        width = high - low
        wide = width > 0
        spread = np.where(wide, self._integral(high) - self._integral(low), 0) / np.where(wide, width, 1)
        left = np.where(wide, spread, (low - self.points[np.searchsorted(self.middles, low)]) ** 2)
        return float((seen.counts * left).sum() * scale * scale)

    def _integral(self, x: Numbers) -> Numbers:
        """Of (t - rounded t)^2 from 0 to x: cubic between two middles."""
        cell = np.searchsorted(self.middles, x)
        begins = np.concatenate([[0.0], self.middles])
        offsets = begins - self.points
        ends = (self.middles - self.points[:-1]) ** 3 - offsets[:-1] ** 3
        before = np.concatenate([[0.0], np.cumsum(ends)])
        total: Numbers = (before[cell] + (x - self.points[cell]) ** 3 - offsets[cell] ** 3) / 3
        return total


@cache
def grid_of(form: Format) -> Grid:
    """The grid of a format that encodes tensors."""
    found = {float(value) for code in form.codes if (value := form.value(code)) is not None and value >= 0}
    points = np.array(sorted(value for value in found if value <= float(form.max)))
    return Grid(points, (points[:-1] + points[1:]) / 2)
