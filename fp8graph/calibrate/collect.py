"""Observing tensors: one session, several feeds at a time, statistics that merge exactly in any order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.calibrate.samples import Samples
from fp8graph.data.plan import Profile
from fp8graph.graph.stages import Normalized
from fp8graph.numerics.ranges import Ranges, Stat
from fp8graph.runners.onnxruntime import OnnxRuntime

# Feeds in flight: one per core, so that memory holds the observed tensors of so many.
_WORKERS = min(os.cpu_count() or 1, 4)


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def collect(
    model: Normalized, needs: Sequence[str], samples: Samples, source: str, progress: Progress = SILENT
) -> Ranges:
    """Runs the samples once and returns the range of each tensor of `needs` (scope and name), and of float outputs.

    One intra-op thread computes each feed, so the numbers do not depend on load or thread count; ranges merge
    exactly, so they do not depend on the order either. Tensors inside bodies are not observed: they are missing in
    the result.
    """
    floats = [v.name for v in model.model.graph.outputs if v.dtype in _FLOATS and v.name]
    taps, fed = _taps(model.model, list(dict.fromkeys([*needs, *floats])))
    runner = OnnxRuntime(_with_outputs(model.model, taps))
    ranges = Ranges(source=source, data=samples.label)
    with stage(progress, "calibrating", samples.count, "samples"), ThreadPoolExecutor(_WORKERS) as pool:
        for part in _in_order(pool, runner, samples, taps, fed, source):
            ranges = ranges.merge(part)
            progress.step()
    return ranges


def _in_order(
    pool: ThreadPoolExecutor,
    runner: OnnxRuntime,
    samples: Samples,
    taps: Sequence[str],
    fed: Sequence[str],
    source: str,
) -> Iterator[Ranges]:
    waiting: deque[Future[Ranges]] = deque()
    for feed in samples:
        waiting.append(pool.submit(_observe, runner, feed, taps, fed, source, samples.label))
        if len(waiting) > _WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _observe(
    runner: OnnxRuntime, feed: dict[str, Any], taps: Sequence[str], fed: Sequence[str], source: str, label: str
) -> Ranges:
    outputs = runner.run(feed)
    values = {name: _stat(outputs[name]) for name in taps}
    values |= {name: _stat(feed[name]) for name in fed if name in feed}
    shapes = {name: {tuple(array.shape): 1} for name, array in feed.items()}
    return Ranges(source, label, 1, shapes, values)


def _stat(array: np.ndarray[Any, Any]) -> Stat:
    return Stat.of(array if array.dtype == np.float32 else array.astype(np.float32))


def _taps(model: ir.Model, needs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which needs are inner tensors of the main graph, and which are inputs whose feeds are looked at themselves."""
    inputs = {value.name for value in model.graph.inputs}
    inner = {value.name for node in model.graph for value in node.outputs if value.name}
    return [name for name in needs if name in inner], [name for name in needs if name in inputs]


def _with_outputs(model: ir.Model, taps: Sequence[str]) -> ir.Model:
    view = model.clone()
    values = {value.name: value for node in view.graph for value in node.outputs}
    have = {value.name for value in view.graph.outputs}
    view.graph.outputs.extend(values[name] for name in taps if name not in have)
    return view


def profiles(samples: Samples) -> dict[str, Profile]:
    """For each input the least, the most frequent and the largest shape; axis by axis where feeds differ in several."""
    seen: dict[str, dict[tuple[int, ...], int]] = {}
    for feed in samples:
        for name, array in feed.items():
            shapes = seen.setdefault(name, {})
            shapes[tuple(array.shape)] = shapes.get(tuple(array.shape), 0) + 1
    return {name: _profile(shapes) for name, shapes in seen.items()}


def _profile(shapes: dict[tuple[int, ...], int]) -> Profile:
    usual = max(sorted(shapes), key=lambda shape: shapes[shape])
    same = [shape for shape in shapes if len(shape) == len(usual)]
    return Profile(
        tuple(min(sizes) for sizes in zip(*same, strict=True)),
        usual,
        tuple(max(sizes) for sizes in zip(*same, strict=True)),
    )
