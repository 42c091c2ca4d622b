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

# What the whole may cost, in plain evaluations of all samples.
AFFORDABLE = 5.0
# What a run with switches costs, in plain runs: measured 1.0 (stories260k) to 2.4 (resnet20, whose convolutions lose
# their layout at each switch), on two cores, onnxruntime 1.32, 2026-11.
RUN_COST = {"conv": 2.5, "other": 1.5}
_ENOUGH = 2  # samples for each operand, below which whole operators are measured


@dataclass(frozen=True)
class Operand:
    """Something that can be switched: an operand of an op, or (slot None) the op as a whole. `name`: its switch."""

    key: str
    slot: int | None
    name: str
    weight: bool = False


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
) -> Ranking:
    """Measures what is affordable, and ranks the ops; `exact` measures each op and each operand on all samples.

    With less to spend than two samples for each operand, ops are measured as wholes, and the costliest of them are then
    split as far as it goes; one sample for each op is the least, whatever it costs.
    """
    ops = list(dict.fromkeys(operand.key for operand in operands))
    if exact:
        return _wholes(operands, ops, measure, range(samples), samples, run_cost, len(operands), exact=True)
    affordable = int(AFFORDABLE * samples / run_cost)
    each = affordable // (len(operands) + 1)
    if each >= _ENOUGH:
        chosen = spread(samples, min(each, samples))
        noises = measure([frozenset([operand.name]) for operand in operands], chosen)
        parts = dict(zip(operands, noises, strict=True))
        runs = len(chosen) * (len(operands) + 1)
        return _ranked(operands, ops, {}, parts, runs, len(chosen), samples, run_cost)
    chosen = spread(samples, min(max(1, affordable // (len(ops) + 1)), samples))
    left = max(0, affordable - len(chosen) * (len(ops) + 1)) // len(chosen)
    return _wholes(operands, ops, measure, chosen, samples, run_cost, left)


def _wholes(
    operands: Sequence[Operand],
    ops: Sequence[str],
    measure: Measure,
    chosen: Sequence[int],
    samples: int,
    run_cost: float,
    left: int,
    *,
    exact: bool = False,
) -> Ranking:
    """Ops as wholes, then the operands of the costliest, as many as `left` says."""
    by_key = {key: [operand for operand in operands if operand.key == key] for key in ops}
    noises = measure([frozenset(operand.name for operand in by_key[key]) for key in ops], chosen)
    totals = dict(zip(ops, noises, strict=True))
    wanted: list[Operand] = []
    for key in sorted(ops, key=lambda item: -totals[item]):
        parts = [operand for operand in by_key[key] if len(by_key[key]) > 1]
        if len(wanted) + len(parts) > left:
            break
        wanted += parts
    found = measure([frozenset([operand.name]) for operand in wanted], chosen) if wanted else []
    runs = len(chosen) * (len(ops) + 1 + len(wanted) + (1 if wanted else 0))
    split = dict(zip(wanted, found, strict=True))
    return _ranked(operands, ops, totals, split, runs, len(chosen), samples, run_cost, exact=exact)


def _ranked(
    operands: Sequence[Operand],
    ops: Sequence[str],
    totals: Mapping[str, float],
    parts: Mapping[Operand, float],
    runs: int,
    seen: int,
    samples: int,
    run_cost: float,
    *,
    exact: bool = False,
) -> Ranking:
    costs = []
    for key in ops:
        own = {item.slot: noise for item, noise in parts.items() if item.key == key and item.slot is not None}
        single = [noise for item, noise in parts.items() if item.key == key]
        weight = next((item.slot for item in operands if item.key == key and item.weight), None)
        costs.append(Cost(key, totals[key] if key in totals else sum(single), own, weight))
    whole = sum(max(cost.total, 0.0) for cost in costs if math.isfinite(cost.total))
    shared = [_shared(cost, whole) for cost in costs]
    order = {key: place for place, key in enumerate(ops)}
    shared.sort(key=lambda cost: (-cost.total, order[cost.key]))
    return Ranking(tuple(shared), runs, runs * run_cost / max(samples, 1), seen, samples, exact)


def _shared(cost: Cost, whole: float) -> Cost:
    share = max(cost.total, 0.0) / whole if whole > 0 and math.isfinite(cost.total) else 0.0
    return Cost(cost.key, cost.total, cost.parts, cost.weight, share)


def spread(samples: int, wanted: int) -> list[int]:
    """Indices of `wanted` of the samples, evenly over all of them."""
    return [(2 * place + 1) * samples // (2 * wanted) for place in range(wanted)]
