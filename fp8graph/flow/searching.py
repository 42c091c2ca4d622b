"""Optimizing for a goal: the plan with the most low-precision arithmetic that holds an accuracy."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp8graph.base import canon
from fp8graph.base.errors import UnmetError, UsageError
from fp8graph.base.files import WrittenFile, check_writable, describe, write_text
from fp8graph.base.progress import SILENT, stage
from fp8graph.calibrate.samples import Samples, is_random
from fp8graph.core import registry
from fp8graph.data.plan import OpKey, Plan, Reason
from fp8graph.engines.rows import statuses
from fp8graph.engines.sizes import op_sizes
from fp8graph.flow import asked
from fp8graph.flow.given import source_digest
from fp8graph.flow.judging import Judge, Metric
from fp8graph.flow.learning import FULL
from fp8graph.flow.resuming import Both, Leftover
from fp8graph.flow.sensing import sense
from fp8graph.numerics.ranges import Ranges
from fp8graph.report import curve as curves
from fp8graph.search.budget import Budget, Kept, Step
from fp8graph.search.units import Unit, keep, units_of

if TYPE_CHECKING:
    from fp8graph.flow.job import Job

log = logging.getLogger(__name__)
_Known = dict[frozenset[OpKey], tuple[float, float]]
# Of so many samples one is held back to judge on, where there are as many.
_HELD_BACK = 4
_POINTS = 17
_SUFFIXES = (".json", ".csv", ".svg")
# What a plan is repaired with for a goal, where its recipe names no repairs that learn.
REPAIRS = ("split-terms", "reconstruct-weights", "correct-bias")
# What an op counts that the target runs in low precision without gaining by it.
_NO_GAIN = 0.1


@dataclass(frozen=True)
class Goal:
    """What is asked of a search.

    min_sqnr   least signal to noise ratio of the outputs, in dB
    max_drop   the most that `metric` may fall below the original's
    eval_data  what plans are judged on; without it a part of the data, which scales are not taken from
    curve      where the whole curve is written: .json or .csv, and .svg beside it
    resume     go on from OUT.resume
    """

    min_sqnr: float | None = None
    max_drop: float | None = None
    metric: Metric = field(default_factory=Metric)
    eval_data: Any = None
    curve: Path | None = None
    resume: bool = False

    @staticmethod
    def of(min_sqnr: Any, max_drop: Any, metric: Any, eval_data: Any, curve: Any, resume: Any) -> Goal | None:
        """The goal from what a caller gave; None where there is none. Raises UsageError FG100, FG101, InputError
        FG123."""
        where, path = asked.path(curve, "curve"), None
        if where is not None:
            path = where
            if where.suffix not in _SUFFIXES:
                what, do = f"the curve cannot be written as '{where.name}'", f"end it in {', '.join(_SUFFIXES)}"
                raise UsageError(what, where="--curve", do=do, code="FG100")
        if min_sqnr is None and max_drop is None:
            _no_goal({"--metric": metric, "--eval-data": eval_data, "--resume": resume or None}, path)
            return Goal(curve=path, resume=bool(resume), eval_data=eval_data) if path is not None else None
        if min_sqnr is not None and max_drop is not None:
            why = "--min-sqnr bounds the outputs, --max-drop a metric of them"
            what, do = "two goals were given", "give one of them"
            raise UsageError(what, where="--min-sqnr, --max-drop", why=why, do=do, code="FG100")
        if min_sqnr is not None:
            if metric not in (None, "sqnr"):
                what, do = "--min-sqnr and --metric name two measures", "--max-drop X goes with --metric"
                raise UsageError(what, where="--metric", do=do, code="FG100")
            return Goal(_number(min_sqnr, "min_sqnr"), None, Metric(), eval_data, path, bool(resume))
        made = Metric.of(metric)
        if made.kind == "sqnr":
            what, do = "--max-drop needs a metric that falls", "--metric FILE.py:FUNCTION, cosine or max-abs"
            raise UsageError(what, where="--max-drop", why="the original's SQNR is infinite", do=do, code="FG100")
        return Goal(None, _number(max_drop, "max_drop"), made, eval_data, path, bool(resume))

    def least(self, judge: Judge) -> float:
        """The least value that holds."""
        if self.min_sqnr is not None:
            return self.min_sqnr
        return judge.original - self.max_drop if self.max_drop is not None else -math.inf

    @property
    def text(self) -> str:
        """The goal as it is typed."""
        if self.min_sqnr is not None:
            return f"--min-sqnr {self.min_sqnr:g}"
        return f"--max-drop {self.max_drop:g} --metric {self.metric.name}" if self.max_drop is not None else "--curve"

    def to_json(self) -> dict[str, Any]:
        """The goal for the plan; a metric's file without its folder."""
        if self.min_sqnr is not None:
            return {"min_sqnr": self.min_sqnr}
        return {} if self.max_drop is None else {"max_drop": self.max_drop, "metric": Path(self.metric.name).name}


