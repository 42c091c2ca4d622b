"""Which ops an engine owes, and in which precision: those of a plan, or those that a model's own Q/DQ promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fp8graph.base.errors import UsageError
from fp8graph.core.quants import planned_facts
from fp8graph.data import target as targets
from fp8graph.data.plan import Decision, Plan
from fp8graph.data.target import Target
from fp8graph.engines.sites import PRODUCTS, Operand, Site, operand
from fp8graph.engines.witness import SMALL
from fp8graph.formats import family
from fp8graph.graph import walk


@dataclass(frozen=True, eq=False)
class Promise:
    """One op that was to be quantized. `sites`: the nodes of the model that stand for it, none where it is absent."""

    key: str
    op_type: str
    name: str
    planned: str
    sites: tuple[Site, ...]


def planned_word(decision: Decision, target: Target | None = None) -> str:
    """What a decision promises: the family that both operands have, or `storage` where only one is quantized.

    Of two families that of the activation counts, which is the one that arithmetic runs in. Where the table of the
    plan's target says `emulated` of such an op, that is what was planned: nobody was promised more.
    """
    formats = [decision.inputs[slot].format for slot in (0, 1) if slot in decision.inputs]
    if len(formats) < 2:
        return "storage"
    if target is not None:
        row = target.row(decision.op_type, formats[0], planned_facts(decision.inputs))
        if row.status == "emulated":
            return "emulated"
    return family(formats[0])


def _target(plan: Plan) -> Target | None:
    """The target that a plan was made for; None where it is none of ours."""
    try:
        return targets.load(plan.target)
    except UsageError:
        return None


def of_plan(plan: Plan, found: Sequence[Site]) -> list[Promise]:
    """What a plan owes, in its order.

    A node is found by the key in its metadata; then by its name; then by the key that it would be given. An op that
    was taken apart is found as the products among its parts, whose keys are KEY~ROLE.
    """
    by_key: dict[str, list[Site]] = {}
    by_name: dict[str, list[Site]] = {}
    by_place: dict[str, list[Site]] = {}
    for site in found:
        for one in walk.keys(site.place):
            by_key.setdefault(one, []).append(site)
        if site.whole:
            by_key.setdefault(site.whole + "~", []).append(site)
        by_name.setdefault(site.node.name or "", []).append(site)
        by_place.setdefault(site.place.scope + walk.first_output(site.node), []).append(site)
    promises, aim = [], _target(plan)
    for key, decision in plan.quantized():
        # Parts first: what joins them has the op's own key.
        sites = by_key.get(key + "~") or by_key.get(key)
        if not sites and decision.name:
            sites = by_name.get(decision.name)
        sites = sites or [site for site in by_place.get(key, []) if not walk.node_key(site.node)]
        promises.append(Promise(key, decision.op_type, decision.name, planned_word(decision, aim), tuple(sites)))
    return promises


def of_model(model: ir.Model, found: Sequence[Site], known: set[int]) -> list[Promise]:
    """What a model's own Q/DQ promise, in graph order: products of which both operands come from a DequantizeLinear.

    A weight alone that does so promises `storage`, unless the other operand was quantized, too, and something that
    FP8 does not pass stands in between. `known`: what `sites.constants` gave.
    """
    promises = []
    for site in found:
        if site.node.op_type in PRODUCTS:
            planned = _promised(operands(site, model, known))
            if planned:
                name = site.node.name or ""
                promises.append(Promise(site.place.key, site.node.op_type, name, planned, (site,)))
    return promises


def operands(site: Site, model: ir.Model, known: set[int]) -> list[Operand]:
    """The two data operands of a product, followed upwards."""
    return [operand(value, model, known) for value in site.node.inputs[:2] if value is not None]


def _promised(pair: Sequence[Operand]) -> str:
    formats = [each.format for each in pair]
    if len(formats) == 2 and all(formats):
        moving = [each.format for each in pair if not each.constant]
        return (moving or formats)[0]
    weights = [each.format for each in pair if each.constant and each.format in SMALL]
    return "storage" if weights else ""
