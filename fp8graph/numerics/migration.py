"""Factors of channels for a tensor and the weights that read it, and what rounding is left to cost with them.

What a product loses, summed over its channels c, with mean squares P of the tensor x and the weight's rounding error e:

    sum_c |w_c|^2 (r P_c + f_c^2 d^2 / 12)  +  sum_c P_c |e_c|^2

r is the mean squared relative error of a floating format (0 of integers) and d its smallest step under the scale, which
is that of the largest x_c / f_c; what a channel loses is at most itself (all of it is rounded to 0). The error of the
weight is that of f w as it rounds, divided by f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8graph import formats
from fp8graph.data.plan import Quant
from fp8graph.formats.spec import Format
from fp8graph.numerics import cast
from fp8graph.numerics.observed import scales_of_weight
from fp8graph.numerics.scale import scale_from_amax

Array = NDArray[Any]
# Octaves that a factor moves a channel at most.
_MOST = 12


def factors(peaks: Array, weights: Array, alpha: float) -> NDArray[np.float32]:
    """Powers of two next to peaks^alpha / weights^(1 - alpha), times one that leaves the largest quotient in the octave
    below the largest value.

    peaks    largest value of each channel of the tensor; weights   that of what it is multiplied by
    alpha    1: all channels of the tensor get one range; 0: all rows of the weight
    """
    known = (peaks > 0) & (weights > 0)
    if not known.any():
        return np.ones(peaks.shape, np.float32)
    wanted = np.zeros(peaks.shape)
    wanted[known] = alpha * np.log2(peaks[known]) - (1 - alpha) * np.log2(weights[known])
    loudest = float(np.max(np.log2(peaks[known])))
    left = np.log2(peaks[known]) - np.rint(wanted[known])
    shift = math.ceil(float(left.max()) - loudest)
    octaves = np.clip(np.where(known, np.rint(wanted) + shift, 0), -_MOST, _MOST)
    return np.asarray(np.exp2(octaves), np.float32)


@dataclass(frozen=True, eq=False)
class Read:
    """One product that reads the tensor.

    weight    float32;  channels   int64, which channel of the tensor each of its elements is for: broadcasts over it
    operand   how the tensor is rounded;  rounded   how the weight is
    """

    weight: Array
    channels: NDArray[np.int64]
    operand: Quant
    rounded: Quant

    def powers(self, squares: Array, count: int) -> NDArray[np.float64]:
        """Sums of the squares of something in the weight's shape, by channel."""
        index = np.broadcast_to(self.channels, squares.shape).reshape(-1)
        return np.bincount(index, squares.reshape(-1).astype(np.float64), count).astype(np.float64)

    def peaks(self, count: int) -> NDArray[np.float32]:
        """The largest absolute value that each channel is multiplied by."""
        found = np.zeros(count, np.float32)
        np.maximum.at(found, np.broadcast_to(self.channels, self.weight.shape), np.abs(self.weight))
        return found

    def lost(self, factors: Array, peaks: Array, powers: Array) -> float:
        """Noise over signal power of the product, as the formula above has it."""
        form = formats.get(self.operand.format)
        peak = np.float32(np.max(peaks / factors, initial=0))
        step = float(form.smallest_subnormal) * float(scale_from_amax(peak, form))
        own = self.powers(np.square(self.weight), len(factors))
        signal = float(np.sum(powers * own))
        if signal <= 0:
            return 0.0
        spread = factors[self.channels].astype(np.float32)
        error = self._error(self.weight * spread) / spread
        rounding = np.minimum(relative(form) * powers + np.square(factors * step) / 12, powers)
        noise = float(np.sum(own * rounding))
        return (noise + float(np.sum(powers * self.powers(np.square(error), len(factors))))) / signal

    def _error(self, weight: Array) -> Array:
        form, granularity = formats.get(self.rounded.format), self.rounded.granularity
        scale = np.asarray(scales_of_weight(weight, self.rounded).effective, np.float32)
        return cast.decode(cast.encode(weight, form, scale, granularity), form, scale, granularity) - weight


def relative(form: Format) -> float:
    """The mean squared relative rounding error of a floating format, over an octave of equally likely logarithms:
    2^(-2 mantissa bits) / 12 * 3 / (8 ln 2); 0 of integers."""
    return 0.0 if form.kind == "int" else 4.0**-form.mantissa / 12 * 3 / (8 * math.log(2))