def _no_goal(given: Mapping[str, Any], curve: Path | None) -> None:
    for option, value in given.items():
        if value is not None and (curve is None or option == "--metric"):
            what, do = f"{option} belongs to a goal, and none was given", "add --min-sqnr DB, or --max-drop X"
            raise UsageError(what, where=option, do=do, code="FG100")


def _number(given: Any, name: str) -> float:
    found = asked.numbers(given, name)
    if list(found) != [""] or (name == "max_drop" and found[""] < 0):
        raise asked.wrong(name, given, "one number" + (" of at least 0" if name == "max_drop" else ""))
    return found[""]


@dataclass
class Searched:
    """What a search came to: the plan to carry out, and the curve where it was asked for."""

    plan: Plan
    curve: curves.Curve | None
    _search: _Search | None = None

    def write(self, goal: Goal) -> list[WrittenFile]:
        """Writes the curve, and takes away what an interrupted search has left."""
        if self._search is not None:
            self._search.finish()
        if self.curve is None or goal.curve is None:
            return []
        texts = {".json": curves.as_json, ".csv": curves.as_csv, ".svg": curves.as_svg}
        for path in curve_files(goal):
            write_text(path, texts[path.suffix](self.curve))
        return [describe(path) for path in curve_files(goal)]


def curve_files(goal: Goal) -> list[Path]:
    """The files of the curve: its data, and its picture."""
    if goal.curve is None:
        return []
    data = goal.curve.with_suffix(".json") if goal.curve.suffix == ".svg" else goal.curve
    return [data, goal.curve.with_suffix(".svg")]


def check_goal(job: Job, goal: Goal, plan: Any, ranges: Any) -> None:
    """Raises UsageError before any work is done: FG100 (a plan is given), FG120 (nothing to judge on), FG112."""
    if plan is not None:
        why = "a goal searches for a plan, and --plan brings one"
        what, do = "a goal and a plan were given", "leave one of them out"
        raise UsageError(what, where=goal.text, why=why, do=do, code="FG100")
    if job.data is None and goal.eval_data is None:
        what, why = "a goal needs data and none was given", "plans are judged by what the model computes on data"
        raise UsageError(what, where=goal.text, why=why, do="give --data FILE.npz", code="FG120")
    for path in curve_files(goal):
        check_writable(path, force=job.force, inputs=[])


def search(job: Job, goal: Goal, ranges: Ranges | str | Path | None) -> Searched:
    """The best plan of an opened job. Raises UnmetError FG151 where none holds the goal, Interrupted."""
    learned, judged_on = _samples(job, goal, ranges)
    every, job.feeds = job.feeds, learned
    if learned is not None and not is_random(job.data):
        _add_repairs(job)
    try:
        full = job.settled_plan(ranges, plan_only=False)
        if not any(True for _ in full.quantized()):
            return Searched(full, None)
        return _Search(job, goal, full, learned or judged_on, judged_on).run()
    finally:
        job.feeds = every


def _add_repairs(job: Job) -> None:
    """A goal takes its time. A recipe of one's own that has repairs in full is left as it is."""
    recipe = job.ctx.recipe
    if recipe.learn == "light" or not (recipe.repairs and any(item.learns or item.weighs for item in job.repairs)):
        there = {item.name for item in job.repairs}
        job.effort = FULL
        job.repairs += [registry.create(name) for name in REPAIRS if name not in there]  # type: ignore[misc]


def _samples(job: Job, goal: Goal, ranges: Any) -> tuple[Samples | None, Samples]:
    """What scales are taken from, and what plans are judged on."""
    if goal.eval_data is not None:
        return job.feeds, job.reading.open(goal.eval_data, job.source.model, job.ctx.notes)
    assert job.feeds is not None
    if ranges is not None:
        return job.feeds, job.feeds
    learned, held = job.feeds.apart(_HELD_BACK)
    if not learned.count:
        what, why = (
            "there is one sample, and a goal needs two",
            "plans are judged on samples that scales do not come from",
        )
        raise UsageError(what, where=held.label, why=why, do="give more --data, or --eval-data FILE", code="FG120")
    return learned, held


