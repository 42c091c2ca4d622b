"""From what is known of a tensor to the magnitude that is to become the largest value of its format."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fp8graph import formats
from fp8graph.data.method import Method
from fp8graph.data.plan import Quant
from fp8graph.formats.spec import Format, Granularity, ScaleFormat
from fp8graph.numerics.entropy import least_divergence
from fp8graph.numerics.mse import least_squares, weight_peaks
from fp8graph.numerics.percentile import percentile
from fp8graph.numerics.ranges import Stat
from fp8graph.numerics.scale import StoredScales, channel_amax, store_scales

_POWERS = ScaleFormat("e8m0", "max")


def peaks_of_weight(
    weight: NDArray[np.generic], granularity: Granularity, form: Format, rule: str
) -> NDArray[np.float32]:
    """The same of a weight, for each of its scales: float32 in the shape of the scale.

    rule   `mse`: that with the least squared error; any other: the largest magnitude, which is also what a weight
           gives that is not finite
    """
    amax = channel_amax(weight, granularity)
    return weight_peaks(weight, granularity, form) if rule == "mse" and np.isfinite(amax).all() else amax


def scales_of_weight(weight: NDArray[np.generic], quant: Quant) -> StoredScales:
    """The scales that a plan has computed from a weight: by its rule, stored as it says. ValueError where the weight is
    not finite."""
    form = formats.get(quant.format)
    peaks = peaks_of_weight(weight, quant.granularity, form, quant.scale.rule)
    return store_scales(peaks, form, quant.scale.stored)


def peak_of(stat: Stat, method: Method, form: Format) -> float:
    """The magnitude that `scale_from_amax` makes a scale of, finite and not negative.

    stat   finite, and with a histogram where the method counts; else this is ValueError
    """
    amax = stat.amax or 0.0
    if method.counts and amax:
        if stat.histogram is None:
            raise ValueError(f"'{method.text}' reads counts of values, and there are none")
        seen = stat.histogram.magnitudes()
        if method.name == "percentile":
            amax = min(percentile(seen.within(amax), method.share), amax) or amax
        else:
            amax = (least_squares if method.name == "mse" else least_divergence)(seen, amax, form)
    elif method.name == "pow2" and amax:
        amax = float(store_scales(np.float32(amax), form, _POWERS).effective) * float(form.max)
    return min(amax * method.headroom, float(np.finfo(np.float32).max))
