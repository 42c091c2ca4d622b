"""Judging plans: each is carried out on a copy in memory and held against the original on samples, in the reference."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from fp8graph.base import userfile
from fp8graph.base.errors import Fp8GraphError, InputError, UsageError
from fp8graph.base.findings import Notes
from fp8graph.base.progress import SILENT
from fp8graph.calibrate.samples import Samples
from fp8graph.compare.outputs import compare_outputs
from fp8graph.compare.tolerance import Tolerance
from fp8graph.core import stages
from fp8graph.core.passes import Approximate, Stage
from fp8graph.core.pipeline import Pipeline
from fp8graph.data.comparison import Comparison
from fp8graph.data.plan import Plan
from fp8graph.graph.load import load
from fp8graph.graph.stages import Legal, Normalized
from fp8graph.runners.base import Feeds, Outputs, Runner
from fp8graph.runners.reference import reference

if TYPE_CHECKING:
    from fp8graph.flow.job import Job

log = logging.getLogger(__name__)
Pairs = Iterator[tuple[Feeds, Outputs]]
# Outputs of the original that are held; of more the original is run again.
_HELD = 512_000_000
KINDS = ("sqnr", "cosine", "max-abs")


@dataclass(frozen=True)
class Metric:
    """How good a model is on samples: more is better.

    kind      `sqnr`: dB, over all outputs, each weighted by its own power; `cosine`: the mean over the outputs;
              `max-abs`: the largest difference of all outputs, below 0; `function`: the user's own
    function  gets an iterator of (feeds, outputs) in the order of the samples, gives one number
    name      as it was asked for
    """

    kind: Literal["sqnr", "cosine", "max-abs", "function"] = "sqnr"
    function: Callable[[Pairs], Any] | None = None
    name: str = "sqnr"

    @staticmethod
    def of(given: Any) -> Metric:
        """A metric from its name, from FILE.py:FUNCTION, or from a function. Raises UsageError FG100, FG101, FG123."""
        if given is None or isinstance(given, Metric):
            return given or Metric()
        if callable(given):
            return Metric("function", given, getattr(given, "__name__", "function"))
        text = str(given)
        if text in KINDS:
            return Metric(cast(Literal["sqnr", "cosine", "max-abs"], text), None, text)
        path, name = userfile.split(text)
        if not name or path.suffix != ".py":
            what, do = f"there is no metric '{text}'", f"give one of {', '.join(KINDS)}, or FILE.py:FUNCTION"
            raise UsageError(what, where="--metric", do=do, code="FG101")
        return Metric("function", _function(path, name), text)

    def worth(self, comparison: Comparison) -> float:
        """What a comparison says: inf where nothing differs, -inf where something is not finite that was."""
        held = list(comparison.outputs.values())
        if comparison.problems or any(item.new_nonfinite for item in held):
            return -math.inf
        if self.kind == "sqnr":
            noises = [0.0 if item.sqnr_db is None else 10 ** (-item.sqnr_db / 10) for item in held]
            mean = sum(noises) / len(noises) if noises else 0.0
            return -10 * math.log10(mean) if mean > 0 else math.inf
        if self.kind == "cosine":
            return min((item.cosine for item in held if item.cosine is not None), default=1.0)
        return -max((item.max_abs or 0.0 for item in held), default=0.0)


@dataclass(frozen=True)
class Verdict:
    """What a plan is worth.

    value       by the metric, more is better: `sqnr` is in dB, inf where nothing differs; a function's own number
    comparison  of every output with the original's, with the bounds that were missed; None of a function
    error       standard error of `value` from one set of samples to another, of `sqnr`; 0 where it is not known
    """

    value: float
    comparison: Comparison | None = None
    error: float = 0.0


class Judge:
    """Judges plans of one job against its original model, on the same samples each time.

    The original runs once: its outputs are held, up to half a GB. What a plan is judged on is what `final` makes of it.
    `judge(plan)` may be called as often as one likes: the job's model is not consumed.
    """

    def __init__(
        self, job: Job, feeds: Samples | None = None, metric: Metric | None = None, tolerance: Tolerance | None = None
    ) -> None:
        self.job, self.metric = job, metric or Metric()
        given = feeds if feeds is not None else job.feeds
        if given is None:
            what, do = "plans are judged on data and none was given", "give --data FILE.npz (arrays by input name)"
            raise UsageError(what, where="--data", do=do, code="FG120")
        self.feeds: Samples = given
        self._tolerance, self._how = tolerance, (job.reading.libraries, job.reading.providers)
        self._original: _Remembered | None = None
        self._base: float | None = None

    def final(self, plan: Plan) -> Plan:
        """The plan as it is judged, and as it is to be written: with what repairs find for it."""
        return self.job.repaired(plan)

    def carried(self, plan: Plan) -> Legal:
        """A plan (as `final` gives it), carried out on a copy of the job's model."""
        return carried_out(self.job, plan)

    def __call__(self, plan: Plan) -> Verdict:
        """What a plan is worth, with what repairs find. Raises what carrying it out raises, and BackendError FG133."""
        return self.measured(self.final(plan))

    def measured(self, plan: Plan) -> Verdict:
        """What a plan is worth as it is."""
        runner = reference(self.carried(plan).model, *self._how)
        if self.metric.function is not None:
            return Verdict(self._called(self.metric.function, runner))
        return self._compared(runner)

    @property
    def original(self) -> float:
        """What the original is worth by the metric: inf for `sqnr`, a function's number."""
        if self.metric.function is None:
            return {"cosine": 1.0, "max-abs": 0.0}.get(self.metric.kind, math.inf)
        if self._base is None:
            self._base = self._called(self.metric.function, self.before.runner)
        return self._base

    @property
    def before(self) -> _Remembered:
        """The original's runner, which remembers its outputs."""
        if self._original is None:
            source = self.job.source
            self._original = _Remembered(reference(source.path or load(source.original).model, *self._how))
        return self._original

    def _compared(self, runner: Runner) -> Verdict:
        watched = _Watched(self.before, runner)
        done = compare_outputs(
            self.before,
            watched,
            map(_Numbered, range(1 << 62), self.feeds),
            count=self.feeds.count,
            progress=self.job.progress,
            tolerance=self._tolerance,
        )
        spread = watched.error if self.metric.kind == "sqnr" else 0.0
        return Verdict(self.metric.worth(done), done, spread)

    def _called(self, function: Callable[[Pairs], Any], runner: Runner) -> float:
        return called(function, ((feed, runner.run(feed)) for feed in self.feeds), self.metric.name)


