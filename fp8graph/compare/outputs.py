"""Runs two models on the same feeds and measures how far their outputs lie apart."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from fp8graph.base.errors import InputError
from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.data.comparison import Comparison, OutputDifference
from fp8graph.numerics.error import ErrorSums
from fp8graph.runners.base import Outputs, Runner

_WORKERS = min(os.cpu_count() or 1, 4)


def compare_outputs(
    a: Runner, b: Runner, feeds: Any, *, count: int | None = None, progress: Progress = SILENT
) -> Comparison:
    """The difference of B from A, output by output, over all feeds.

    Only outputs that both have are measured; those that are missing in B, of another shape or type, or that hold a
    NaN or an infinity where A holds none, are listed as problems. Raises InputError FG107 without a feed.
    """
    sums: dict[str, ErrorSums] = {name: ErrorSums() for name in a.outputs if name in b.outputs}
    equal = dict.fromkeys(sums, True)
    problems = [f"the output '{name}' is missing" for name in a.outputs if name not in b.outputs]
    floating: dict[str, bool] = {}
    samples = 0
    with stage(progress, "comparing", count, "samples"), ThreadPoolExecutor(_WORKERS) as pool:
        for left, right in _pairs(pool, a, b, feeds):
            samples += 1
            for name in sums:
                _add(name, left[name], right[name], sums[name], equal, floating, problems)
            progress.step()
    if not samples:
        raise InputError("there is no sample to compare on", code="FG107", do="give --data with samples")
    outputs = {name: _difference(total, equal[name], floating.get(name, False)) for name, total in sums.items()}
    for name, item in outputs.items():
        if item.new_nonfinite:
            problems.append(
                f"the output '{name}' holds {item.new_nonfinite} NaN or infinite values where there were none"
            )
    return Comparison(outputs, samples, tuple(dict.fromkeys(problems)))


def _pairs(pool: ThreadPoolExecutor, a: Runner, b: Runner, feeds: Any) -> Iterator[tuple[Outputs, Outputs]]:
    def both(feed: Any) -> tuple[Outputs, Outputs]:
        return a.run(feed), b.run(feed)

    waiting: deque[Future[tuple[Outputs, Outputs]]] = deque()
    for feed in feeds:
        waiting.append(pool.submit(both, feed))
        if len(waiting) > _WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _add(
    name: str,
    left: Any,
    right: Any,
    total: ErrorSums,
    equal: dict[str, bool],
    floating: dict[str, bool],
    problems: list[str],
) -> None:
    before, after = _parts(left), _parts(right)
    if len(before) != len(after):
        problems.append(f"the output '{name}' has {len(after)} parts, it had {len(before)}")
        equal[name] = False
    for left, right in zip(before, after, strict=False):
        _add_array(name, left, right, total, equal, floating, problems)


def _parts(value: Any) -> list[np.ndarray[Any, Any]]:
    """The arrays of an output: one of a tensor, several of a sequence, none of an empty optional; keys are texts."""
    if isinstance(value, dict):
        keys = sorted(value)
        return [np.asarray([str(key) for key in keys]), np.asarray([value[key] for key in keys])]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in _parts(item)]
    return [] if value is None else [np.asarray(value)]


def _add_array(
    name: str,
    left: np.ndarray[Any, Any],
    right: np.ndarray[Any, Any],
    total: ErrorSums,
    equal: dict[str, bool],
    floating: dict[str, bool],
    problems: list[str],
) -> None:
    texts = left.dtype.kind in "US" and right.dtype.kind in "US"  # their dtype says how long the longest is
    if (left.dtype != right.dtype and not texts) or left.shape != right.shape:
        problems.append(
            f"the output '{name}' is {right.dtype}{list(right.shape)}, it was {left.dtype}{list(left.shape)}"
        )
        equal[name] = False
        return
    if left.dtype.kind in "OUS":
        equal[name] = equal[name] and bool((left == right).all())
        return
    floating[name] = left.dtype.kind not in "iub"
    equal[name] = equal[name] and bool(np.array_equal(left, right, equal_nan=floating[name]))
    total.add(left, right)


def _difference(total: ErrorSums, equal: bool, floating: bool) -> OutputDifference:
    sqnr = total.sqnr_db if floating and total.count else None
    cosine, max_abs = (total.cosine, total.max_abs) if total.count else (None, None)
    return OutputDifference(
        sqnr_db=sqnr if sqnr is not None and math.isfinite(sqnr) else None,
        cosine=cosine if floating and cosine is not None and math.isfinite(cosine) else None,
        max_abs=max_abs if max_abs is not None and math.isfinite(max_abs) else None,
        new_nonfinite=total.new_nonfinite,
        equal=equal,
    )
