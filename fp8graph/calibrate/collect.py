"""Observing tensors: one session, several feeds at a time, statistics that merge exactly in any order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.base.errors import BackendError
from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.calibrate import bodies
from fp8graph.calibrate.samples import Samples
from fp8graph.data.plan import Profile
from fp8graph.graph import walk
from fp8graph.graph.stages import Normalized
from fp8graph.numerics.ranges import Ranges, Stat
from fp8graph.runners.onnxruntime import OnnxRuntime

# Feeds in flight: one per core, so that memory holds the observed tensors of so many.
_WORKERS = min(os.cpu_count() or 1, 4)


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def collect(
    model: Normalized,
    needs: Sequence[str],
    samples: Samples,
    source: str,
    progress: Progress = SILENT,
    libraries: Sequence[str] = (),
    providers: Sequence[str] = (),
    partial: Callable[[Ranges], None] | None = None,
) -> Ranges:
    """Runs the samples once and returns the range of each tensor of `needs` (scope and name), and of float outputs.

    One intra-op thread computes each feed, so the numbers do not depend on load or thread count; ranges merge
    exactly, so they do not depend on the order either. Tensors that no sample computes have a count of 0: what is
    missing in the result was not asked for.

    partial   gets the ranges of the samples so far, which are the first ones, where Ctrl-C ends the run
    """
    floats = [
        v.name for v in model.model.graph.outputs if isinstance(v.type, ir.TensorType) and v.dtype in _FLOATS and v.name
    ]
    view = _View(model.model, list(dict.fromkeys([*needs, *floats])), source, samples.label, libraries, providers)
    ranges = Ranges(source=source, data=samples.label, values=dict.fromkeys(needs, Stat()))
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


def _in_order(pool: ThreadPoolExecutor, view: _View, samples: Samples) -> Iterator[Ranges]:
    waiting: deque[Future[Ranges]] = deque()
    for index, feed in enumerate(samples):
        waiting.append(pool.submit(view.observe, index, feed))
        if len(waiting) > _WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _View:
    """The model with outputs for what is to be observed: inner tensors as they are, body tensors by their ranges."""

    def __init__(
        self,
        model: ir.Model,
        needs: Sequence[str],
        source: str,
        label: str,
        libraries: Sequence[str],
        providers: Sequence[str],
    ) -> None:
        self.source, self.label = source, label
        self.valued = walk.shape_inputs(model)
        work = model.clone()
        inner = {value.name: value for node in work.graph for value in node.outputs if value.name}
        inputs = {value.name for value in work.graph.inputs}
        self.taps = [name for name in needs if name in inner]
        self.fed = [name for name in needs if name in inputs]
        self.carried = bodies.expose(work, [name for name in needs if name not in inner and name not in inputs])
        have = {value.name for value in work.graph.outputs}
        work.graph.outputs.extend(inner[name] for name in self.taps if name not in have)
        self.runner = OnnxRuntime(work, libraries=libraries, providers=providers)

    def observe(self, index: int, feed: dict[str, Any]) -> Ranges:
        """The ranges of one feed; a failing run names the sample."""
        try:
            outputs = self.runner.run(feed)
        except BackendError as error:
            raise BackendError(
                error.what, where=f"sample {index}", why=error.why, do=error.do, code=error.code
            ) from error
        values = {name: _stat(outputs[name]) for name in self.taps}
        values |= {name: _stat(feed[name]) for name in self.fed if name in feed}
        values |= {name: bodies.stat_of(outputs[output]) for name, output in self.carried.items()}
        shapes = {name: {_shape(name, array, self.valued): 1} for name, array in feed.items()}
        return Ranges(self.source, self.label, 1, shapes, values)


def _stat(array: np.ndarray[Any, Any]) -> Stat:
    return Stat.of(array if array.dtype == np.float32 else array.astype(np.float32))


def profiles(samples: Samples, valued: Collection[str] = ()) -> dict[str, Profile]:
    """For each input the least, the most frequent and the largest shape; axis by axis where feeds differ in several.

    Of inputs in `valued`, which are read as shapes themselves, it is the values.
    """
    seen: dict[str, dict[tuple[int, ...], int]] = {}
    for feed in samples:
        for name, array in feed.items():
            shapes = seen.setdefault(name, {})
            shape = _shape(name, array, valued)
            shapes[shape] = shapes.get(shape, 0) + 1
    return profiles_of(seen)


def _shape(name: str, array: Any, valued: Collection[str]) -> tuple[int, ...]:
    if name in valued:
        return tuple(int(number) for number in np.asarray(array).reshape(-1))
    return tuple(array.shape)


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
