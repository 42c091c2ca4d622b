"""`debug precision`: the smallest set of operators that has to stay in high precision."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from fp8graph.base import canon
from fp8graph.base.errors import UnmetError, UsageError
from fp8graph.base.files import WrittenFile, describe, write_text
from fp8graph.base.findings import Finding
from fp8graph.base.names import did_you_mean
from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.calibrate.samples import Samples
from fp8graph.compare.tolerance import Tolerance
from fp8graph.core.options import Options
from fp8graph.data.plan import OpKey, Plan, Reason
from fp8graph.flow import asked
from fp8graph.flow.commanding import DEBUG_MODEL, Command, command_of
from fp8graph.flow.feeding import Reading
from fp8graph.flow.given import source_digest
from fp8graph.flow.job import Job
from fp8graph.flow.judging import Judge, Metric, Verdict
from fp8graph.flow.resuming import Both, Leftover
from fp8graph.search.bisect import Mode, smallest
from fp8graph.search.keeplist import keep_recipe
from fp8graph.search.units import Unit, keep, units_of

log = logging.getLogger(__name__)
MODES, DIRECTIONS = ("bisect", "linear"), ("forward", "reverse", "sensitive")
Direction = Literal["forward", "reverse", "sensitive"]
_CODE, _WHY = "FG238", "debug precision found the model bad without it"
_NO_DATA = Samples("none", lambda: iter(()), 0)


@dataclass(frozen=True)
class Step:
    """One question: whether the model is good with these units in high precision.

    kept   keys of the units' first ops, in the plan's order
    said   what the judge said, in a few words
    """

    kept: tuple[OpKey, ...]
    good: bool
    said: str

    def to_json(self) -> dict[str, Any]:
        """The step as a document's part."""
        return {"kept": list(self.kept), "good": self.good, "said": self.said}


@dataclass(frozen=True)
class Debugged:
    """What `debug_precision` found.

    keep    ops that have to stay in high precision, in the plan's order: why; empty where none has to
    plan    the plan given, with those ops kept: `optimize(plan=...)` carries it out
    units   how many sets of ops could be kept or quantized
    steps   every question that was asked, in order
    """

    keep: Mapping[OpKey, str]
    plan: Plan
    units: int
    steps: tuple[Step, ...]
    files: tuple[WrittenFile, ...] = ()
    findings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as a document's part."""
        left = sum(1 for _ in self.plan.quantized())
        return {
            "keep": [{"key": key, "op_type": self.plan.ops[key].op_type, "why": why} for key, why in self.keep.items()],
            "quantized": left,
            "units": self.units,
            "steps": [step.to_json() for step in self.steps],
        }


class _Judge(Protocol):
    def __call__(self, plan: Plan) -> tuple[bool, str]:
        """Whether a plan is good, and what there is to say."""


