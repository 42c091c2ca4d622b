"""Repairs: between settling and quantizing, one op and one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from fp8graph.base.errors import PassContractError
from fp8graph.base.progress import stage
from fp8graph.core.context import Context, OpView
from fp8graph.core.contract import holding, sequence_of
from fp8graph.core.facts import Facts
from fp8graph.core.passes import Offer, Repair
from fp8graph.core.products import product_of
from fp8graph.data.plan import Adjust, Decision, OpKey, Plan, quant_digest
from fp8graph.graph import tensors, walk
from fp8graph.graph.stages import Normalized
from fp8graph.numerics.moments import Moments
from fp8graph.numerics.ranges import Need
from fp8graph.numerics.sidecar import Array


def needs(plan: Plan, normalized: Normalized, repairs: Sequence[Repair], facts: Facts) -> list[Need]:
    """What repairs want observed, beside what the plan does."""
    wanted: dict[Need, None] = {}
    for place in walk.walk(normalized.model) if repairs else ():
        decision = plan.ops.get(place.key)
        if decision is not None and decision.do == "quantize":
            view = OpView(place, facts, half=decision.high != "fp32")
            for item in repairs:
                with holding("repair", item.name, f"op {place.key}"):
                    told: Sequence[str | Need] = sequence_of(
                        item.name, item.needs(view, decision), (str, Need), f"op {place.key}"
                    )
                wanted.update(dict.fromkeys(Need(each) if isinstance(each, str) else each for each in told))
    return list(wanted)


@dataclass(frozen=True)
class Weighed:
    """What single operands cost the output, how that is spread over their channels, and what ops compute: as
    `Context` has them."""

    costs: Mapping[tuple[OpKey, int], float]
    noises: Mapping[tuple[OpKey, int], Array]
    macs: Mapping[OpKey, float]


Observe = Callable[[Plan, Sequence[OpKey], Sequence[OpKey]], Mapping[OpKey, Moments]]
Weigh = Callable[[Plan], Weighed]


def repair(
    plan: Plan,
    normalized: Normalized,
    repairs: Sequence[Repair],
    ctx: Context,
    facts: Facts,
    observe: Observe | None = None,
    weigh: Weigh | None = None,
) -> Plan:
    """The settled plan with what the repairs have found, and the arrays that it now refers to.

    Repairs are asked in their order; each sees what those before it found. Those that weigh come first, where `weigh`
    gives them what they want to know of a plan; those that learn come last, op after op as one depends on the other:
    `observe(plan, ops, later)` gives the moments of the operands of `ops` under that plan, and is told of which ops it
    will be asked later. Without these two they are not asked, nor is any repair about an op for which it has found
    something already. Raises PassContractError where a repair refers to an array that it did not hand over.
    """
    asked = [item for item in repairs if (observe or not item.learns) and (weigh or not item.weighs)]
    work = _Work(plan, normalized, ctx, facts)
    if not asked or not work.places:
        return plan
    for item in asked:
        if item.weighs and weigh is not None:
            work.weigh(item, weigh(work.plan()))
    plain = [item for item in asked if not (item.weighs or item.learns)]
    learning = [item for item in asked if item.learns]
    steps = _levels(normalized.model, work.places) if learning else []
    with stage(ctx.progress, "repairing", (len(work.places) if plain else 0) + sum(map(len, steps)), "ops"):
        for place in work.places if plain else ():
            work.solve(place, plain, replace(ctx, found=work.arrays))
        for number, level in enumerate(steps):
            assert observe is not None
            later = [place.key for behind in steps[number + 1 :] for place in behind]
            moments = observe(work.plan(), [place.key for place in level], later)
            learned = replace(ctx, moments=moments, found=work.arrays)
            for place in level:
                work.solve(place, learning, learned)
    return work.plan()


class _Work:
    """The plan that is being repaired."""

    def __init__(self, plan: Plan, normalized: Normalized, ctx: Context, facts: Facts) -> None:
        self._plan, self._ctx, self._facts = plan, ctx, facts
        self.ops: dict[OpKey, Decision] = dict(plan.ops)
        self.arrays: dict[str, Array] = dict(plan.arrays)
        self.places = [
            place
            for place in walk.walk(normalized.model)
            if place.key in plan.ops and plan.ops[place.key].do == "quantize"
        ]

    def plan(self) -> Plan:
        """As it is now."""
        return replace(self._plan, ops=dict(self.ops), arrays=dict(self.arrays))

    def solve(self, place: walk.Place, repairs: Sequence[Repair], ctx: Context) -> None:
        """Asks repairs about one op."""
        for item in repairs:
            decision = self.ops[place.key]
            if not any(adjust.rule == item.name for adjust in decision.adjust):
                self.ops[place.key] = _solved(item, place, decision, ctx, self._facts, self.arrays)
        ctx.progress.step()

    def weigh(self, item: Repair, weighed: Weighed) -> None:
        """Asks one repair for offers, grants the best of them, and lets them be solved."""
        ctx = replace(self._ctx, plan=self.plan(), costs=weighed.costs, noises=weighed.noises, macs=weighed.macs)
        offers: list[tuple[OpKey, Offer]] = []
        for place in self.places:
            decision, where = self.ops[place.key], f"op {place.key}"
            view = OpView(place, self._facts, half=decision.high != "fp32")
            with holding("repair", item.name, where):
                made: Sequence[Offer] = sequence_of(item.name, item.offers(view, decision, ctx), Offer, where)
            offers += [(place.key, offer) for offer in made]
        fp8 = [key for key, op in self.ops.items() if op.do == "quantize" and op.precision == "fp8"]
        budget = float(getattr(item, "share", 0.0)) * sum(weighed.macs.get(key, 0.0) for key in fp8)
        granted = _granted(offers, budget)
        for place in self.places:
            if place.key in granted:
                self.solve(place, [item], replace(ctx, granted=granted))


def _granted(offers: Sequence[tuple[OpKey, Offer]], budget: float) -> dict[OpKey, dict[int, list[int]]]:
    """Those that gain the most for what they cost, as far as the budget goes."""
    granted: dict[OpKey, dict[int, list[int]]] = {}
    for key, offer in sorted(offers, key=lambda each: (-each[1].gain / max(each[1].cost, 1.0), each[0])):
        if offer.cost <= budget:
            budget -= offer.cost
            granted.setdefault(key, {}).setdefault(offer.slot, []).append(offer.channel)
    return granted


def _levels(model: ir.Model, places: Sequence[walk.Place]) -> list[list[walk.Place]]:
    """Products of the main graph with one constant operand, by how many of them lie in front of each at most."""
    mine = {place.node: place for place in places if not place.scope and product_of(place.node) is not None}
    depth: dict[ir.Value, int] = {}
    levels: dict[int, list[walk.Place]] = {}
    for node in model.graph:
        below = max((depth.get(value, 0) for value in walk.reads(node)), default=0)
        if node in mine:
            levels.setdefault(below, []).append(mine[node])
            below += 1
        depth.update(dict.fromkeys(node.outputs, below))
    return [levels[number] for number in sorted(levels)]


def _solved(
    item: Repair, place: walk.Place, decision: Decision, ctx: Context, facts: Facts, arrays: dict[str, Array]
) -> Decision:
    view = OpView(place, facts, half=decision.high != "fp32")

    def weights(slot: int) -> Array:
        value = view.input(slot)
        if value is None or not tensors.is_constant(value):
            raise ValueError(f"input {slot} of '{view.key}' is no constant")
        array = tensors.read(value)
        tensors.release(value)
        return array

    found: list[Adjust] = []
    with holding("repair", item.name, f"op {place.key}"):
        solved = sequence_of(item.name, item.solve(view, decision, ctx, weights), tuple, f"op {place.key}")
    for pair in solved:
        if len(pair) != 2 or not isinstance(pair[0], Adjust) or not hasattr(pair[1], "dtype"):
            what, why = f"the repair {item.name} broke its contract", f"it returned {pair!r:.80}"
            raise PassContractError(what, where=f"op {place.key}", why=why, do="return (Adjust, array)", code="FG901")
        adjust, array = pair
        if (str(array.dtype), tuple(array.shape)) != (adjust.value.dtype, adjust.value.shape):
            raise PassContractError(f"the repair {item.name} refers to another array than it hands over", code="FG901")
        arrays[adjust.value.name] = array
        found.append(replace(adjust, quant=quant_digest(decision.inputs.get(adjust.slot))))
    return replace(decision, adjust=(*decision.adjust, *found))
