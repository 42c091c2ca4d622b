"""Repairs: between settling and quantizing, one op and one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fp8graph.base.errors import PassContractError
from fp8graph.base.progress import stage
from fp8graph.core.context import Context, OpView
from fp8graph.core.contract import holding, sequence_of
from fp8graph.core.facts import Facts
from fp8graph.core.passes import Repair
from fp8graph.data.plan import Adjust, Decision, OpKey, Plan
from fp8graph.graph import tensors, walk
from fp8graph.graph.stages import Normalized
from fp8graph.numerics.sidecar import Array


def needs(plan: Plan, normalized: Normalized, repairs: Sequence[Repair], facts: Facts) -> list[str]:
    """Tensors that repairs want observed, beside those of the plan."""
    wanted: dict[str, None] = {}
    for place in walk.walk(normalized.model) if repairs else ():
        decision = plan.ops.get(place.key)
        if decision is not None and decision.do == "quantize":
            view = OpView(place, facts, half=decision.high != "fp32")
            for item in repairs:
                with holding("repair", item.name, f"op {place.key}"):
                    names = sequence_of(item.name, item.needs(view, decision), str, f"op {place.key}")
                wanted.update(dict.fromkeys(names))
    return list(wanted)


def repair(plan: Plan, normalized: Normalized, repairs: Sequence[Repair], ctx: Context, facts: Facts) -> Plan:
    """The settled plan with what the repairs have found, and the arrays that it now refers to.

    Repairs are asked in their order; each sees what those before it found. An op that was adjusted already (a
    replayed plan) is left alone. Raises PassContractError where a repair refers to an array that it did not hand over.
    """
    if not repairs:
        return plan
    ops: dict[OpKey, Decision] = dict(plan.ops)
    arrays = dict(plan.arrays)
    places = [place for place in walk.walk(normalized.model) if _open(ops.get(place.key))]
    with stage(ctx.progress, "repairing", len(places), "ops"):
        for place in places:
            for item in repairs:
                ops[place.key] = _solved(item, place, ops[place.key], ctx, facts, arrays)
            ctx.progress.step()
    return replace(plan, ops=ops, arrays=arrays)


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