def debug_precision(
    model: Any,
    *,
    plan: Plan | str | Path,
    output: str | Path | None = None,
    mode: str = "bisect",
    dir: str | None = None,
    check: Sequence[str] | None = None,
    fail_code: Sequence[int] | None = None,
    fail_regex: Sequence[str] | None = None,
    data: Any = None,
    samples: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    val_range: Any = None,
    input_shapes: Any = None,
    providers: Sequence[str] | None = None,
    custom_ops: Sequence[str | Path] | None = None,
    min_sqnr: Any = None,
    rtol: Any = None,
    atol: Any = None,
    check_error_stat: Any = None,
    error_quantile: Any = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> Debugged:
    """Bisects to the smallest set of ops of a plan that have to stay in high precision for the model to be good.

    output   where to write the set: a recipe with a [[keep]] line for each op, for `optimize(recipe=...)`
    mode     bisect, or linear: one by one, for a judge whose answers are not monotone
    dir      which are kept first: forward (from the inputs on; the default with `check`), reverse, or sensitive (what
             FP8 costs most on the data; the default without)
    check    a command and its arguments, which finds `fp8graph_debug.onnx` in the working folder: status 0 is good
    fail_code, fail_regex      what else its end means, as `flow.commanding.Command` reads them
    min_sqnr, rtol, atol, ...  without `check`: bounds on the outputs on `data`, as for `compare`
    resume   go on from `OUTPUT.resume`, which Ctrl-C (KeyboardInterrupt) has left

    First it is verified that keeping all ops is good and keeping none is bad. Where none has to be kept, the set is
    empty. Raises UnmetError FG152 where it is not good even with all ops in high precision, and what `optimize` raises.
    """
    dir = dir if dir is not None else "sensitive" if check is None else "forward"
    way = _way(mode, dir)
    command = command_of(asked.texts(check, "check"), _whole(fail_code), asked.texts(fail_regex, "fail_regex") or ())
    bounds = Tolerance(
        asked.numbers(rtol, "rtol"),
        asked.numbers(atol, "atol"),
        asked.words(check_error_stat, "check_error_stat"),
        asked.numbers(error_quantile, "error_quantile"),
        asked.numbers(min_sqnr, "min_sqnr"),
    )
    _check_criterion(command, bounds, data, way[1])
    how = Reading.of(samples, batch, seed, custom_ops, val_range, input_shapes, providers)
    job = Job(Options(), data, how, out=output, force=force, progress=progress)
    job.open(model, None, None, plan, None, None, also=())
    settled = job.settled_plan(None, plan_only=False)
    job.repairs = []  # what the plan has stays: each step would be repaired in another way, and be no smaller step
    units = _ordered(job, settled, way[1])
    if not units:
        what, do = "the plan quantizes nothing", "give the plan of a model that is quantized"
        raise UnmetError(what, where=str(job.source.path or "the model given"), do=do, code="FG150")
    judge = _commanded(job, command) if command is not None else _compared(job, bounds)
    told: dict[str, Any] = {
        "mode": mode,
        "dir": dir,
        "check": list(command.words) if command else None,
        "bounds": repr(bounds),
    }
    told |= {"ends": repr((fail_code, fail_regex)), "samples": samples, "batch": batch}
    steps = _Steps(job, settled, units, judge, told, resume=bool(resume))
    found = steps.search(way[0])
    return _finished(job, settled, units, found, steps)


def _way(mode: Any, direction: Any) -> tuple[Mode, Direction]:
    for option, given, known in (("--mode", mode, MODES), ("--dir", direction, DIRECTIONS)):
        if given not in known:
            what, do = f"{option} cannot be '{given}'", did_you_mean(str(given), known)
            raise UsageError(what, where=option, why=f"known: {', '.join(known)}", do=do, code="FG101")
    return cast(Mode, mode), cast(Direction, direction)


def _whole(codes: Any) -> tuple[int, ...]:
    given = (codes,) if isinstance(codes, int) else tuple(codes or ())
    return tuple(asked.whole(code, "fail_code", least=0) or 0 for code in given)


def _check_criterion(command: Command | None, bounds: Tolerance, data: Any, direction: Direction) -> None:
    """Raises UsageError FG100 where nothing says what is good, or two things do; FG120 where data is lacking."""
    bounded = bounds != Tolerance()
    if bounded == (command is not None):
        raise UsageError(
            "two things say what is good" if bounded else "nothing says what is good",
            where="python -m fp8graph debug precision",
            why="--check and bounds were given" if bounded else "neither --check nor a bound was given",
            do="give one of --min-sqnr DB, --atol X, --rtol X, or end the line with --check CMD",
            code="FG100",
        )
    if data is None and (command is None or direction == "sensitive"):
        raise UsageError(
            "data is needed and none was given",
            where="--dir sensitive" if command is not None else "python -m fp8graph debug precision",
            why="what FP8 costs is measured on data" if command is not None else "bounds hold for outputs on data",
            do="give --data FILE.npz (arrays by input name)",
            code="FG120",
        )
    if command is not None:
        command.refuse_taken()


def _ordered(job: Job, plan: Plan, direction: Direction) -> list[Unit]:
    """The units, those first that are kept first."""
    units = units_of(plan)
    if direction == "reverse":
        return units[::-1]
    if direction == "sensitive" and units:
        from fp8graph.flow.sensing import sense

        assert job.feeds is not None
        ranking, _ = sense(job, plan, job.feeds, Metric())
        return sorted(units, key=lambda unit: -sum(ranking.of(key).total for key in unit.keys))
    return units


def _compared(job: Job, bounds: Tolerance) -> _Judge:
    judge = Judge(job, tolerance=bounds)

    def judged(plan: Plan) -> tuple[bool, str]:
        verdict = judge(plan)
        return _good(verdict), _said(verdict)

    return judged


def _good(verdict: Verdict) -> bool:
    done = verdict.comparison
    return done is not None and not done.missed and not done.problems


def _said(verdict: Verdict) -> str:
    done = verdict.comparison
    bad = [*done.problems, *done.missed] if done is not None else []
    if bad:
        return bad[0] + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else "")
    return f"SQNR {verdict.value:.2f} dB" if verdict.value < float("inf") else "equal"


