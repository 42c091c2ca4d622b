"""The magnitude below which a share of all values lies, from counts of them."""

from __future__ import annotations

import numpy as np

from fp8graph.numerics.histogram import Magnitudes


def percentile(seen: Magnitudes, share: float) -> float:
    """As `numpy.percentile` of the absolute values, zeros among them, to within a bin (1/16); `share` in percent.

    0 where at least so many values are zero.
    """
    above = np.cumsum(seen.counts) + seen.zeros
    total = int(above[-1]) if above.size else seen.zeros
    rank = share / 100 * total
    if not above.size or rank <= seen.zeros:
        return 0.0
    index = min(int(np.searchsorted(above, rank)), above.size - 1)
    inside = (rank - (above[index] - seen.counts[index])) / seen.counts[index]
    low, high = float(seen.low[index]), float(seen.high[index])
    return low + (high - low) * min(max(float(inside), 0.0), 1.0)
