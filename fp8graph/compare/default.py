"""What happens to a user who loads the result with ONNX Runtime's default settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx_ir as ir

from fp8graph.base.errors import BackendError
from fp8graph.compare.outputs import compare_outputs
from fp8graph.data.comparison import Comparison, DefaultSession
from fp8graph.graph import walk
from fp8graph.runners.base import Feeds, Outputs, Runner
from fp8graph.runners.coded import around
from fp8graph.runners.onnxruntime import OnnxRuntime

# What makes ONNX Runtime compute FP8 Q/DQ as written; see runners/onnxruntime.py.
OPTIONS = {"session.disable_quant_qdq": "1", "disabled_optimizers": "ReluQuantRewrite"}
# More than the noise of another order of summation in a deep FP8 model, less than a removed Relu.
_LOSS_DB = 3.0


class Kept:
    """What a runner gives for a few feeds, so that it can be let go: two models in memory are enough."""

    def __init__(self, runner: Runner, feeds: Sequence[Feeds]) -> None:
        self.outputs = list(runner.outputs)
        self.feeds = feeds  # held, so that no other feed takes over an identity
        self._results = {id(feed): runner.run(feed) for feed in feeds}

    def run(self, feeds: Feeds) -> Outputs:
        """The outputs for one of the very feeds that were run."""
        return self._results[id(feeds)]


def first(feeds: Iterable[Feeds]) -> list[Feeds]:
    """The samples that the default session is tried on."""
    return list(itertools.islice(feeds, 2))


def try_default(
    model: ir.Model, path: Path | None, before: Kept, after: Kept, libraries: Sequence[str] = ()
) -> DefaultSession:
    """Loads the result with default settings, runs two samples, and holds its error against that of the reference.

    before, after   what the original and the result give in the exact reference for the samples
    """
    if any(value.dtype == ir.DataType.BFLOAT16 for _, graph in walk.graphs(model) for value in walk.values(graph)):
        return DefaultSession(False, "ONNX Runtime's CPU provider has no bf16 kernels", {})
    try:
        plain = around(OnnxRuntime(path if path is not None else model, exact=False, libraries=libraries), model)
        exact, found = compare_outputs(before, after, before.feeds), compare_outputs(before, plain, before.feeds)
    except BackendError as error:
        return DefaultSession(False, error.why, OPTIONS if _cured(path, libraries) else {})
    if len(found.problems) > len(exact.problems):
        return DefaultSession(False, found.problems[-1], OPTIONS)
    for name in found.outputs:
        lost = _sqnr(exact, name) - _sqnr(found, name)
        if lost > _LOSS_DB:
            return DefaultSession(False, f"the output '{name}' loses {lost:.0f} dB more there", OPTIONS)
    return DefaultSession(True, "", {})


def _cured(path: Path | None, libraries: Sequence[str]) -> bool:
    """Whether ONNX Runtime loads the file as it is with the options: an op that it does not have they do not give it.

    A model that was not written is taken to load: most that fail at default settings do.
    """
    if path is None:
        return True
    try:
        OnnxRuntime(path, libraries=libraries)
    except BackendError:
        return False
    return True


def _sqnr(comparison: Comparison, name: str) -> float:
    """SQNR with infinity for equal outputs, capped where rounding of float32 begins to speak."""
    item = comparison.outputs[name]
    value = math.inf if item.equal else item.sqnr_db
    return min(value if value is not None else math.inf, 100.0)
