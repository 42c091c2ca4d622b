"""`sensitivity`: the ops of a plan by what FP8 costs the output there, and the keep-list that follows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8graph.base.errors import UnmetError, UsageError
from fp8graph.base.files import WrittenFile, check_writable, describe, write_text
from fp8graph.base.findings import Finding
from fp8graph.base.progress import SILENT, Progress
from fp8graph.calibrate.samples import files_of
from fp8graph.core.options import Options
from fp8graph.data.plan import OpKey, Plan, Reason
from fp8graph.data.recipe import Recipe
from fp8graph.flow import asked
from fp8graph.flow.feeding import Reading
from fp8graph.flow.job import Job, nothing_quantized
from fp8graph.flow.judging import Judge, Metric
from fp8graph.flow.learning import LIGHT
from fp8graph.flow.sensing import sense
from fp8graph.search.budget import Budget, Kept
from fp8graph.search.keeplist import keep_recipe
from fp8graph.search.sensitivity import Cost, Ranking
from fp8graph.search.units import Unit, keep, units_of

# Without a number or an accuracy, as many of the first ops are kept as have this part of the noise.
_HALF = 0.5


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found.

    ranking    all ops that were measured, the costliest first
    unmeasured quantized ops that cannot be switched
    keep       keys of the keep-list, the costliest first; `reached` is what the plan without them is worth by the
               metric, where that was asked for
    plan       the plan that was measured
    """

    ranking: Ranking
    unmeasured: tuple[OpKey, ...]
    metric: str
    plan: Plan
    keep: tuple[OpKey, ...] = ()
    reached: float | None = None
    files: tuple[WrittenFile, ...] = ()
    findings: tuple[Finding, ...] = ()

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """The result as a document: `inputs` is the cost by input slot, null where it was not measured."""
        ranking = self.ranking
        return {
            "metric": self.metric,
            "exact": ranking.exact,
            "samples": ranking.samples,
            "seen": ranking.seen,
            "runs": ranking.runs,
            "plain_evaluations": float(f"{ranking.spent:.4g}"),
            "ops": [self._op(cost) for cost in ranking.costs[:top]],
            "unmeasured": list(self.unmeasured),
            "keep": list(self.keep),
            "reached": self.reached if self.reached is not None and math.isfinite(self.reached) else None,
        }

    def _op(self, cost: Cost) -> dict[str, Any]:
        op = self.plan.ops[cost.key]
        inputs = {str(slot): _finite(part) for slot, part in sorted(cost.parts.items())}
        return {
            "key": cost.key,
            "op_type": op.op_type,
            "name": op.name,
            "cost": _finite(cost.total),
            "share": float(f"{cost.share:.6g}"),
            "sqnr_db": _decibels(cost.total) if self.metric == "sqnr" else None,
            "inputs": inputs or None,
            "weight": cost.weight,
        }