def worths(job: Job, plan: Plan) -> dict[OpKey, float]:
    """Each quantized op's part of the low-precision arithmetic of a plan: half by multiply-accumulates, half by weight
    bytes, and a little for each op, so that none is worth nothing. What the target gains nothing by counts a tenth."""
    sizes = op_sizes(job.normalized.model, plan.shapes)
    rows = statuses(job.normalized.model, job.ctx.target, job._facts_for(plan.shapes))
    keys = [key for key, _ in plan.quantized()]
    found = dict.fromkeys(keys, 0.02 / max(len(keys), 1))
    for measure, part in ((0, 0.49), (1, 0.49)):
        counts = {}
        for key in keys:
            both = plan.ops[key].precision != "storage" or measure == 1
            gain = 1.0 if rows.get(key, "native") == "native" else _NO_GAIN
            counts[key] = gain * float(sizes.get(key, (0, 0))[measure] or 0) if both else 0.0
        total = sum(counts.values())
        for key, number in counts.items():
            found[key] += part * (number / total if total else 1 / len(keys))
    return found


class _Search:
    """One search: measured, judged step by step, and left behind where it is interrupted."""

    def __init__(self, job: Job, goal: Goal, full: Plan, learned: Samples, judged_on: Samples) -> None:
        self.job, self.goal, self.full = job, goal, full
        self.learned, self.judged_on = learned, judged_on
        self.judge = Judge(job, judged_on, goal.metric)
        self._left = Leftover(job.out, "search")
        self._known: _Known = {}
        self._costs: dict[OpKey, float] = {}
        self._units: list[Unit] = []
        self._progress = job.progress

    def run(self) -> Searched:
        """Raises UnmetError FG151, InputError FG110 and FG111 (of --resume), Interrupted."""
        if self.goal.resume and self._left.there:
            self._known, self._costs = self._left.load(self._read)
        self.job.progress = SILENT
        try:
            with stage(self._progress, "searching", None, "plans"), self.job.clock("search"):
                return self._run()
        except KeyboardInterrupt:
            self._leave()
            raise
        finally:
            self.job.progress = self._progress

    def _run(self) -> Searched:
        least = self.goal.least(self.judge)
        value = self._value(self.full, frozenset())
        if value >= least and self.goal.curve is None:
            log.info("the plan with everything quantized holds %s: %.6g", self.goal.text, value)
            return Searched(self._noted(self.full, [Step(frozenset(), value, 1.0)]), None, self)
        if not self._costs:
            ranking, _ = sense(self.job, self.full, self.learned, Metric())
            self._costs = {cost.key: cost.total for cost in ranking.costs}
        self._units = units_of(self.full, self._costs, worths(self.job, self.full))
        noise = _noise if self.goal.metric.kind == "sqnr" else None
        budget = Budget(self._units, self._judged, least, noise)
        found = budget.search()
        if found is None or len(found.kept) == len(self._units):
            raise self._unmet(budget, least)
        plan, last = self._repaired(found)
        steps = budget.steps if last is found else [*budget.steps, last]
        plan, found = self._noted(plan, steps, last), last
        shown = None
        if self.goal.curve is not None:
            shown = self._curve(budget.curve(_POINTS), found, least)
        return Searched(plan, shown, self)

    def _judged(self, kept: Kept) -> float:
        return self._value(self._planned(kept), frozenset(key for place in kept for key in self._units[place].keys))

    def _error(self, step: Step) -> float:
        """The standard error of what a step reached, from one set of samples to another."""
        return self._known[frozenset(key for place in step.kept for key in self._units[place].keys)][1]

    def _value(self, plan: Plan, kept: frozenset[OpKey]) -> float:
        """What a plan is worth on the samples held back. What repairs have found for the whole plan stays in it."""
        if kept not in self._known:
            verdict = self.judge.measured(plan)
            self._known[kept] = verdict.value, verdict.error
            self._progress.step()
            told = len(self._known), sum(1 for _ in plan.quantized()), len(kept), verdict.value, verdict.error
            log.info("step %d: %d ops quantized, %d kept: %.6g, standard error %.3g", *told)
            log.debug("kept: %s", ", ".join(sorted(kept)) or "none")
        return self._known[kept][0]

    def _repaired(self, found: Step) -> tuple[Plan, Step]:
        """The plan that was found: repaired for itself, not for all ops in low precision, where that is better."""
        plan = self._planned(found.kept)
        if not found.kept or not any(op.adjust for op in plan.ops.values()):
            return plan, found
        bare = {key: replace(op, adjust=()) for key, op in plan.ops.items()}
        anew = self.job.repaired(replace(plan, ops=bare, arrays={}))
        verdict = self.judge.measured(anew)
        log.info("repaired anew: %.6g after %.6g", verdict.value, found.value)
        if verdict.value <= found.value:
            return plan, found
        kept = frozenset(key for place in found.kept for key in self._units[place].keys)
        self._known[kept] = verdict.value, verdict.error
        return anew, replace(found, value=verdict.value)

    def _planned(self, kept: Kept) -> Plan:
        whole = math.fsum(cost for cost in self._costs.values() if math.isfinite(cost)) or 1.0
        units = {key: unit for place in kept for unit in [self._units[place]] for key in unit.keys}

        def why(key: OpKey) -> Reason:
            unit = units[key]
            part, gain = 100 * min(unit.cost / whole, 1.0), 100 * unit.worth
            text = f"FP8 costs {part:.2g} % of the noise here, for {gain:.2g} % of the low-precision arithmetic"
            return Reason("FG238", f"search {self.goal.text}", text)

        return keep(self.full, list(units), why)

    def _noted(self, plan: Plan, steps: Sequence[Step], found: Step | None = None) -> Plan:
        """The plan with what the search did."""
        chosen = found or steps[0]
        told = [
            {"kept": len(step.kept), "arithmetic": _rounded(step.worth), "value": _rounded(step.value)}
            for step in steps
        ]
        record = {
            "goal": self.goal.to_json(),
            "metric": Path(self.goal.metric.name).name,
            "reached": _rounded(chosen.value),
            "standard_error": _rounded(self._error(chosen)),
            "data": self.judged_on.label,
            "samples": self.judged_on.count,
            "scales_from": self.learned.count,
            "steps": told,
        }
        return replace(plan, search=record)

    def _curve(self, steps: Sequence[Step], found: Step, least: float) -> curves.Curve:
        total = sum(1 for _ in self.full.quantized())
        points = []
        for step in steps:
            keys = [key for place in sorted(step.kept) for key in self._units[place].keys]
            points.append(
                curves.Point(
                    _rounded(step.worth) or 0.0,
                    total - len(keys),
                    _rounded(found.value if step.kept == found.kept else step.value),
                    tuple(keys),
                    step.kept == found.kept,
                )
            )
        name = "SQNR, dB" if self.goal.metric.kind == "sqnr" else Path(self.goal.metric.name).name
        return curves.Curve(name, least if math.isfinite(least) else None, tuple(points))

    def _unmet(self, budget: Budget, least: float) -> UnmetError:
        some = [step for step in budget.steps if len(step.kept) < len(self._units)]
        best = max(some, key=lambda step: step.value)
        unit = " dB" if self.goal.metric.kind == "sqnr" else ""
        self.finish()
        return UnmetError(
            "no plan with any operator in low precision holds the accuracy that was asked for",
            where=f"{self.goal.text}, {self.job.source.path or 'the model given'}",
            why=f"{least:.6g}{unit} was asked for; the best of {len(budget.steps)} plans, with {len(best.kept)} of "
            f"{len(self._units)} units in high precision, reached {best.value:.6g}{unit} on "
            f"{self.judged_on.count} samples",
            do="ask for less, or add --high-precision-dtype fp32 where the plan has a shorter one",
            code="FG151",
        )

    def finish(self) -> None:
        """Takes away what an interrupted search has left."""
        self._left.finish()

    def _about(self) -> dict[str, Any]:
        return {
            "model": source_digest(self.job.source),
            "plan": canon.digest(self.full.to_json()),
            "metric": self.goal.metric.name,
            "data": f"{self.judged_on.label}, {self.judged_on.count}",
        }

    def _leave(self) -> None:
        """Writes what is known, and raises Interrupted; nothing where nothing is."""
        if not (self._known or self._costs):
            return
        steps = [
            {"kept": sorted(kept), "value": _told(value), "error": _told(error)}
            for kept, (value, error) in self._known.items()
        ]
        costs = {key: _told(cost) for key, cost in self._costs.items()}
        found = {"costs": costs, "steps": steps}
        self._left.leave(self._about(), found, f"{len(steps)} plans that were judged")

    def _read(self, document: dict[str, Any]) -> tuple[tuple[_Known, dict[OpKey, float]], Both]:
        known = {frozenset(step["kept"]): (float(step["value"]), float(step["error"])) for step in document["steps"]}
        costs = {str(key): float(cost) for key, cost in document["costs"].items()}
        return (known, costs), {name: (document[name], value) for name, value in self._about().items()}


def _noise(value: float) -> float:
    return 10 ** (-value / 10) if value > -3000 else math.inf


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _told(value: float) -> float | str:
    """A number that comes back as it is; JSON has no infinity."""
    return value if math.isfinite(value) else str(value)
