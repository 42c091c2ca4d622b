"""What it costs to build a plan's model for other shapes than the plan was made for, said before the build.

Legality hangs on shapes: an attention whose least number of keys is below 32 loses its fused FP8 kernel, whatever the
plan says. Here the target's rows are asked again, under each profile as planning asks them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from fp8graph.base.findings import Finding
from fp8graph.core.facts import Facts, facts_for
from fp8graph.data.plan import Decision, Plan, Shapes
from fp8graph.data.target import Fact, Row, Target
from fp8graph.graph import walk


def costs(model: ir.Model, plan: Plan, target: Target, profiles: Sequence[Shapes]) -> list[Finding]:
    """What changes for the plan's ops when its model is built for `profiles`, in graph order.

    A warning FG320 for each quantized op that a row now judges worse, or that loses a bound of its good row; a note
    FG321 for each op kept because of the plan's shapes that these would allow. `model` is what `optimize` wrote with
    the plan.
    """
    other = [shapes for shapes in profiles if _ends(shapes) != _ends(plan.shapes)]
    if not other:
        return []
    nodes = {place.key: place.node for place in walk.walk(model)}
    planned = facts_for(model, plan.shapes)
    found: dict[tuple[str, str], Finding] = {}
    for shapes in other:
        given = facts_for(model, shapes)
        number = f" (profile {list(profiles).index(shapes)})" if len(profiles) > 1 else ""
        for key, op in plan.ops.items():
            if (node := nodes.get(key)) is not None:
                for finding in _judge(key, op, plan, target, node, planned, given, number):
                    found.setdefault((finding.code, key), finding)
    return list(found.values())


def _judge(
    key: str, op: Decision, plan: Plan, target: Target, node: ir.Node, planned: Facts, given: Facts, number: str
) -> Iterator[Finding]:
    half = op.high != "fp32"
    formats = {quant.format for quant in op.inputs.values()} or {quant.format for quant in plan.quants()} or {"e4m3fn"}
    before, now = planned.of(node, half=half), given.of(node, half=half)
    if before == now:
        return
    _, old = target.worst(op.op_type, formats, before)
    _, new = target.worst(op.op_type, formats, now)
    why = f"{new.text}; {_differ(before, now, new, old)}{number}"
    if op.do == "quantize" and new.rank > old.rank:
        yield Finding("FG320", "warning", key, why, _mend(plan.shapes))
    elif op.do == "keep" and op.why.code in ("FG301", "FG304") and new.status == "native" and old.rank > new.rank:
        do = "optimize anew with these --shapes to have it in FP8"
        yield Finding("FG321", "info", key, f"kept for the plan's shapes, these allow it: {why}", do)


def _differ(before: Mapping[str, Fact], now: Mapping[str, Fact], new: Row, old: Row) -> str:
    changed = [name for name in now if before.get(name) != now[name]]
    asked = {bound.fact for row in (new, old) for bound in row.when}
    names = [name for name in changed if name in asked] or changed
    return ", ".join(f"{name} {now[name]}, planned {before.get(name, 'unknown')}" for name in names)


def _mend(shapes: Shapes) -> str:
    # The facts that were met under the plan's shapes are met by them again.
    least, most = (
        " ".join(f"{name}:{'x'.join(map(str, shape)) or '[]'}" for name, shape in ends.items())
        for ends in ({name: p.min for name, p in shapes.items()}, {name: p.max for name, p in shapes.items()})
    )
    again = f"give --min-shapes {least} --max-shapes {most}" if shapes else "leave the shapes out"
    return f"{again}, as planned; or optimize anew with these shapes, so that it stays in high precision"


def _ends(shapes: Shapes) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    return {name: (profile.min, profile.max) for name, profile in shapes.items()}
