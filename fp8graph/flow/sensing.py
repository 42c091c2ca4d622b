"""Measuring what single quantized operands cost: one session with switches, several runs at a time."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fp8graph.base.progress import stage
from fp8graph.calibrate.samples import Samples
from fp8graph.core.switches import Switched, switched
from fp8graph.core.tails import Tail, starts, tails
from fp8graph.data.plan import Plan
from fp8graph.engines.sizes import op_sizes
from fp8graph.flow.judging import Metric, called, carried_out, power
from fp8graph.graph.save import weight_bytes
from fp8graph.runners.base import Feeds, Outputs, Runner
from fp8graph.runners.reference import reference
from fp8graph.search.sensitivity import RUN_COST, Operand, Ranking, rank

if TYPE_CHECKING:
    from fp8graph.flow.job import Job

log = logging.getLogger(__name__)
_WORKERS = min(os.cpu_count() or 1, 4)
# Ends of the model that have sessions of their own, where its weights are less than this: each holds a part of them.
_TAILS, _SMALL = 4, 1_000_000_000


def sense(
    job: Job,
    plan: Plan,
    feeds: Samples,
    metric: Metric,
    *,
    exact: bool = False,
    operands: bool = False,
    jobs: int | None = None,
) -> tuple[Ranking, tuple[str, ...]]:
    """The ops of a settled plan by what they cost on the samples, and those that cannot be switched.

    exact     each op and each operand on all samples
    operands  each operand on the few samples that are affordable, whatever that costs
    jobs      runs at a time

    Costs of `sqnr` are noise over signal power, the mean over the outputs: they add up.
    """
    sizes = op_sizes(job.normalized.model, plan.shapes)
    made = switched(job.moved(plan), carried_out(job, plan, folded=False), plan)
    if not made.switches:
        return Ranking((), 0, 0.0, 0, 0, exact), made.missing
    count = feeds.count if feeds.count is not None else sum(1 for _ in feeds)
    work = {key: float(macs or 0) for key, (macs, _) in sizes.items()}
    bench = _Bench(job, made, feeds, metric, jobs or _WORKERS, work)
    every = [Operand(item.key, item.slot, item.name, item.weight, bench.share(item.name)) for item in made.switches]
    convs = sum(plan.ops[item.key].op_type.startswith("Conv") for item in every)
    kind = "conv" if 2 * convs >= len(every) else "other"
    ranking = rank(
        every,
        count,
        bench.measure,
        run_cost=RUN_COST[kind],
        exact=exact,
        split=operands,
        additive=metric.kind == "sqnr",
    )
    log.info("sensitivity: %d runs on %d of %d samples", ranking.runs, ranking.seen, count)
    return ranking, made.missing


class _Bench:
    """The session with its switches, and those of its ends: what lies before an op need not run again for it."""

    def __init__(
        self, job: Job, made: Switched, feeds: Samples, metric: Metric, jobs: int, work: Mapping[str, float]
    ) -> None:
        how = job.reading.libraries, job.reading.providers
        self._off = {item.name: np.array(False) for item in made.switches}
        self._feeds, self._metric, self._jobs, self._progress = feeds, metric, jobs, job.progress
        small = weight_bytes(made.model) < _SMALL
        self._starts = starts(made.model)
        # An op that the main graph does not compute (in a body) runs from the begin, as does whatever lies before it.
        found = tails(made.model, work, _TAILS) if small else []
        self._tails = [(tail, reference(tail.model, *how)) for tail in found]
        self._fed = {id(tail): {value.name or "" for value in tail.model.graph.inputs} for tail in found}
        values = {value.name: value for node in made.model.graph for value in node.outputs}
        have = {value.name for value in made.model.graph.outputs}
        live = dict.fromkeys(name for tail in found for name in tail.inputs if name not in have)
        self._names = sorted(name for name in have if name)
        made.model.graph.outputs.extend(values[name] for name in live)
        self._runner = reference(made.model, *how)

    def share(self, name: str) -> float:
        """The part of the model that runs where a switch is on, 0 to 1."""
        tail = self._tail({name})
        return 1.0 if tail is None else tail[0].share

    def _tail(self, on: Collection[str]) -> tuple[Tail, Runner] | None:
        """The shortest end that holds all switches which are on."""
        first = min((self._starts.get(name, 0) for name in on), default=0)
        return max((item for item in self._tails if item[0].start <= first), key=lambda i: i[0].start, default=None)

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
                every = self._runner.run({**feed, **self._off})
                before = {name: every[name] for name in self._names}
                runs = (pool.submit(self._run, feed, every, on) for on in active)
                for total, run in zip(sums, list(runs), strict=True):
                    total.add(feed, before, {**before, **run.result()})
                    self._progress.step()
                self._progress.step()
        return [total.cost for total in sums]

    def _run(self, feed: Feeds, every: Outputs, on: Collection[str]) -> Outputs:
        tail = self._tail(on)
        switches = self._off | {name: np.array(True) for name in on}
        if tail is None:
            found = self._runner.run({**feed, **switches})
            return {name: found[name] for name in self._names}
        given = {**every, **feed, **switches}
        return tail[1].run({name: given[name] for name in self._fed[id(tail[0])] if name in given})


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
            self.signal[name] = self.signal.get(name, 0.0) + power(one)
            self.noise[name] = self.noise.get(name, 0.0) + power(difference)
            if self.metric.kind == "cosine":
                self.other[name] = self.other.get(name, 0.0) + power(two)
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


def _ratio(noise: float, signal: float) -> float:
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 and math.isfinite(signal) else math.inf
