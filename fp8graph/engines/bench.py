"""How fast an engine is on the device, and whether another one is faster: rounds in turn, and a bound on the noise.

A round measures A, then B (the next one B, then A), each with the same number of runs; its speedup is the ratio of the
two medians. So whatever changes slowly (clocks, temperature, other work) hits both. The bound is the interval that
holds the median speedup with 95 % confidence, by order statistics: no distribution is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.runners.base import Feeds

_CONFIDENCE = 0.95
LEAST_ROUNDS = 6  # with fewer the interval is wider than all that was seen
_ROUND_MS, _LEAST_RUNS, _MOST_RUNS, _WARM_UP = 200.0, 10, 1000, 10


class Timed(Protocol):
    """What can be measured: `runners.engine.Engine`."""

    def latencies_ms(self, feeds: Feeds, runs: int, warm_up: int = 0) -> list[float]:
        """Milliseconds of each run."""


@dataclass(frozen=True)
class Timing:
    """One engine over all rounds; times are those of the device, without copies.

    runs_per_s   runs after one another, what 1 / the mean latency gives
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    runs_per_s: float
    runs: int

    def to_json(self) -> dict[str, float | int]:
        """The timing as a document's part."""
        return {**self.__dict__}


@dataclass(frozen=True)
class Benchmark:
    """A, and where there is one B with its speedup over A: `low` and `high` bound it with 95 % confidence."""

    a: Timing
    b: Timing | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None

    def faster_by(self, least: float) -> bool:
        """Whether B is at least `least` times as fast as A, noise included."""
        return self.low is not None and self.low >= least

    def to_json(self) -> dict[str, Any]:
        """The benchmark as a document's part."""
        speedup = {"median": self.speedup, "low": self.low, "high": self.high} if self.b is not None else None
        return {"a": self.a.to_json(), "b": self.b.to_json() if self.b is not None else None, "speedup": speedup}


def bench(
    a: Timed,
    b: Timed | None,
    feeds: Sequence[Feeds],
    *,
    rounds: int = 11,
    progress: Progress = SILENT,
) -> Benchmark:
    """Measures A, and B against A. `feeds`: those of A, and of B where there is one."""
    sides = [a] if b is None else [a, b]
    counts = [_runs(side, feed) for side, feed in zip(sides, feeds, strict=True)]
    found: list[list[list[float]]] = [[] for _ in sides]
    with stage(progress, "measuring", rounds, "rounds"):
        for index in range(rounds):
            order = range(len(sides)) if index % 2 == 0 else reversed(range(len(sides)))
            for side in order:
                found[side].append(sides[side].latencies_ms(feeds[side], counts[side], warm_up=2))
            progress.step()
    timings = [_timing(rows) for rows in found]
    if b is None:
        return Benchmark(timings[0])
    ratios = [float(np.median(x) / np.median(y)) for x, y in zip(*found, strict=True)]
    low, high = interval(ratios)
    return Benchmark(timings[0], timings[1], float(np.median(ratios)), low, high)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median with 95 % confidence; all that was seen for few."""
    ordered, n = sorted(values), len(values)
    rank, outside = 0, 0.0
    while rank < n // 2:
        outside += 2 * math.comb(n, rank) / 2**n  # fewer than rank + 1 of n values lie beyond the median
        if outside > 1 - _CONFIDENCE:
            break
        rank += 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[n - rank]


def random_feeds(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]], seed: int = 0) -> Feeds:
    """Seeded normal numbers, zeros for integers and booleans (which may be indices): time does not depend on them."""
    random = np.random.default_rng(seed)
    feeds = {}
    for name, shape in shapes.items():
        plain = np.issubdtype(dtypes[name], np.integer) or dtypes[name] == np.bool_
        feeds[name] = np.zeros(shape, dtypes[name]) if plain else random.normal(size=shape).astype(dtypes[name])
    return feeds


def _runs(side: Timed, feeds: Feeds) -> int:
    """How many runs a round takes. Warms up on the way: the first runs compile or choose kernels."""
    usual = float(np.median(side.latencies_ms(feeds, _WARM_UP, warm_up=_WARM_UP)))
    return int(min(max(_ROUND_MS / max(usual, 1e-3), _LEAST_RUNS), _MOST_RUNS))


def _timing(rounds: Sequence[Sequence[float]]) -> Timing:
    every = np.concatenate([np.asarray(row) for row in rounds])
    median, p90, p99 = (float(np.quantile(every, q)) for q in (0.5, 0.9, 0.99))
    return Timing(median, p90, p99, float(1000 / every.mean()), every.size)
