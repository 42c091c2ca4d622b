"""What of a plan flips as one, and plans with some of it kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from fp8graph.data.plan import OpKey, Plan, Reason


@dataclass(frozen=True)
class Unit:
    """Quantized ops that are kept or quantized together: one op, a group (attention) that is all or nothing, or the
    readers of tensors that take their scale from one Concat.

    cost   what FP8 costs the output there
    worth  its part of the plan's low-precision arithmetic, 0 to 1
    """

    keys: tuple[OpKey, ...]
    cost: float = 0.0
    worth: float = 0.0

    @property
    def key(self) -> OpKey:
        """The first of its ops, which names it."""
        return self.keys[0]


def units_of(
    plan: Plan, costs: Mapping[OpKey, float] | None = None, worths: Mapping[OpKey, float] | None = None
) -> list[Unit]:
    """The units of a plan in the order of the graph; each quantized op is in one of them."""
    held: dict[str, list[OpKey]] = {}
    found: dict[OpKey, list[OpKey]] = {}
    for key, op in plan.quantized():
        found[key] = [key]
        labels = [f"group {op.group}"] if op.group else []
        labels += [f"tensor {name}" for quant in op.inputs.values() for name in quant.scale.over]
        for label in labels:
            one, other = held.setdefault(label, found[key]), found[key]
            if one is not other:
                one += other
                for moved in other:
                    found[moved] = one
                held.update({name: one for name, keys in held.items() if keys is other})
    place = {key: index for index, key in enumerate(plan.ops)}
    distinct = {id(keys): sorted(keys, key=place.__getitem__) for keys in found.values()}
    costs, worths = costs or {}, worths or {}
    return [
        Unit(tuple(keys), sum(costs.get(key, 0.0) for key in keys), sum(worths.get(key, 0.0) for key in keys))
        for keys in sorted(distinct.values(), key=lambda keys: place[keys[0]])
    ]


def keep(plan: Plan, keys: Collection[OpKey], why: Reason | Callable[[OpKey], Reason]) -> Plan:
    """The plan with these ops in high precision, and all that flip with them."""
    wanted = set(keys)
    whole = {key for unit in units_of(plan) if wanted & set(unit.keys) for key in unit.keys}
    ops = {
        key: op.kept(why if isinstance(why, Reason) else why(key)) if key in whole else op
        for key, op in plan.ops.items()
    }
    return replace(plan, ops=ops)
