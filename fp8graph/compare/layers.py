"""The error of each layer: what it adds by itself, and what has come together by then.

    accumulated   the layer's output in B against that in A, on the same samples
    local         the same where the layer of B is fed what A's is fed: the error that is its own

Both are summed over the samples as they stream by. Tensors leave the run, so layers go in groups of a bounded size.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.base.errors import InputError
from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.compare import pieces
from fp8graph.compare.outputs import difference
from fp8graph.compare.pieces import Layer
from fp8graph.data.comparison import LayerDifference, LayerErrors, OutputDifference
from fp8graph.graph import tensors
from fp8graph.numerics.error import ErrorSums
from fp8graph.runners.base import Feeds, Outputs
from fp8graph.runners.reference import reference

# Elements of A's tensors a group, 64 MB in fp32: three sets of them are held for each sample in flight.
_GROUP = 16_000_000
_WORKERS = min(os.cpu_count() or 1, 4)


def compare_layers(
    a: ir.Model,
    b: ir.Model,
    feeds: Any,
    *,
    count: int | None = None,
    libraries: Sequence[str] = (),
    providers: Sequence[str] = (),
    progress: Progress = SILENT,
) -> LayerErrors:
    """The layers of B against those of A in the exact reference, in the order of B. Both models are changed in place.

    feeds   is read once for each group of layers; its first sample, once more for each model whose shapes are open

    Raises InputError FG403 where the models share no layer, BackendError FG133.
    """
    a, b = pieces.prepared(a, libraries), pieces.prepared(b, libraries)
    every, left = pieces.layers_of(a, b)
    how = libraries, providers
    one, other = (
        _shapes(model, [pair[side] for layer in every for pair in layer.values], feeds, how)
        for side, model in enumerate((a, b))
    )
    every = _alike(every, one, other, left)
    if not every:
        raise InputError(
            "the two models have no layer in common",
            where="--layers",
            why="layers go together by key, which is the name of an op's output, or by node name",
            do="compare a model with what optimize made of it",
            code="FG403",
        )
    found: list[LayerDifference] = []
    groups = list(_groups(every, one))
    total = count * len(groups) if count is not None else None
    with stage(progress, "comparing layers", total, "samples"), ThreadPoolExecutor(_WORKERS) as pool:
        for group in groups:
            sums = _Sums(group)
            for outputs in _in_order(pool, _Group(a, b, group, every, how).run, feeds):
                sums.add(*outputs)
                progress.step()
            found += sums.differences()
            left |= sums.left
    return LayerErrors(tuple(found), left)


def _shapes(model: ir.Model, names: Sequence[str], feeds: Any, how: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor; where the model leaves it open, that which the first sample gives."""
    values = {value.name: tensors.dims(value) for node in model.graph for value in node.outputs}
    known = {name: tuple(d or 0 for d in dims) for name in names if (dims := values[name]) and None not in dims}
    open_ones = [name for name in names if name not in known]
    if open_ones:
        work, told = pieces.shaped(model, open_ones)
        runner = reference(work, *how)
        for feed in feeds:
            outputs = runner.run(_own(feed, work))
            return known | {name: tuple(int(d) for d in outputs[told[name]]) for name in open_ones}
    return known


def _alike(
    every: Sequence[Layer], a: dict[str, tuple[int, ...]], b: dict[str, tuple[int, ...]], left: dict[str, str]
) -> list[Layer]:
    """The layers whose shapes agree; of the others `left` says why they do not count."""
    kept = []
    for layer in every:
        other = next((pair for pair in layer.values if a.get(pair[0]) != b.get(pair[1])), None)
        if other is None:
            kept.append(layer)
            continue
        left[layer.key] = f"its output is of shape {list(b[other[1]])}, it was {list(a[other[0]])}"
    return kept


def _groups(every: Sequence[Layer], shapes: dict[str, tuple[int, ...]]) -> Iterator[list[Layer]]:
    group: list[Layer] = []
    held = 0
    for layer in every:
        size = sum(math.prod(shapes.get(name, ())) for name, _ in layer.values)
        if group and held + size > _GROUP:
            yield group
            group, held = [], 0
        group.append(layer)
        held += size
    if group:
        yield group


class _Group:
    """Layers that are measured in one go."""

    def __init__(self, a: ir.Model, b: ir.Model, group: Sequence[Layer], every: Sequence[Layer], how: Any) -> None:
        self.parts = pieces.pieces(b, group, every)
        wanted = [name for layer in group for name, _ in layer.values]
        fed = [name for name, _ in self.parts.inputs.values()]
        self._a, self._a_runner = _opened(pieces.exposed(a, list(dict.fromkeys([*wanted, *fed]))), how)
        self._b, self._b_runner = _opened(pieces.exposed(b, [name for layer in group for _, name in layer.values]), how)
        self._alone = reference(self.parts.model, *how)

    def run(self, feed: Feeds) -> tuple[Outputs, Outputs, Outputs]:
        """What A gives, B gives, and the layers of B give alone."""
        before = self._a_runner.run(_own(feed, self._a))
        given = {name: array for name, array in feed.items() if name in self.parts.feeds}
        for name, (source, dtype) in self.parts.inputs.items():
            given[name] = _typed(before[source], dtype)
        return before, self._b_runner.run(_own(feed, self._b)), self._alone.run(given)


def _opened(model: ir.Model, how: Any) -> tuple[ir.Model, Any]:
    return model, reference(model, *how)


def _own(feed: Feeds, model: ir.Model) -> dict[str, Any]:
    """What the model has an input for: cut down to some outputs, it may have lost some."""
    names = {value.name for value in model.graph.inputs}
    return {name: array for name, array in feed.items() if name in names}


def _typed(array: Any, dtype: ir.DataType) -> Any:
    word = tensors.FLOATS[dtype]
    with np.errstate(all="ignore"):  # beyond fp16 it is infinite, as behind a Cast
        return array.astype(tensors.NUMPY.get(word, np.float64), copy=False)


class _Sums:
    """What the samples have told of some layers."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._local = {layer.key: ErrorSums() for layer in layers}
        self._all = {layer.key: ErrorSums() for layer in layers}
        self.left: dict[str, str] = {}

    def add(self, before: Outputs, after: Outputs, alone: Outputs) -> None:
        """Takes in one sample."""
        for layer in self._layers:
            for a_name, b_name in layer.values:
                left, right, own = before[a_name], after[b_name], alone[b_name]
                if left.shape != right.shape or left.shape != own.shape:
                    self.left[layer.key] = f"its output is of shape {list(right.shape)}, it was {list(left.shape)}"
                elif left.size:
                    self._local[layer.key].add(left, own)
                    self._all[layer.key].add(left, right)

    def differences(self) -> Iterable[LayerDifference]:
        """The result, without the layers that are left out."""
        for layer in self._layers:
            if layer.key not in self.left:
                local, both = (_difference(sums[layer.key]) for sums in (self._local, self._all))
                yield LayerDifference(layer.key, layer.op_type, layer.name, local, both)


def _difference(sums: ErrorSums) -> OutputDifference:
    return difference(sums, equal=sums.sqnr_db is None, floating=True)


def _in_order(
    pool: ThreadPoolExecutor, run: Callable[[Feeds], tuple[Outputs, Outputs, Outputs]], feeds: Any
) -> Iterator[tuple[Outputs, Outputs, Outputs]]:
    waiting: deque[Future[tuple[Outputs, Outputs, Outputs]]] = deque()
    for feed in feeds:
        waiting.append(pool.submit(run, feed))
        if len(waiting) >= _WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
