"""What can only be kept or quantized together: the units that searches move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fp8graph.data.plan import Decision, OpKey, Plan, Reason


@dataclass(frozen=True)
class Unit:
    """Ops that flip as one, in the plan's order: most often a single one."""

    keys: tuple[OpKey, ...]

    @property
    def key(self) -> OpKey:
        """The first of them, which names the unit."""
        return self.keys[0]


def units_of(plan: Plan) -> list[Unit]:
    """The quantized ops of a plan in its order: ops of one group (attention) together, and those whose operands have one
    scale over several tensors (behind a Concat)."""
    leader: dict[OpKey, OpKey] = {}

    def root(key: OpKey) -> OpKey:
        while leader[key] != key:
            key = leader[key]
        return key

    first: dict[str, OpKey] = {}
    for key, op in plan.quantized():
        leader[key] = key
        for tie in _ties(op):
            leader[root(key)] = root(first.setdefault(tie, key))
    members: dict[OpKey, list[OpKey]] = {}
    for key in leader:
        members.setdefault(root(key), []).append(key)
    return [Unit(tuple(keys)) for keys in members.values()]


def keep(plan: Plan, keys: Iterable[OpKey], why: Reason) -> Plan:
    """The plan with these ops in high precision, and with them all of their units."""
    asked = set(keys)
    gone = {key for unit in units_of(plan) if asked & set(unit.keys) for key in unit.keys}
    return replace(plan, ops={key: op.kept(why) if key in gone else op for key, op in plan.ops.items()})


def _ties(op: Decision) -> Iterable[str]:
    """Names of what an op has in common with those that it cannot be parted from."""
    if op.group:
        yield f"group {op.group}"
    for quant in op.inputs.values():
        if quant.scale.over:
            yield from (f"tensor {name}" for name in (quant.value, *quant.scale.over))
