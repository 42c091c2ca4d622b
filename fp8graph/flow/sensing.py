"""Measuring what single quantized operands cost: one session with switches, several runs at a time."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fp8graph.base.progress import stage
from fp8graph.calibrate.samples import Samples
from fp8graph.core.switches import Switched, switched
from fp8graph.data.plan import Plan
from fp8graph.flow.judging import Metric, called, carried_out
from fp8graph.runners.base import Feeds, Outputs
from fp8graph.runners.reference import reference
from fp8graph.search.sensitivity import RUN_COST, Operand, Ranking, rank

if TYPE_CHECKING:
    from fp8graph.flow.job import Job

log = logging.getLogger(__name__)
_WORKERS = min(os.cpu_count() or 1, 4)


def sense(
    job: Job, plan: Plan, feeds: Samples, metric: Metric, *, exact: bool = False, jobs: int | None = None
) -> tuple[Ranking, tuple[str, ...]]:
    """The ops of a settled plan by what they cost on the samples, and those that cannot be switched.

    Costs of `sqnr` are noise over signal power, the mean over the outputs: they add up.
    """
    made = switched(job.normalized, carried_out(job, plan), plan)
    operands = [Operand(item.key, item.slot, item.name, item.weight) for item in made.switches]
    if not operands:
        return Ranking((), 0, 0.0, 0, 0, exact), made.missing
    count = feeds.count if feeds.count is not None else sum(1 for _ in feeds)
    bench = _Bench(job, made, feeds, metric, jobs or _WORKERS)
    convs = sum(plan.ops[item.key].op_type.startswith("Conv") for item in operands)
    kind = "conv" if 2 * convs >= len(operands) else "other"
    ranking = rank(operands, count, bench.measure, run_cost=RUN_COST[kind], exact=exact)
    log.info("sensitivity: %d runs on %d of %d samples", ranking.runs, ranking.seen, count)
    return ranking, made.missing


class _Bench:
    """The session with its switches."""

    def __init__(self, job: Job, made: Switched, feeds: Samples, metric: Metric, jobs: int) -> None:
        self._runner = reference(made.model, job.reading.libraries, job.reading.providers)
        self._off = {item.name: np.array(False) for item in made.switches}
        self._feeds, self._metric, self._jobs, self._progress = feeds, metric, jobs, job.progress

    def measure(self, active: Sequence[frozenset[str]], chosen: Sequence[int]) -> list[float]:
        """The cost of each set of switches, over the samples with these indices."""
        sums = [_Sums(self._metric) for _ in active]
        wanted = set(chosen)
        with (
            stage(self._progress, "measuring", len(chosen) * (len(active) + 1), "runs"),
            ThreadPoolExecutor(self._jobs) as pool,
        ):
            for index, feed in enumerate(self._feeds):
                if index not in wanted:
                    continue
                before = self._run(feed, frozenset())
                for total, after in zip(
                    sums, pool.map(lambda on, feed=feed: self._run(feed, on), active), strict=True  # type: ignore[misc]
                ):
                    total.add(feed, before, after)
                    self._progress.step()
                self._progress.step()
        return [total.cost for total in sums]

    def _run(self, feed: Feeds, on: frozenset[str]) -> Outputs:
        return self._runner.run({**feed, **self._off, **{name: np.array(True) for name in on}})


@dataclass
class _Sums:
    """What the outputs with some switches on have lost, sample by sample."""

    metric: Metric
    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    other: dict[str, float] = field(default_factory=dict)  # power of the second, for cosine
    largest: float = 0.0
    pairs: list[tuple[Feeds, Outputs, Outputs]] = field(default_factory=list)

    def add(self, feed: Feeds, before: Outputs, after: Outputs) -> None:
        """One sample."""
        if self.metric.function is not None:
            self.pairs.append((feed, before, after))
            return
        for name, left in before.items():
            right: Any = after[name]
            if not isinstance(left, np.ndarray) or left.dtype.kind not in "fV" or left.shape != right.shape:
                continue
            one, two = left.astype(np.float32, copy=False), right.astype(np.float32, copy=False)
            difference = two - one
            self.signal[name] = self.signal.get(name, 0.0) + _power(one)
            self.noise[name] = self.noise.get(name, 0.0) + _power(difference)
            if self.metric.kind == "cosine":
                self.other[name] = self.other.get(name, 0.0) + _power(two)
            if self.metric.kind == "max-abs":
                self.largest = max(self.largest, float(np.max(np.abs(difference), initial=0.0)))

    @property
    def cost(self) -> float:
        """What was lost by the metric: more for worse."""
        if self.metric.function is not None:
            name, call = self.metric.name, self.metric.function
            before = called(call, ((feed, left) for feed, left, _ in self.pairs), name)
            return before - called(call, ((feed, right) for feed, _, right in self.pairs), name)
        if not self.noise:
            return 0.0
        if self.metric.kind == "max-abs":
            return self.largest
        if self.metric.kind == "cosine":
            return max(self._angle(name) for name in self.noise)
        parts = [_ratio(noise, self.signal[name]) for name, noise in self.noise.items()]
        return sum(parts) / len(parts)

    def _angle(self, name: str) -> float:
        """1 - cosine, from |a|^2, |b|^2 and |a - b|^2."""
        one, two, apart = self.signal[name], self.other[name], self.noise[name]
        length = math.sqrt(one * two)
        return max(0.0, 1 - (one + two - apart) / (2 * length)) if length > 0 else float(apart > 0)


def _power(array: np.ndarray[Any, Any]) -> float:
    # not np.dot: BLAS adds in an order that depends on its threads
    with np.errstate(all="ignore"):
        total = float(np.sum(array * array, dtype=np.float64))
    return total if math.isfinite(total) else math.inf


def _ratio(noise: float, signal: float) -> float:
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 and math.isfinite(signal) else math.inf
