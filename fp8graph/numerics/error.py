"""How far a candidate's outputs are from a reference's, counted while they stream by."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fp8graph.numerics.cast import tiles


class ErrorSums:
    """Sums over pairs of arrays, from which SQNR, cosine and largest error follow. All sums are float64.

    Only pairs in which both numbers are finite enter the sums. The others are counted: `new_nonfinite` and
    `lost_nonfinite` are mismatches, equal infinities and NaN against NaN are agreement. A mismatch is an infinite
    error: `sqnr_db` is -inf then and `max_abs` inf, so that neither can look good over the finite rest.

    Meant for numbers of fp32's range, whose squares fp64 holds. Memory is a few blocks, whatever the arrays' size. The
    order of `add` and the cutting into arrays may change the last bits of the sums; the same calls give the same bits.
    """

    def __init__(self) -> None:
        self.count = 0  # elements seen
        self.new_nonfinite = 0  # candidate NaN or infinite where the reference is finite
        self.lost_nonfinite = 0  # reference NaN or infinite, and the candidate anything else than that
        self._signal = 0.0
        self._candidate = 0.0
        self._product = 0.0
        self._noise = 0.0
        self._max_abs = 0.0

    def add(self, reference: ArrayLike, candidate: ArrayLike) -> None:
        """Takes in one pair of arrays of equal shape, any real type, converted to float64 block by block.

        Raises ValueError where the shapes differ, TypeError for complex numbers.
        """
        left, right = np.asarray(reference), np.asarray(candidate)
        if left.shape != right.shape:
            raise ValueError(f"reference has shape {left.shape}, candidate {right.shape}")
        if left.dtype.kind == "c" or right.dtype.kind == "c":
            raise TypeError(f"expected real numbers, got {left.dtype} and {right.dtype}")
        if left.ndim == 0:
            left, right = left.reshape(1), right.reshape(1)
        # squares may leave fp64's range, and widening a signalling NaN is "invalid": cases, not mistakes
        with np.errstate(all="ignore"):
            for tile in tiles(left.shape):
                self._add_block(_float64(left[tile]), _float64(right[tile]))
        self.count += left.size

    @property
    def sqnr_db(self) -> float | None:
        """10 log10(sum r^2 / sum (r - c)^2): higher is better. None where nothing differs, or nothing was added.

        -inf where a finite value met a non-finite one, or where the reference is all zeros and the candidate is not.
        """
        if self._mismatch:
            return -math.inf
        if self._noise == 0:
            return None
        return 10 * (math.log10(self._signal) - math.log10(self._noise)) if self._signal else -math.inf

    @property
    def cosine(self) -> float | None:
        """sum r c / sqrt(sum r^2 sum c^2), over finite pairs, -1 to 1. None where one side is all zeros or empty."""
        if not self._signal or not self._candidate:
            return None
        cosine = self._product / (math.sqrt(self._signal) * math.sqrt(self._candidate))
        return min(1.0, max(-1.0, cosine))

    @property
    def max_abs(self) -> float:
        """The largest |r - c|: 0.0 where nothing was added, inf where a finite value met a non-finite one."""
        return math.inf if self._mismatch else self._max_abs

    @property
    def _mismatch(self) -> bool:
        return self.new_nonfinite + self.lost_nonfinite > 0

    def _add_block(self, left: NDArray[np.float64], right: NDArray[np.float64]) -> None:
        finite_left, finite_right = np.isfinite(left), np.isfinite(right)
        if not (finite_left.all() and finite_right.all()):
            same = (left == right) | (np.isnan(left) & np.isnan(right))
            self.new_nonfinite += int(np.count_nonzero(finite_left & ~finite_right))
            self.lost_nonfinite += int(np.count_nonzero(~finite_left & ~same))
            both = finite_left & finite_right
            left, right = left[both], right[both]
        difference = left - right
        # not np.dot: BLAS adds in an order that depends on its threads
        self._signal += float(np.sum(left * left))
        self._candidate += float(np.sum(right * right))
        self._product += float(np.sum(left * right))
        self._noise += float(np.sum(difference * difference))
        self._max_abs = max(self._max_abs, float(np.max(np.abs(difference), initial=0.0)))


def _float64(block: NDArray[np.generic]) -> NDArray[np.float64]:
    return block.astype(np.float64).reshape(-1)
