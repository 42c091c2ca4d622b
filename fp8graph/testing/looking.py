"""What a PlanRule and a Repair promise, held against one model: they look, and leave everything as it is."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.base.codes import CODES
from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Opinion, PlanRule, Repair
from fp8graph.data.plan import Decision
from fp8graph.graph import walk
from fp8graph.graph.tensors import is_constant, read
from fp8graph.numerics import sidecar
from fp8graph.testing.errors import ContractError, CrashError, PurityError
from fp8graph.testing.models import Array
from fp8graph.testing.prepare import Prepared
from fp8graph.testing.statistics import informed


def hold_unchanged(item: PlanRule | Repair, where: str, prepared: Prepared) -> int:
    """The promises of what only looks at a model; the number of its answers."""
    assert prepared.ctx.plan is not None
    plan = prepared.ctx.plan
    if isinstance(item, Repair):
        prepared = replace(prepared, ctx=informed(item, prepared))
    was, count = ir.to_proto(prepared.model).SerializeToString(deterministic=True), 0
    arrays: dict[str, Array] = {}
    for place in walk.walk(prepared.model):
        decision = plan.ops[place.key]
        op = OpView(place, prepared.facts, half=decision.high != "fp32")
        try:
            if isinstance(item, PlanRule):
                count += _hold_rule(item, where, op, replace(prepared.ctx, plan=None))
            elif decision.do == "quantize":
                count += _hold_repair(item, where, op, decision, prepared, arrays)
        except ContractError:
            raise
        except Exception as error:  # whatever a pass may raise
            raise CrashError(item, where, f"it raised {type(error).__name__} on '{op.key}': {error}") from error
    if ir.to_proto(prepared.model).SerializeToString(deterministic=True) != was:
        raise PurityError(item, where, "it changed the model")
    return count


def _hold_rule(rule: PlanRule, where: str, op: OpView, ctx: Context) -> int:
    first, second = rule.decide(op, ctx), rule.decide(op, ctx)
    if first != second:
        raise PurityError(rule, where, f"it answered {first} and then {second} about '{op.key}'")
    if first is None:
        return 0
    _hold_opinion(rule, where, first)
    return 1


def _hold_repair(
    item: Repair, where: str, op: OpView, decision: Decision, prepared: Prepared, arrays: dict[str, Array]
) -> int:
    """`arrays` collects what was found in the whole model: one name means one array."""
    known = {op.all_facts.qualified(value) for _, graph in walk.graphs(prepared.model) for value in walk.values(graph)}
    for need in item.needs(op, decision):
        name = need if isinstance(need, str) else need.tensor
        if name not in known:
            raise PurityError(item, where, f"it needs '{name}' for '{op.key}', and the model has no such tensor")

    offers = list(item.offers(op, decision, prepared.ctx))
    if offers != list(item.offers(op, decision, prepared.ctx)):
        raise PurityError(item, where, f"it made other offers the second time for '{op.key}'")
    for offer in offers:
        if offer.slot not in decision.inputs or offer.channel < 0 or not offer.cost >= 0:
            raise PurityError(item, where, f"{offer} is about nothing that '{op.key}' has")

    def weights(slot: int) -> Array:
        value = op.input(slot)
        if value is None or not is_constant(value):
            raise ValueError(f"input {slot} is no constant")
        return read(value)

    first, second = (list(item.solve(op, decision, prepared.ctx, weights)) for _ in range(2))
    if [a for a, _ in first] != [a for a, _ in second] or any(
        not np.array_equal(one, other) for (_, one), (_, other) in zip(first, second, strict=True)
    ):
        raise PurityError(item, where, f"it found two things for '{op.key}'")
    for adjust, array in first:
        at = f"what it found for input {adjust.slot} of '{op.key}'"
        if adjust.value != sidecar.reference(adjust.value.name, array):
            raise PurityError(item, where, f"{at} is not the array that it refers to")
        if not np.array_equal(arrays.setdefault(adjust.value.name, array), array):
            raise PurityError(item, where, f"{at} has a name that stands for another array: '{adjust.value.name}'")
        # Of what hangs on an activation, the weight is that which it is multiplied by, where that is one.
        bound = adjust.slot if is_constant(op.input(adjust.slot)) else 1 - adjust.slot
        digest = sidecar.weight_digest(weights(bound)) if is_constant(op.input(bound)) else ""
        if adjust.slot not in decision.inputs or adjust.weight != digest:
            raise PurityError(item, where, f"{at} is not bound to a quantized weight of that op")
        if adjust.rule != item.name:
            raise PurityError(item, where, f"{at} is signed '{adjust.rule}'")
    return len(first)


def _hold_opinion(rule: PlanRule, where: str, opinion: Any) -> None:
    if not isinstance(opinion, Opinion) or opinion.do not in ("quantize", "keep") or not opinion.text:
        raise PurityError(rule, where, f"{opinion!r} is no opinion with a text")
    if opinion.code.startswith("FG"):
        known = opinion.code in CODES
    else:  # codes of other packages have letters of their own
        known = re.fullmatch(r"[A-Z]{2,}\d+", opinion.code) is not None
    if not known:
        raise PurityError(rule, where, f"there is no code '{opinion.code}'")
