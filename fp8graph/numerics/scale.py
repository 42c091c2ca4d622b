"""Scale rules: from the largest absolute value of a tensor to the fp32 number that Q and DQ divide and multiply by.

Plain amax is the rule. Measured over sixteen distributions it stays within 0.7 dB of the scale with the least squared
error, while percentiles lose up to 34 dB on heavy tails: a float format needs no help against outliers, and saturation
is what hurts. Scales are fp32 always: a fp16 scale is zero or imprecise for tensors of small range.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fp8graph.formats.spec import Format, Granularity
from fp8graph.numerics.cast import check_source, tiles

# Below 2^-126 fp32 is subnormal: amax / max loses bits there and ends at 0, and x / 0 is no code at all.
SMALLEST_SCALE = np.float32(2.0**-126)


def scale_from_amax(amax: ArrayLike, format: Format) -> np.float32 | NDArray[np.float32]:
    """The scale that maps `amax` to the largest value of `format`: fl32(amax / max).

    amax     a number or an array, in absolute values; taken as fp32
    returns  np.float32 for a number, else float32 in the shape of `amax`; positive and normal always

    Two repairs, both for degenerate tensors: amax 0 (all zeros; 0/0 would be NaN) gives 1.0, and a scale below 2^-126
    is raised to it. Rounding may put amax / scale just above the largest value; encoding saturates, so nothing is lost.
    Raises ValueError for an amax that is negative, infinite or NaN, in itself or once in fp32, and for a format whose
    largest value is not a fp32 number.
    """
    with np.errstate(all="ignore"):
        peak = np.asarray(amax).astype(np.float32)
        if not bool(np.all(np.isfinite(peak) & (peak >= 0))):
            raise ValueError(f"amax must be finite and not negative, got {_first_unfit(peak)}")
        largest = np.float32(float(format.max))
        if Fraction(float(largest)) != format.max:
            raise ValueError(f"format {format.name}: the largest value {format.max} is not a fp32 number")
        scale = np.maximum(peak / largest, SMALLEST_SCALE)
    scale = np.where(peak == 0, np.float32(1), scale)
    return np.float32(scale[()]) if scale.ndim == 0 else scale


def channel_amax(weight: NDArray[np.generic], granularity: Granularity) -> NDArray[np.float32]:
    """The largest absolute value under each scale: float32 in the shape of the scale.

        PerTensor()   [64, 3, 7, 7] -> []
        PerAxis(0)    [64, 3, 7, 7] -> [64]

    weight  float32, float16 or bfloat16, any strides; read once, block by block, so that a mapped file stays mapped

    Exact. Empty blocks give 0. A NaN gives NaN and an infinity infinity, which `scale_from_amax` refuses. Raises
    ValueError for other types and for an axis that `weight` does not have.
    """
    weight = check_source(weight)
    shape = granularity.broadcast_shape(weight.shape)
    amax = np.zeros(shape or (1,) * max(weight.ndim, 1), np.float32)
    source = weight if weight.ndim else weight.reshape(1)
    axes = tuple(axis for axis, size in enumerate(amax.shape) if size == 1)
    # a scale axis of length 1 is among `axes`: reducing over it is the same
    for tile in tiles(source.shape):
        with np.errstate(invalid="ignore"):  # widening a signalling NaN
            block = source[tile].astype(np.float32, copy=False)
        part = tuple(slice(None) if axis in axes else tile[axis] for axis in range(amax.ndim))
        # max and -min instead of abs: no array of the block's size is written
        high, low = block.max(axis=axes, keepdims=True), block.min(axis=axes, keepdims=True)
        amax[part] = np.maximum(amax[part], np.maximum(high, -low))
    # abs: the maximum of 0 and -0 is either
    return np.abs(amax).reshape(granularity.scale_shape(weight.shape))


def _first_unfit(peak: NDArray[np.float32]) -> str:
    """Where and what the first refused value is."""
    flat = peak.reshape(-1)
    index = int(np.flatnonzero(~(np.isfinite(flat) & (flat >= 0)))[0])
    return f"{flat[index]}" + (f" at index {index}" if peak.ndim else "")
