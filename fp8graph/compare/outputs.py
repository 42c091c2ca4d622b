"""Runs two models on the same feeds and measures how far their outputs lie apart."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fp8graph.base.errors import InputError
from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.compare.tolerance import Judge, Tolerance
from fp8graph.data.comparison import Comparison, OutputDifference
from fp8graph.numerics.error import ErrorSums
from fp8graph.runners.base import Feeds, Outputs, Runner

_WORKERS = min(os.cpu_count() or 1, 4)


def compare_outputs(
    a: Runner,
    b: Runner,
    feeds: Any,
    *,
    count: int | None = None,
    progress: Progress = SILENT,
    tolerance: Tolerance | None = None,
    keep: Callable[[Feeds, Outputs], None] | None = None,
) -> Comparison:
    """The difference of B from A, output by output, over all feeds.

    Only outputs that both have are measured; those that are missing in B, of another shape or type, or that hold a
    NaN or an infinity where A holds none, are listed as problems.

    tolerance  what the outputs are held to; where it does not hold, `missed` says so
    keep       gets each feed with A's outputs, in order

    Raises InputError FG107 without a feed, UsageError FG101 for a bound of an unknown output.
    """
    names = [name for name in a.outputs if name in b.outputs]
    judge = Judge(tolerance if tolerance is not None else Tolerance())
    judge.tolerance.check(names)
    found = _Found({name: ErrorSums() for name in names}, dict.fromkeys(names, True), judge)
    found.problems += [f"the output '{name}' is missing" for name in a.outputs if name not in b.outputs]
    samples = 0
    with stage(progress, "comparing", count, "samples"), ThreadPoolExecutor(_WORKERS) as pool:
        for feed, left, right in _pairs(pool, a, b, feeds):
            for name in names:
                found.add(samples, name, left[name], right[name])
            if keep is not None:
                keep(feed, left)
            samples += 1
            progress.step()
    if not samples:
        raise InputError("there is no sample to compare on", code="FG107", do="give --data with samples")
    outputs = {
        name: difference(total, equal=found.equal[name], floating=found.floating.get(name, False))
        for name, total in found.sums.items()
    }
    problems = list(found.problems)
    for name, item in outputs.items():
        if item.new_nonfinite:
            problems.append(
                f"the output '{name}' holds {item.new_nonfinite} NaN or infinite values where there were none"
            )
    done = Comparison(outputs, samples, tuple(dict.fromkeys(problems)))
    return replace(done, missed=judge.missed(done))


def _pairs(pool: ThreadPoolExecutor, a: Runner, b: Runner, feeds: Any) -> Iterator[tuple[Feeds, Outputs, Outputs]]:
    def both(feed: Feeds) -> tuple[Feeds, Outputs, Outputs]:
        return feed, a.run(feed), b.run(feed)

    waiting: deque[Future[tuple[Feeds, Outputs, Outputs]]] = deque()
    for feed in feeds:
        waiting.append(pool.submit(both, feed))
        if len(waiting) > _WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass
class _Found:
    """What the samples have told so far, by output."""

    sums: dict[str, ErrorSums]
    equal: dict[str, bool]
    judge: Judge
    floating: dict[str, bool] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, sample: int, name: str, left: Any, right: Any) -> None:
        """Takes in one output of one sample."""
        before, after = _parts(left), _parts(right)
        if len(before) != len(after):
            self.problems.append(f"the output '{name}' has {len(after)} parts, it had {len(before)}")
            self.equal[name] = False
        for one, other in zip(before, after, strict=False):
            self._add_array(sample, name, one, other)

    def _add_array(self, sample: int, name: str, left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> None:
        texts = left.dtype.kind in "OUS" and right.dtype.kind in "OUS"  # their dtype says how long the longest is
        if (left.dtype != right.dtype and not texts) or left.shape != right.shape:
            self.problems.append(
                f"the output '{name}' is {right.dtype}{list(right.shape)}, it was {left.dtype}{list(left.shape)}"
            )
            self.equal[name] = False
            return
        self.judge.add(sample, name, left, right)
        if left.dtype.kind in "OUS":
            self.equal[name] = self.equal[name] and bool((left == right).all())
            return
        self.floating[name] = left.dtype.kind not in "iub"
        self.equal[name] = self.equal[name] and bool(np.array_equal(left, right, equal_nan=self.floating[name]))
        self.sums[name].add(left, right)


def _parts(value: Any) -> list[np.ndarray[Any, Any]]:
    """The arrays of an output: one of a tensor, several of a sequence, none of an empty optional; keys are texts."""
    if isinstance(value, dict):
        keys = sorted(value)
        return [np.asarray([str(key) for key in keys]), np.asarray([value[key] for key in keys])]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in _parts(item)]
    return [] if value is None else [np.asarray(value)]


def difference(total: ErrorSums, *, equal: bool, floating: bool) -> OutputDifference:
    """What the sums say, without numbers that no document holds."""
    sqnr = total.sqnr_db if floating and total.count else None
    cosine, max_abs = (total.cosine, total.max_abs) if total.count else (None, None)
    return OutputDifference(
        sqnr_db=sqnr if sqnr is not None and math.isfinite(sqnr) else None,
        cosine=cosine if floating and cosine is not None and math.isfinite(cosine) else None,
        max_abs=max_abs if max_abs is not None and math.isfinite(max_abs) else None,
        new_nonfinite=total.new_nonfinite,
        equal=equal,
    )
