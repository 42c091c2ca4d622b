"""Recipe `auto`: the format of each op by what it costs the model's output on the data."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fp8graph.base.errors import UsageError
from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import is_random
from fp8graph.core.planner import COMPUTE
from fp8graph.core.settle import settle
from fp8graph.data.plan import CAME, PAIR, Decision, OpKey, Plan, Reason
from fp8graph.engines.sizes import op_sizes
from fp8graph.flow.judging import Metric
from fp8graph.flow.sensing import sense
from fp8graph.numerics.ranges import Ranges
from fp8graph.search.units import units_of

if TYPE_CHECKING:
    from fp8graph.flow.job import Job

log = logging.getLogger(__name__)
# Samples that costs are measured on.
_SENSED = 64
# Another format than the recipe's has to lose so much less: differences below 1 dB are noise of the measurement.
_BETTER = 10**0.1
# An op is not worth it whose part of the noise is so many times its part of the multiply-accumulates, and at least one
# percent.
_WORST, _SEEN = 20.0, 0.01
# FP8 that computes less than a tenth of a model cannot make it a tenth faster.
_LITTLE = 0.1
# A kernel takes microseconds to start, in which a GPU with FP8 multiplies more than this.
_TINY = 1_000_000
_BY = "recipe {}: quantize.instead"


@dataclass(frozen=True)
class _Way:
    """One settled plan, with what it costs at each op that could be measured: noise over signal power."""

    plan: Plan
    costs: Mapping[OpKey, float]

    def cost(self, keys: Sequence[OpKey]) -> float:
        """Of all these ops together."""
        return sum(max(self.costs.get(key, 0.0), 0.0) for key in keys)

    def takes(self, keys: Sequence[OpKey]) -> bool:
        """Whether all of them are quantized, and measured."""
        return all(self.plan.ops[key].do == "quantize" and key in self.costs for key in keys)


def check(job: Job) -> None:
    """Raises UsageError FG120 where there are no samples to measure on: ranges alone do not do, nor does noise."""
    if job.feeds is not None and not is_random(job.data):
        return
    raise UsageError(
        "this recipe needs data and none was given",
        where=f"--recipe {job.ctx.recipe.name}",
        why="it picks the format of each op by what that costs the model's output"
        + (", of which random data says nothing" if job.feeds is not None else ""),
        do="give --data FILE.npz (arrays by input name), or a folder; or --recipe fp8-default",
        code="FG120",
    )


def mixed(job: Job, plan: Plan, others: Sequence[Plan], seen: Ranges) -> Plan:
    """The settled plan with the best format for each of its units (ops that are decided as one).

    others   the plans of the same model in other formats, not settled yet
    """
    plans = [plan, *(settle(other, seen, job.normalized.model, Notes()) for other in others)]
    ways = [_way(job, each) for each in plans]
    macs = {key: float(size or 0) for key, (size, _) in op_sizes(job.normalized.model, plan.shapes).items()}
    chosen = {keys: _chosen(keys, ways) for keys in _units(plans)}
    whole = sum(way.cost(keys) for keys, way in chosen.items())
    work = sum(macs.get(key, 0.0) for keys in chosen for key in keys)
    ops = dict(plan.ops)
    for keys, way in chosen.items():
        part = sum(macs.get(key, 0.0) for key in keys) / work if work > 0 else 0.0
        spared = "" if any(_wanted(plan.ops[key]) for key in keys) else _spared(way.cost(keys), whole, part)
        for key in keys:
            ops[key] = _decided(job, key, keys, way, ways, spared)
    done = replace(plan, ops=ops)
    _warn(job, done, macs)
    return done


def _spared(cost: float, whole: float, part: float) -> str:
    """Why ops with this part of the work are not worth what they cost; empty where they are."""
    if math.isinf(cost):
        return "it leaves nothing of the output"
    noise = cost / whole if whole > 0 else 0.0
    if part <= 0 or noise < _SEEN or noise <= _WORST * part:
        return ""
    return f"{noise:.0%} of the noise for {part:.2%} of the multiply-accumulates"


def _wanted(op: Decision) -> bool:
    """Whether the user named the op, or it came quantized."""
    return op.why.code == "FG204" or any(quant.scale.rule in (CAME, PAIR) for quant in op.inputs.values())


def _way(job: Job, plan: Plan) -> _Way:
    assert job.feeds is not None
    ranking, _ = sense(job, plan, job.feeds.first(_SENSED), Metric())
    return _Way(plan, {cost.key: cost.total for cost in ranking.costs})


def _units(plans: Sequence[Plan]) -> list[tuple[OpKey, ...]]:
    """Ops that are decided as one in any of the plans, in the order of the graph."""
    joined: dict[OpKey, set[OpKey]] = {}
    for plan in plans:
        for unit in units_of(plan):
            whole = set(unit.keys).union(*(joined.get(key, set()) for key in unit.keys))
            joined.update(dict.fromkeys(whole, whole))
    place = {key: index for index, key in enumerate(plans[0].ops)}
    distinct = {id(keys): tuple(sorted(keys, key=place.__getitem__)) for keys in joined.values()}
    return sorted(distinct.values(), key=lambda keys: place[keys[0]])


def _chosen(keys: Sequence[OpKey], ways: Sequence[_Way]) -> _Way:
    """The way that costs the least: another than the first where it is a decibel better."""
    own, *others = ways
    able = [way for way in others if way.takes(keys)]
    best = min(able, key=lambda way: way.cost(keys), default=own)
    if not own.takes(keys):
        # Not measured, or the target runs it in another format alone.
        return best if any(own.plan.ops[key].do == "keep" for key in keys) else own
    return best if best.cost(keys) * _BETTER <= own.cost(keys) else own


def _decided(job: Job, key: OpKey, keys: Sequence[OpKey], way: _Way, ways: Sequence[_Way], spared: str) -> Decision:
    """The decision of the way that was chosen, with what every way costs as the reason."""
    op = way.plan.ops[key]
    told = [f"{_family(each.plan.ops[keys[0]])} {_decibels(each.cost(keys))}" for each in ways if each.takes(keys)]
    if op.do == "keep" or not told:
        return op
    by, alone = _BY.format(job.ctx.recipe.name), f"alone it leaves {', '.join(told)}"
    if spared:
        return op.kept(Reason("FG244", by, f"{spared}: {alone}"))
    return replace(op, why=Reason("FG243", by, f"{op.why.text}: {alone}"))


def _family(op: Decision) -> str:
    return op.precision.upper()


def _decibels(cost: float) -> str:
    if cost <= 0:
        return "all of it"
    return f"{-10 * math.log10(cost):.1f} dB" if math.isfinite(cost) else "nothing"


def _warn(job: Job, plan: Plan, macs: Mapping[OpKey, float]) -> None:
    """Says where FP8 buys nothing: where it computes little of the model, or the model is too small for it."""
    products = {key: op for key, op in plan.ops.items() if op.op_type in COMPUTE}
    work = sum(macs.get(key, 0.0) for key in products)
    fp8 = [key for key, op in products.items() if op.do == "quantize" and op.precision == "fp8"]
    share = sum(macs.get(key, 0.0) for key in fp8) / work if work else 0.0
    do = "measure on the device, against --recipe int8 and --recipe fp16: python -m fp8graph bench"
    if products and share < _LITTLE:
        left = Counter(_instead(op) for key, op in products.items() if key not in fp8)
        why = "; ".join(f"{count}x {text}" for text, count in left.most_common(3))
        text = f"FP8 buys little here: it computes {share:.0%} of the multiply-accumulates ({why})"
        job.ctx.note("FG245", "", text, severity="warning", do=do)
    largest = max((macs.get(key, 0.0) for key in fp8), default=0.0)
    if job.ctx.target.builder.startswith("tensorrt") and 0 < largest < _TINY:
        text = f"FP8 buys nothing here: the largest product has {largest:,.0f} multiply-accumulates, less than a kernel"
        text += " takes to start"
        job.ctx.note("FG245", "", text, severity="warning", do=do)


def _instead(op: Decision) -> str:
    if op.do == "quantize":
        return f"in {_family(op)}"
    return "kept for its noise" if op.why.code == "FG244" else f"kept: {op.why.text}"