def sensitivity(
    model: Any,
    *,
    data: Any,
    plan: Plan | str | Path | None = None,
    output: str | Path | None = None,
    recipe: str | Recipe | None = None,
    target: str | None = None,
    samples: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    val_range: Any = None,
    input_shapes: Any = None,
    providers: Sequence[str] | None = None,
    custom_ops: Sequence[str | Path] | None = None,
    high_precision_dtype: Any = None,
    metric: Any = None,
    exact: bool = False,
    keep_until: str | None = None,
    top: int | None = None,
    jobs: int | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Sensitivity:
    """Ranks the ops of a plan by what quantizing them costs the model's output, each split by input.

    All together costs about five plain evaluations of the samples, or with `exact` a run for each op and operand and
    sample. What costs, and how much, is measured in one model in which every operand can be switched.

    plan        the plan to measure; without it the one that `optimize` would make
    metric      `sqnr` (noise over signal power, which adds up), `cosine` (1 - cosine), `max-abs`, or FILE.py:FUNCTION
    keep_until  `sqnr>=30`, `cosine>=0.99`, `max-abs<=0.1`: `keep` is the shortest list found that holds it
    top         `keep` is as many of the first ops; without both, those that make half of the sum
    output      a recipe (.toml) with `keep` as [[keep]] lines
    jobs        runs at a time

    Raises UnmetError FG150 (nothing is quantized) or FG151 (nothing holds `keep_until`), and what `optimize` raises.
    """
    how = Reading.of(samples, batch, seed, custom_ops, val_range, input_shapes, providers)
    used, until = Metric.of(metric), _bound(keep_until)
    number, workers = asked.whole(top, "top"), asked.whole(jobs, "jobs")
    out = asked.path(output, "output")
    if data is None:
        raise UsageError("sensitivity needs data and none was given", do="give --data FILE.npz", code="FG120")
    if out is not None:
        named = [Path(item) for item in (model, plan) if isinstance(item, (str, Path))]
        check_writable(out, force=force, inputs=[*named, *files_of(data)])
    job = Job(Options(high_precision_dtype=high_precision_dtype), data, how, progress=progress)
    job.open(model, recipe, target, plan, None, None)
    if job.effort is LIGHT and job.given is None:
        # What they gain is no op's own, and learning it would take longer than measuring.
        job.repairs = [item for item in job.repairs if not item.learns]
    settled = job.settled_plan(None, plan_only=False)
    if not any(True for _ in settled.quantized()):
        raise nothing_quantized(settled, job)
    assert job.feeds is not None
    ranking, unmeasured = sense(job, settled, job.feeds, used, exact=bool(exact), jobs=workers)
    _say(job, ranking, unmeasured)
    kept, reached = _kept(job, settled, ranking, until, number)
    files: tuple[WrittenFile, ...] = ()
    if out is not None:
        write_text(out, keep_recipe(settled, [(key, _why(ranking.of(key), used)) for key in kept]))
        files = (describe(out),)
    return Sensitivity(ranking, unmeasured, used.name, settled, tuple(kept), reached, files, job.ctx.notes.items())


def _say(job: Job, ranking: Ranking, unmeasured: Sequence[OpKey]) -> None:
    if unmeasured:
        text = f"{len(unmeasured)} ops were not measured: the target's form of them cannot be switched"
        job.ctx.note("FG246", unmeasured[0], text, severity="warning")
    if not ranking.exact and ranking.spent > 5.5:
        text = (
            f"{ranking.samples} samples are few for {len(ranking.costs)} ops: it cost {ranking.spent:.0f} evaluations"
        )
        job.ctx.note("FG246", "", f"{text} of them, and rests on one; give more samples, or --exact")


def _kept(
    job: Job, plan: Plan, ranking: Ranking, until: tuple[Metric, float] | None, top: int | None
) -> tuple[list[OpKey], float | None]:
    """The keep-list, the costliest first, and what the plan with it is worth where that was judged."""
    order = [cost.key for cost in ranking.costs]
    if until is None:
        number = top if top is not None else _half(ranking)
        kept = {key for unit in units_of(plan) if set(unit.keys) & set(order[:number]) for key in unit.keys}
        return [key for key in order if key in kept], None
    judge, least = Judge(job, metric=until[0]), until[1]
    units = [Unit(unit.keys, unit.cost, 1.0) for unit in units_of(plan, {c.key: c.total for c in ranking.costs})]

    def judged(kept: Kept) -> float:
        keys = [key for place in kept for key in units[place].keys]
        return judge.measured(keep(plan, keys, Reason("FG238", "sensitivity", "it is tried out"))).value

    noise = (lambda value: 10 ** (-value / 10) if value > -3000 else math.inf) if until[0].kind == "sqnr" else None
    budget = Budget(units, judged, least, noise)
    found = budget.search()
    if found is None:
        best = budget.best()
        raise UnmetError(
            "no keep-list holds the accuracy that was asked for",
            where="--keep-until",
            why=f"{least:g} was asked for; the best of {len(budget.steps)} plans reached {best.value:.6g}",
            do="ask for less, or make the plan with --high-precision-dtype fp32",
            code="FG151",
        )
    kept = {key for place in found.kept for key in units[place].keys}
    return [*(key for key in order if key in kept), *sorted(kept - set(order))], found.value


def _half(ranking: Ranking) -> int:
    done, number = 0.0, 0
    for cost in ranking.costs:
        if done >= _HALF:
            break
        done, number = done + cost.share, number + 1
    return number


def _bound(given: Any) -> tuple[Metric, float] | None:
    """What `sqnr>=30` says: the metric, and the least value by it. Raises UsageError FG100."""
    if given is None:
        return None
    found = re.fullmatch(r"\s*(sqnr|cosine|max-abs)\s*(>=|<=)\s*(-?[0-9.]+(?:e-?[0-9]+)?)\s*", str(given))
    if found is None or (found[2] == "<=") != (found[1] == "max-abs"):
        what, do = f"'{given}' is no bound", "write 'sqnr>=30', 'cosine>=0.99' or 'max-abs<=0.1'"
        raise UsageError(what, where="--keep-until", do=do, code="FG100")
    value = float(found[3])
    return Metric.of(found[1]), -value if found[1] == "max-abs" else value


def _why(cost: Cost, metric: Metric) -> str:
    if metric.kind == "sqnr":
        return f"sensitivity: alone it leaves {_decibels(cost.total)} dB, {100 * cost.share:.2g} % of the noise"
    return f"sensitivity: it costs {cost.total:.3g} of {Path(metric.name).name}"


def _decibels(noise: float) -> float | None:
    return round(-10 * math.log10(noise), 2) if 0 < noise < math.inf else None


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
