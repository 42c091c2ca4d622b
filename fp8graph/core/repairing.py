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
from fp8graph.data.plan import Adjust, Decision, OpKey, Plan
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
    gives them what they want to know of a plan; those that learn come last, op after op as one depends on the other: `observe(plan, ops, later)` gives the moments of the operands of `ops` under that plan,
    and is told of which ops it will be asked later; without it they are not asked. An op that was adjusted already (a
    replayed plan) is left alone. Raises PassContractError where a repair refers to an array that it did not hand over.
    """
    asked = [item for item in repairs if (observe or not item.learns) and (weigh or not item.weighs)]
    if not asked:
        return plan
    ops: dict[OpKey, Decision] = dict(plan.ops)
    arrays = dict(plan.arrays)
    places = [place for place in walk.walk(normalized.model) if _open(ops.get(place.key))]
    for item in asked:
        if item.weighs and weigh is not None and places:
            now = replace(plan, ops=dict(ops), arrays=dict(arrays))
            _weighed(item, places, ops, arrays, replace(ctx, plan=now, **vars(weigh(now))), facts)
    learning = [item for item in asked if item.learns]
    steps = _levels(normalized.model, places) if learning else []
    with stage(ctx.progress, "repairing", len(places) + sum(map(len, steps)), "ops"):
        for place in places:
            for item in asked:
                if not item.learns and not item.weighs:
                    ops[place.key] = _solved(item, place, ops[place.key], ctx, facts, arrays)
            ctx.progress.step()
        for number, level in enumerate(steps):
            assert observe is not None
            later = [place.key for behind in steps[number + 1 :] for place in behind]
            now = replace(plan, ops=dict(ops), arrays=dict(arrays))
            learned = replace(ctx, moments=observe(now, [place.key for place in level], later), found=arrays)
            for place in level:
                for item in learning:
                    ops[place.key] = _solved(item, place, ops[place.key], learned, facts, arrays)
                ctx.progress.step()
    return replace(plan, ops=ops, arrays=arrays)


def _weighed(
    item: Repair,
    places: Sequence[walk.Place],
    ops: dict[OpKey, Decision],
    arrays: dict[str, Array],
    ctx: Context,
    facts: Facts,
) -> None:
    """Asks for offers, grants the best of them, and lets them be solved."""
    offers: list[tuple[OpKey, Offer]] = []
    for place in places:
        decision = ops[place.key]
        view = OpView(place, facts, half=decision.high != "fp32")
        with holding("repair", item.name, f"op {place.key}"):
            made: Sequence[Offer] = sequence_of(
                item.name, item.offers(view, decision, ctx), Offer, f"op {place.key}"
            )
        offers += [(place.key, offer) for offer in made]
    both = [key for key, op in ops.items() if op.do == "quantize" and op.precision == "fp8"]
    budget = float(getattr(item, "share", 0.0)) * sum(ctx.macs.get(key, 0.0) for key in both)
    granted: dict[OpKey, dict[int, list[int]]] = {}
    for key, offer in sorted(offers, key=lambda each: (-each[1].gain / max(each[1].cost, 1e-300), each[0])):
        if offer.cost <= budget:
            budget -= offer.cost
            granted.setdefault(key, {}).setdefault(offer.slot, []).append(offer.channel)
    told = replace(ctx, granted=granted)
    for place in places:
        if place.key in granted:
            ops[place.key] = _solved(item, place, ops[place.key], told, facts, arrays)


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


def _open(decision: Decision | None) -> bool:
    return decision is not None and decision.do == "quantize" and not decision.adjust


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
        found.append(adjust)
    return replace(decision, adjust=(*decision.adjust, *found))