def called(function: Callable[[Pairs], Any], pairs: Pairs, name: str) -> float:
    """The number that a user's metric gives. Raises InputError FG123 where it fails, or gives none."""
    try:
        value = float(function(pairs))
    except (Fp8GraphError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        what, why = "the metric failed", f"{type(error).__name__}: {error}".partition("\n")[0]
        do = "write def FUNCTION(pairs): with a loop over (feeds, outputs), and return one number"
        raise InputError(what, where=name, why=why, do=do, code="FG123") from error
    if math.isnan(value):
        what, do = "the metric gave no number", "return one finite number, more for better"
        raise InputError(what, where=name, why="it is NaN", do=do, code="FG123")
    return value


def carried_out(job: Job, plan: Plan, *, folded: bool = True) -> Legal:
    """A settled plan on a copy of the job's normalized model; what passes have to say about it is not kept.

    folded   False leaves out exact passes that move factors about: every tensor then is what its name says
    """
    ctx = replace(job.ctx, plan=plan, facts=None, notes=Notes(), progress=SILENT)
    copy = Normalized(job.normalized.model.clone(), job.normalized.source, job.normalized.structure)
    pipeline = job.pipeline
    if not folded:
        kept = [item for item in pipeline.passes if item.stage != Stage.FOLD or isinstance(item.exact, Approximate)]
        pipeline = Pipeline(kept)
    return stages.legalize(stages.quantize(copy, pipeline, ctx), pipeline, ctx)


class _Numbered(dict[str, Any]):
    """A feed that knows its place among the samples."""

    def __init__(self, index: int, feed: Mapping[str, Any]) -> None:
        super().__init__(feed)
        self.index = index


class _Remembered:
    """A runner that remembers what it gave for each sample."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._held: dict[int, Outputs] = {}
        self._bytes = 0

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""
        return self.runner.outputs

    def run(self, feeds: Feeds) -> Outputs:
        """What the sample gave before, or gives now."""
        index = feeds.index if isinstance(feeds, _Numbered) else -1
        if index in self._held:
            return self._held[index]
        found = self.runner.run(feeds)
        size = sum(getattr(array, "nbytes", _HELD) for array in found.values())  # a sequence is not measured
        if index >= 0 and self._bytes + size <= _HELD:
            self._bytes += size
            self._held[index] = found
        return found


class _Watched:
    """A runner that keeps, for each sample, the power of the original's outputs and of what it lies apart from them."""

    def __init__(self, before: _Remembered, runner: Runner) -> None:
        self._before, self._runner = before, runner
        self._powers: dict[int, dict[str, tuple[float, float]]] = {}

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""
        return self._runner.outputs

    def run(self, feeds: Feeds) -> Outputs:
        """What the runner gives."""
        found = self._runner.run(feeds)
        left = self._before.run(feeds)
        index = feeds.index if isinstance(feeds, _Numbered) else len(self._powers)
        self._powers[index] = {
            name: (power(array), power(found[name].astype(np.float32) - array.astype(np.float32)))
            for name, array in left.items()
            if name in found and _comparable(array, found[name])
        }
        return found

    @property
    def error(self) -> float:
        """Standard error, in dB, of the SQNR over all outputs: that of a ratio of sums over samples."""
        rows = [self._powers[index] for index in sorted(self._powers)]
        names = [name for name in (rows[0] if rows else {}) if sum(row.get(name, (0, 0))[0] for row in rows) > 0]
        if len(rows) < 2 or not names:
            return 0.0
        whole, apart = 0.0, [0.0] * len(rows)
        for name in names:
            pairs = [row.get(name, (0.0, 0.0)) for row in rows]
            signal = math.fsum(pair[0] for pair in pairs)
            ratio = math.fsum(pair[1] for pair in pairs) / signal
            whole += ratio / len(names)
            for place, (own, noise) in enumerate(pairs):
                apart[place] += (noise - ratio * own) / signal / len(names)
        if not (0 < whole < math.inf):
            return 0.0
        variance = math.fsum(part * part for part in apart) * len(rows) / (len(rows) - 1)
        return 10 / math.log(10) * math.sqrt(variance) / whole


def power(array: np.ndarray[Any, Any]) -> float:
    """The sum of squares, inf where something is not finite."""
    # not np.dot: BLAS adds in an order that depends on its threads
    with np.errstate(all="ignore"):
        total = float(np.sum(array * array, dtype=np.float64))
    return total if math.isfinite(total) else math.inf


def _comparable(one: Any, other: Any) -> bool:
    arrays = isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
    return arrays and one.dtype.kind in "fV" and one.shape == other.shape


def _function(path: Path, name: str) -> Callable[[Pairs], Any]:
    """A function of the user's file. Raises UsageError FG101 (no such file or function), InputError FG123."""
    if not path.is_file():
        raise UsageError("the metric's file does not exist", where=str(path), do="check the path", code="FG101")
    try:
        module = userfile.run(path, f"fp8graph_metric_{path.stem}")
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        do = f"python {path} should run without an error"
        raise InputError("the metric's file cannot be run", where=str(path), why=why, do=do, code="FG123") from error
    found = getattr(module, name, None)
    if not callable(found):
        do = f"write def {name}(pairs): in it"
        raise UsageError(f"the file has no function '{name}'", where=str(path), do=do, code="FG101")
    return cast(Callable[[Pairs], Any], found)
