"""What a weight's operand looks like to its sums: products of its columns, counted in whole numbers, exactly mergeable.

An activation in E4M3 under a scale s is a multiple of s / 512, and at most 2^18 of them; others are rounded to that
grid. Products then stay below 2^36, so that float64 adds 2^17 rows without rounding, and int64 the parts: any order
and any number of threads give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_LARGEST = float(2**18)
# Rows of one call that float64 adds up exactly.
MOST_ROWS = 2**17


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over rows a of the operand as it will be, and f as it is in the original model.

    unit   a float: what one step of the whole numbers is
    rows   how many there were
    gram   int64 [groups, K, K]: sum of a a'
    cross  int64 [groups, K, K]: sum of a (f - a)'
    sums   int64 [groups, K]: sum of a;  lost   int64 [groups, K]: sum of f - a
    held   those of other samples, which tell whether what was learned from these holds
    """

    unit: float
    rows: int
    gram: NDArray[np.int64]
    cross: NDArray[np.int64]
    sums: NDArray[np.int64]
    lost: NDArray[np.int64]
    held: Moments | None = None

    @staticmethod
    def of(planned: Array, original: Array, unit: float) -> Moments:
        """Those of rows [groups, rows, K], the same ones of both. Raises ValueError for more than 2^17 rows, and where
        something is not finite."""
        if planned.shape != original.shape or planned.shape[1] > MOST_ROWS:
            raise ValueError(f"rows {planned.shape} and {original.shape}: equal, and at most {MOST_ROWS}")
        a, f = _whole(planned, unit), _whole(original, unit)
        turned = a.transpose(0, 2, 1)
        gram = (turned @ a).astype(np.int64)
        return Moments(
            unit,
            planned.shape[1],
            gram,
            # not a' (f - a): where these differ the most, float64 would round the sum
            (turned @ f).astype(np.int64) - gram,
            a.sum(1).astype(np.int64),
            (f - a).sum(1).astype(np.int64),
        )

    def merge(self, other: Moments) -> Moments:
        """Both together; associative and commutative. Raises ValueError for another unit or shape."""
        if self.unit != other.unit or self.gram.shape != other.gram.shape:
            raise ValueError("these are moments of two operands")
        return Moments(
            self.unit,
            self.rows + other.rows,
            self.gram + other.gram,
            self.cross + other.cross,
            self.sums + other.sums,
            self.lost + other.lost,
        )


def beside(learned: Moments | None, held: Moments | None) -> Moments:
    """Moments of samples to learn from, with those of samples held back; of one alone where there is no other.

    Raises ValueError where there is none.
    """
    first = learned or held
    if first is None:
        raise ValueError("there are no moments")
    return replace(first, held=held if learned is not None else None)


def _whole(rows: Array, unit: float) -> NDArray[np.float64]:
    scaled = rows.astype(np.float64) / unit
    if not np.isfinite(scaled).all():
        raise ValueError("an operand holds a NaN or an infinity")
    return np.clip(np.rint(scaled), -_LARGEST, _LARGEST)
