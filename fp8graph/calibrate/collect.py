"""Observing tensors: one session, several feeds at a time, statistics that merge exactly in any order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor

import onnx_ir as ir

from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.calibrate.samples import Samples
from fp8graph.calibrate.view import View, shape_of
from fp8graph.data.plan import Profile
from fp8graph.graph.stages import Normalized
from fp8graph.numerics.ranges import Need, Ranges, Stat, joined

# Feeds in flight: one per core, so that memory holds the observed tensors of so many.
_WORKERS = min(os.cpu_count() or 1, 4)


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def collect(
    model: Normalized,
    needs: Sequence[str | Need],
    samples: Samples,
    source: str,
    progress: Progress = SILENT,
    libraries: Sequence[str] = (),
    providers: Sequence[str] = (),
    partial: Callable[[Ranges], None] | None = None,
) -> Ranges:
    """Runs the samples once and returns the statistics that `needs` name, and the extremes of float outputs.

    One intra-op thread computes each feed, so the numbers do not depend on load or thread count; ranges merge
    exactly, so they do not depend on the order either. Tensors that no sample computes have a count of 0: what is
    missing in the result was not asked for.

    partial   gets the ranges of the samples so far, which are the first ones, where Ctrl-C ends the run
    """
    floats = [
        v.name for v in model.model.graph.outputs if isinstance(v.type, ir.TensorType) and v.dtype in _FLOATS and v.name
    ]
    wanted = joined(needs)
    view = View(model.model, joined([*wanted, *floats]), source, samples.label, libraries, providers)
    ranges = Ranges(source=source, data=samples.label, values={need.tensor: Stat() for need in wanted})
    with stage(progress, "calibrating", samples.count, "samples"), ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for part in _in_order(pool, view, samples):
                ranges = ranges.merge(part)
                progress.step()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            if partial is not None:
                partial(ranges)
            raise
    return ranges


def _in_order(pool: ThreadPoolExecutor, view: View, samples: Samples) -> Iterator[Ranges]:
    waiting: deque[Future[Ranges]] = deque()
    for index, feed in enumerate(samples):
        waiting.append(pool.submit(view.observe, index, feed))
        if len(waiting) > _WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def profiles(samples: Samples, valued: Set[str] = frozenset()) -> dict[str, Profile]:
    """For each input the least, the most frequent and the largest shape; axis by axis where feeds differ in several.

    Of inputs in `valued`, which are read as shapes themselves, it is the values.
    """
    seen: dict[str, dict[tuple[int, ...], int]] = {}
    for feed in samples:
        for name, array in feed.items():
            shapes = seen.setdefault(name, {})
            shape = shape_of(name, array, valued)
            shapes[shape] = shapes.get(shape, 0) + 1
    return profiles_of(seen)


def profiles_of(seen: Mapping[str, Mapping[tuple[int, ...], int]]) -> dict[str, Profile]:
    """The same from counts of shapes, as ranges hold them."""
    return {name: _profile(shapes) for name, shapes in seen.items() if shapes}


def _profile(shapes: Mapping[tuple[int, ...], int]) -> Profile:
    usual = max(sorted(shapes), key=lambda shape: shapes[shape])
    same = [shape for shape in shapes if len(shape) == len(usual)]
    return Profile(
        tuple(min(sizes) for sizes in zip(*same, strict=True)),
        usual,
        tuple(max(sizes) for sizes in zip(*same, strict=True)),
    )
