"""What each quantized operand costs the model's output, measured one at a time on as many samples as are affordable.

Noises of single operands nearly add up (facts: resnet20 17.3 dB as a sum, 17.7 together), and the order of the operands
shows on few samples already where all of them see the same ones; random subsets and a regression are worse for small
costs. So each is measured alone, on a number of samples that follows from a count of runs, not from a clock: the same
call gives the same ranking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

# What the whole may cost, in plain evaluations of all samples.
AFFORDABLE = 5.0
# What a run with switches costs, in plain runs: measured 1.0 (stories260k), 1.1 (minilm), 1.4 (squeezenet), 2.0
# (resnet20, whose convolutions lose their fused forms), on two cores, onnxruntime 1.32, 2026-11.
RUN_COST = {"conv": 2.0, "other": 1.25}
# The part of it that splits ops into operands, where as many samples as this are left for whole ops.
_SPLIT, _ENOUGH = 0.25, 3


@dataclass(frozen=True)
class Operand:
    """Something that can be switched: an operand of an op, or (slot None) the op as a whole. `name`: its switch;
    `share`: the part of the model that has to run for it, 0 to 1."""

    key: str
    slot: int | None
    name: str
    weight: bool = False
    share: float = 1.0


# The cost of each set of switches that is on, over the samples with these indices, against all of them off.
Measure = Callable[[Sequence[frozenset[str]], Sequence[int]], Sequence[float]]


@dataclass(frozen=True)
class Cost:
    """What FP8 costs the output at one op: in the metric's measure, more for worse.

    total    of the op; `parts` by input slot, where they were measured; `weight` the slot of the constant operand
    share    its part of the sum over all ops
    """

    key: str
    total: float
    parts: Mapping[int, float] = field(default_factory=dict)
    weight: int | None = None
    share: float = 0.0


@dataclass(frozen=True)
class Ranking:
    """All ops, the costliest first.

    runs      runs of the switched model
    spent     their cost in plain evaluations of all samples, as counted
    seen      samples that each op was measured on, of `samples`
    """

    costs: tuple[Cost, ...]
    runs: int
    spent: float
    seen: int
    samples: int
    exact: bool = False

    def of(self, key: str) -> Cost:
        """The cost of one op; 0 for one that was not measured."""
        return next((cost for cost in self.costs if cost.key == key), Cost(key, 0.0))


def rank(
    operands: Sequence[Operand],
    samples: int,
    measure: Measure,
    *,
    run_cost: float = RUN_COST["conv"],
    exact: bool = False,
    split: bool = False,
    additive: bool = True,
) -> Ranking:
    """Measures what is affordable, and ranks the ops.

    Ops are measured as wholes on some samples, their operands apart on others; where too little is left for that, only
    those of the costliest ops. One sample for each op is the least, whatever it costs.

    exact     each op and each operand on all samples
    split     each operand, on one sample at least, whatever it costs
    additive  whether the costs of operands add up to that of their op
    """
    by_key: dict[str, list[Operand]] = {}
    for operand in operands:
        by_key.setdefault(operand.key, []).append(operand)
    parted = [operand for parts in by_key.values() if len(parts) > 1 for operand in parts]
    ops = _Level({key: frozenset(item.name for item in parts) for key, parts in by_key.items()})
    ops.cost = 1 + sum(max(part.share for part in parts) for parts in by_key.values())
    each = _Level({operand: frozenset([operand.name]) for operand in parted})
    each.cost = 1 + sum(operand.share for operand in parted)
    affordable = AFFORDABLE * samples / run_cost
    if exact:
        ops.chosen = each.chosen = range(samples)
    else:
        _choose(ops, each, affordable, samples)
        if split and not each.chosen:
            each.chosen = ops.chosen[:1]
    totals, parts = ops.measured(measure), each.measured(measure) if parted else {}
    if not parts and not exact:
        parts = _costliest(by_key, totals, measure, ops, affordable)
    elif additive and not set(ops.chosen) & set(each.chosen):
        totals = _joined(by_key, totals, parts, len(ops.chosen), len(each.chosen))
    spent = (ops.spent + each.spent) * run_cost / max(samples, 1)
    return Ranking(_costs(by_key, totals, parts, exact), ops.runs + each.runs, spent, len(ops.chosen), samples, exact)


class _Level:
    """Sets of switches, the samples that they are measured on, and what that costs in runs of the model."""

    def __init__(self, sets: Mapping[Any, frozenset[str]]) -> None:
        self.sets, self.chosen, self.cost = sets, cast(Sequence[int], ()), 0.0
        self.runs, self.spent = 0, 0.0

    def measured(self, measure: Measure) -> dict[Any, float]:
        """The cost of each set; nothing where no sample was chosen."""
        if not self.chosen:
            return {}
        self.runs += len(self.chosen) * (len(self.sets) + 1)
        self.spent += len(self.chosen) * self.cost
        return dict(zip(self.sets, measure(list(self.sets.values()), self.chosen), strict=True))


def _choose(ops: _Level, each: _Level, affordable: float, samples: int) -> None:
    """Samples for whole ops, and others for their operands where enough is left: noises of one op on two samples, or of
    its operands on one, tell the order alike, so that none is wasted."""
    some = each.sets and affordable - each.cost >= _ENOUGH * ops.cost
    parts = min(max(1, int(_SPLIT * affordable / each.cost)), samples) if some else 0
    wholes = min(max(1, int((affordable - parts * each.cost) / ops.cost)), samples)
    if parts + wholes > samples:
        ops.chosen, each.chosen = spread(samples, wholes), spread(samples, parts) if parts else []
        return
    both = spread(samples, parts + wholes)
    each.chosen = [both[place] for place in spread(len(both), parts)] if parts else []
    ops.chosen = [index for index in both if index not in each.chosen]


def _costliest(
    by_key: Mapping[str, Sequence[Operand]],
    totals: Mapping[str, float],
    measure: Measure,
    ops: _Level,
    affordable: float,
) -> dict[Operand, float]:
    """The operands of the costliest ops, as many as can be afforded yet, on the first sample."""
    left = affordable - ops.spent - 1
    wanted: list[Operand] = []
    for key in sorted(by_key, key=lambda item: -totals[item]):
        parts = by_key[key] if len(by_key[key]) > 1 else []
        left -= sum(part.share for part in parts)
        if left < 0:
            break
        wanted += parts
    level = _Level({operand: frozenset([operand.name]) for operand in wanted})
    level.chosen, level.cost = ops.chosen[:1], 1 + sum(operand.share for operand in wanted)
    found = level.measured(measure) if wanted else {}
    ops.runs, ops.spent = ops.runs + level.runs, ops.spent + level.spent
    return found


def _joined(
    by_key: Mapping[str, Sequence[Operand]],
    totals: Mapping[str, float],
    parts: Mapping[Operand, float],
    wholes: int,
    split: int,
) -> dict[str, float]:
    """Costs of whole ops, and the sums of their operands on other samples, as one mean."""
    found = dict(totals)
    for key, operands in by_key.items():
        if len(operands) > 1 and split:
            own = sum(parts[operand] for operand in operands)
            found[key] = (wholes * totals[key] + split * own) / (wholes + split)
    return found


def _costs(
    by_key: Mapping[str, Sequence[Operand]], totals: Mapping[str, float], parts: Mapping[Operand, float], exact: bool
) -> tuple[Cost, ...]:
    """The costliest first; equal ones in the order of the graph."""
    costs = []
    for key, operands in by_key.items():
        own = {item.slot: parts[item] for item in operands if item in parts and item.slot is not None}
        whole = sum(own.values())
        if own and not exact and whole > 0 and math.isfinite(whole):  # seen on other samples: their shares of the whole
            own = {slot: totals[key] * part / whole for slot, part in own.items()}
        weight = next((item.slot for item in operands if item.weight), None)
        # An op without a split is one operand, or one switch: nothing is known of its parts.
        single = {item.slot: totals[key] for item in operands if item.slot is not None} if len(operands) == 1 else {}
        costs.append(Cost(key, totals[key], own or single, weight))
    everything = sum(max(cost.total, 0.0) for cost in costs if math.isfinite(cost.total))
    return tuple(sorted((_shared(cost, everything) for cost in costs), key=lambda cost: -cost.total))


def _shared(cost: Cost, whole: float) -> Cost:
    share = max(cost.total, 0.0) / whole if whole > 0 and math.isfinite(cost.total) else 0.0
    return Cost(cost.key, cost.total, cost.parts, cost.weight, share)


def spread(samples: int, wanted: int) -> list[int]:
    """Indices of `wanted` of the samples, evenly over all of them."""
    return [(2 * place + 1) * samples // (2 * wanted) for place in range(wanted)]