def _commanded(job: Job, command: Command) -> _Judge:
    judge = Judge(job, feeds=_NO_DATA)  # for what it makes of a plan

    def judged(plan: Plan) -> tuple[bool, str]:
        return command.judged(judge.carried(judge.final(plan)))

    return judged


@dataclass
class _Steps:
    """Asks the judge, remembers what it said, and leaves that behind where it is interrupted."""

    job: Job
    plan: Plan
    units: Sequence[Unit]
    judge: _Judge
    asked: Mapping[str, Any]
    resume: bool
    done: list[Step] = field(default_factory=list)
    _known: dict[frozenset[OpKey], Step] = field(default_factory=dict)
    _progress: Progress = SILENT

    @property
    def _left(self) -> Leftover:
        return Leftover(self.job.out, "debugging")

    def search(self, mode: Mode) -> list[Unit]:
        """The units that have to be kept. Raises UnmetError FG152, InputError FG110, FG111, Interrupted."""
        about = self._about() if self._left.file is not None else {}
        if self.resume and self._left.there:
            self._known = self._left.load(lambda document: _read(document, about))
        self._progress, self.job.progress = self.job.progress, SILENT
        try:
            with stage(self._progress, "debugging precision", None, "steps"):
                if not self._ask(range(len(self.units))):
                    raise self._unreachable()
                if self._ask(()):
                    return []
                return [self.units[index] for index in smallest(range(len(self.units)), self._ask, mode)]
        except KeyboardInterrupt:
            self._leave(about)
            raise
        finally:
            self.job.progress = self._progress

    def _ask(self, kept: Any) -> bool:
        keys = frozenset(self.units[index].key for index in kept)
        step = self._known.get(keys)
        if step is None:
            why = Reason(_CODE, "debug precision", "it is being tried out in high precision")
            good, said = self.judge(keep(self.plan, keys, why))
            step = self._known[keys] = Step(tuple(key for key in self.plan.ops if key in keys), good, said)
        if step not in self.done:
            self.done.append(step)
            self._progress.step()
            kind = "good" if step.good else "bad"
            log.info("step %d: %d of %d kept: %s, %s", len(self.done), len(keys), len(self.units), kind, step.said)
            log.debug("kept: %s", ", ".join(step.kept) or "none")
        return step.good

    def why(self, unit: Unit) -> str:
        """What was said of the most that was kept without this unit, and was bad."""
        bad = [step for step in self.done if not step.good and unit.key not in step.kept]
        most = max(bad, key=lambda step: len(step.kept))
        return f"without it: {most.said}"

    def finish(self) -> None:
        """Takes away what an interrupted search has left."""
        self._left.finish()

    def _unreachable(self) -> UnmetError:
        return UnmetError(
            "it is not good even with every operator in high precision",
            where=str(self.job.source.path or "the model given"),
            why=self.done[-1].said,
            do=f"try the judge on the original model: as {DEBUG_MODEL} it has to be good, too"
            if self.asked["check"]
            else "ask for less; --high-precision-dtype fp32 where the plan has a shorter one",
            code="FG152",
        )

    def _about(self) -> dict[str, Any]:
        feeds = self.job.feeds.label if self.job.feeds is not None else "none"
        digests = {"model": source_digest(self.job.source), "plan": canon.digest(self.plan.to_json())}
        return {**digests, "data": feeds, **self.asked}

    def _leave(self, about: Mapping[str, Any]) -> None:
        if self.done:
            steps = [step.to_json() for step in self._known.values()]
            self._left.leave(about, {"steps": steps}, f"{len(steps)} steps")


def _read(document: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[dict[frozenset[OpKey], Step], Both]:
    steps = [Step(tuple(s["kept"]), bool(s["good"]), str(s["said"])) for s in document["steps"]]
    return {frozenset(step.kept): step for step in steps}, {
        name: (document[name], value) for name, value in about.items()
    }


def _finished(job: Job, settled: Plan, units: Sequence[Unit], found: Sequence[Unit], steps: _Steps) -> Debugged:
    """The result; the keep-list is written where an output was asked for."""
    reasons = {key: steps.why(unit) for unit in found for key in unit.keys}
    plan = keep(settled, reasons, lambda key: Reason(_CODE, "debug precision", reasons[key]))
    told = {key: reasons[key] for key in plan.ops if key in reasons}
    files: tuple[WrittenFile, ...] = ()
    if job.out is not None:
        write_text(job.out, keep_recipe(settled, [(key, _WHY) for key in told]))
        steps.finish()
        files = (describe(job.out),)
    return Debugged(told, plan, len(units), tuple(steps.done), files, job.ctx.notes.items())
