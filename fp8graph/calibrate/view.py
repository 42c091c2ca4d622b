"""The model with outputs for what is to be observed: extremes found in the run, tensors themselves where counted."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.base.errors import BackendError
from fp8graph.calibrate import bodies, taps
from fp8graph.graph import walk
from fp8graph.numerics.ranges import Need, Ranges, Stat, joined
from fp8graph.runners.base import Feeds, Outputs
from fp8graph.runners.onnxruntime import OnnxRuntime


@dataclass(frozen=True)
class _Want:
    """What is wanted of one tensor. `floor`: how far below 0 it may lie, where that bounds its least value."""

    histogram: bool
    axes: tuple[int, ...]
    floor: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the tensor itself has to leave the run."""
        return self.histogram or bool(self.axes)

    def of(self, array: np.ndarray[Any, Any]) -> Stat:
        """The statistic of the tensor itself."""
        single = array if array.dtype == np.float32 else array.astype(np.float32)
        stat = Stat.of(single, histogram=self.histogram, axes=self.axes)
        told = self.floor is not None and stat.max >= max(stat.min, self.floor)
        return replace(stat, min=0.0) if told else stat  # as a tap says it, which knows the maximum alone


class View:
    """What one feed after the other is run in; used from several threads.

    A feed on which something is not finite is run once more with every tensor as an output, which tells which of them
    it was; as is one that the reductions cannot take (an empty tensor).
    """

    def __init__(
        self,
        model: ir.Model,
        needs: Sequence[Need],
        source: str,
        label: str,
        libraries: Sequence[str] = (),
        providers: Sequence[str] = (),
    ) -> None:
        self.source, self.label = source, label
        self.valued = walk.shape_inputs(model)
        self._model, self._how = model, (libraries, providers)
        self._wants = _wants(model, needs)
        inputs = {value.name for value in model.graph.inputs}
        self._fed = [name for name in self._wants if name in inputs]
        self._lock = threading.Lock()
        self._close: _Run | None = None
        try:
            self._first = _Run(model, self._wants, self._how, close=False)
        except BackendError:  # it says what there is to say where the model itself cannot be loaded
            self._first = self._closely()

    def observe(self, index: int, feed: dict[str, Any]) -> Ranges:
        """The ranges of one feed; a failing run names the sample."""
        fed = {name: self._wants[name].of(feed[name]) for name in self._fed if name in feed}
        usual = all(_moderate(fed.get(name), array) for name, array in feed.items())
        try:
            stats = self._stats(feed, usual=usual) | fed
        except BackendError as error:
            raise BackendError(
                error.what, where=f"sample {index}", why=error.why, do=error.do, code=error.code
            ) from error
        shapes = {name: {shape_of(name, array, self.valued): 1} for name, array in feed.items()}
        return Ranges(self.source, self.label, 1, shapes, stats)

    def _stats(self, feed: Feeds, *, usual: bool) -> dict[str, Stat]:
        if self._first is self._close or not usual:
            return self._closely().seen(feed)
        try:
            return self._first.seen(feed)
        except (_UnclearError, BackendError):
            return self._closely().seen(feed)

    def _closely(self) -> _Run:
        with self._lock:
            if self._close is None:
                self._close = _Run(self._model, self._wants, self._how, close=True)
            return self._close


class _UnclearError(Exception):
    """Something is not finite, and the extremes do not tell more."""


class _Run:
    """One session. `close`: tensors of the main graph are outputs, all of them."""

    def __init__(
        self, model: ir.Model, wants: Mapping[str, _Want], how: tuple[Sequence[str], Sequence[str]], *, close: bool
    ) -> None:
        self._wants = wants
        work = model.clone()
        inner = {value.name: value for node in work.graph for value in node.outputs if value.name}
        inputs = {value.name for value in work.graph.inputs}
        have = {value.name for value in work.graph.outputs}
        tapped = {
            name: want for name, want in wants.items() if name in inner and not (close or want.whole or name in have)
        }
        self._carried = bodies.expose(work, [name for name in wants if name not in inner and name not in inputs])
        self._taps = taps.expose(work, {name: want.floor for name, want in tapped.items()})
        self._shown = [name for name in wants if name in inner and name not in tapped]
        work.graph.outputs.extend(inner[name] for name in self._shown if name not in have)
        aside = [name for tap in self._taps.values() for name in tap.outputs]
        self._runner = OnnxRuntime(work, libraries=how[0], providers=how[1], aside=aside)

    def seen(self, feed: Feeds) -> dict[str, Stat]:
        """The statistics of one feed. Raises BackendError, and _UnclearError where something is not finite."""
        outputs: Outputs = self._runner.run(feed)
        stats = {name: self._wants[name].of(outputs[name]) for name in self._shown}
        if self._taps and any(stat.nonfinite for stat in stats.values()):
            raise _UnclearError
        for name, tap in self._taps.items():
            stat = tap.stat(outputs)
            if stat is None:
                raise _UnclearError
            stats[name] = stat
        return stats | {name: bodies.stat_of(outputs[output]) for name, output in self._carried.items()}


def _moderate(stat: Stat | None, array: np.ndarray[Any, Any]) -> bool:
    """Whether what taps take for granted of inputs holds; `stat` is its own where there is one."""
    if array.dtype != np.float32 or not array.size:
        return True
    known = Stat.of(array) if stat is None else stat
    return not known.nonfinite and (known.amax or 0.0) < taps.MODERATE


def _wants(model: ir.Model, needs: Sequence[Need]) -> dict[str, _Want]:
    """What is wanted, by tensor."""
    values = {value.name: value for node in model.graph for value in node.outputs if value.name}
    wants: dict[str, _Want] = {}
    for need in joined(needs):
        before = wants.get(need.tensor)
        axes = (*(before.axes if before else ()), *(() if need.axis is None else (need.axis,)))
        value = values.get(need.tensor)
        floor = taps.floor_of(value) if need.stat == "amax" and value is not None else None
        wants[need.tensor] = _Want(need.stat == "histogram", axes, floor)
    return wants


def shape_of(name: str, array: Any, valued: Set[str]) -> tuple[int, ...]:
    """The shape of an input; of one that is read as a shape itself, its values."""
    if name in valued:
        return tuple(int(number) for number in np.asarray(array).reshape(-1))
    return tuple(array.shape)
