"""Settling: numbers that data has found go into the plan; else it only retreats to high precision, with a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.base.errors import InputError
from fp8graph.base.findings import Notes
from fp8graph.data.method import Method, parse
from fp8graph.data.plan import Cache, Decision, OpKey, Plan, Quant, Reason
from fp8graph.graph import tensors, walk
from fp8graph.numerics.observed import peak_of
from fp8graph.numerics.ranges import Need, Ranges, Stat, joined
from fp8graph.numerics.scale import outer_scale, scale_from_amax

FP16_MAX = 65504.0
# What a plan names as its data where it was settled without any.
NO_DATA = "none"
# Half of fp16's least subnormal: a constant below it would become zero.
FP16_TINY = 2.0**-25


def needs(plan: Plan, model: ir.Model) -> list[Need]:
    """What the plan has to learn of tensors, by name with scope; empty where it was settled on data.

    Of an op that is to be fp16, the range of every float tensor decides whether it can be: those are wanted where
    there is data, and no plan needs data for them alone.
    """
    wanted = dict.fromkeys(
        Need(name, "histogram" if _method(quant).counts else "amax")
        for quant in plan.quants()
        if not quant.settled
        for name in (quant.value, *quant.scale.over)
    )
    if plan.data:
        return joined(wanted)
    scopes = walk.scope_table(model)
    for place in walk.walk(model):
        op = plan.ops.get(place.key)
        if op is None or op.high != "fp16" or place.scope.startswith("fn:"):
            continue
        for value in (*place.node.inputs, *place.node.outputs):
            if (
                value is not None
                and value.name
                and not tensors.is_constant(value)
                and value.dtype == ir.DataType.FLOAT
                and isinstance(value.type, ir.TensorType)
            ):
                wanted[Need(walk.qualified(value, scopes))] = None
    return joined(wanted)


def _method(quant: Quant) -> Method:
    """How its scale is found; a scale above others is always that of the largest value. Raises InputError FG111."""
    rule, star, headroom = quant.scale.rule.partition("*")
    try:
        method = parse(("amax" if quant.scale.stored.outer else rule) + star + headroom)
    except ValueError as error:
        what, do = "the plan has a scale that is found in no known way", "make the plan anew: optimize without --plan"
        raise InputError(what, where=f"tensor '{quant.value}'", why=str(error), do=do, code="FG111") from error
    return method


def settle(plan: Plan, ranges: Ranges, model: ir.Model, notes: Notes) -> Plan:
    """The plan with its observed scales filled in.

    An op retreats to keep where an operand has no finite range (a whole group at once), and to fp32 where a tensor
    or constant of it does not fit fp16: of tensors that were not observed nothing is known, constants always tell.
    Both are said.
    """
    ops: dict[OpKey, Decision] = {key: _filled(op, ranges) for key, op in plan.ops.items()}
    lost = {op.group: key for key, op in plan.ops.items() if op.group and op.do == "quantize" and ops[key].do == "keep"}
    for key, member in list(ops.items()):
        if member.do == "quantize" and member.group in lost:
            text = f"decided as one, and '{lost[member.group]}' is kept"
            ops[key] = member.kept(Reason("FG210", f"group {member.group}", text))
    # Last: the weight of an op that has just been kept is to be stored in fp16, too.
    retreat = _overflowing(replace(plan, ops=ops), ranges, model)
    for key, text in retreat.items():
        ops[key] = _to_fp32(key, ops[key], text, notes)
    return replace(plan, ops=ops, caches=_caches(plan, ranges, notes), data=ranges.data or NO_DATA)


def again(plan: Plan, stats: Mapping[str, Stat]) -> Plan:
    """A settled plan with the observed scales of these tensors found anew."""
    ranges = Ranges("", plan.data, values=stats)

    def anew(quant: Quant) -> Quant:
        if quant.value not in stats or quant.scale.origin != "observed":
            return quant
        found = _measured(replace(quant, scale=replace(quant.scale, value=None)), ranges)
        return found if isinstance(found, Quant) else quant

    found = {key: {slot: anew(quant) for slot, quant in op.inputs.items()} for key, op in plan.ops.items()}
    return replace(plan, ops={key: replace(op, inputs=found[key]) for key, op in plan.ops.items()})


def _caches(plan: Plan, ranges: Ranges, notes: Notes) -> dict[str, Cache]:
    """The caches with their scales; one without a finite range stays as it is, which is said."""
    found = {}
    for name, cache in plan.caches.items():
        quant = _measured(cache.quant, ranges)
        if isinstance(quant, Quant):
            found[name] = replace(cache, quant=quant)
        else:
            notes.add(quant.code, name, f"the cache stays in its type: {quant.text}", severity="warning")
    return found


def _filled(op: Decision, ranges: Ranges) -> Decision:
    inputs: dict[int, Quant] = {}
    for slot, quant in op.inputs.items():
        found = _measured(quant, ranges)
        if isinstance(found, Reason):
            return op.kept(found)
        inputs[slot] = found
    return replace(op, inputs=inputs)


def _measured(quant: Quant, ranges: Ranges) -> Quant | Reason:
    """The quant with its number, or why it can have none."""
    if quant.settled:
        return quant
    whole = Stat()
    for name in (quant.value, *quant.scale.over):
        stat = ranges.values.get(name, Stat())
        if not stat.count and name == quant.value:
            text = f"'{name}' was never computed on the data: it has no range"
            return Reason("FG213", "calibration data", text)
        if stat.count and (stat.amax is None or stat.nonfinite):
            text = f"'{name}' held a NaN or an infinity: it has no finite range"
            return Reason("FG212", "calibration data", text)
        whole = whole.merge(stat)
    method = _method(quant)
    if method.counts and whole.histogram is None:
        method = method.plain  # of tensors in bodies only the extremes are known; the plan says so
    form, stored = formats.get(quant.format), quant.scale.stored
    peak = peak_of(whole, method, form)
    found = outer_scale(peak, form, stored) if stored.outer else scale_from_amax(np.float32(peak), form)
    return replace(quant, scale=replace(quant.scale, rule=method.text, value=float(found)))


def _to_fp32(key: OpKey, op: Decision, text: str, notes: Notes) -> Decision:
    notes.add("FG214", key, f"stays fp32: {text}")
    why = Reason("FG214", "range of fp16", f"{text}; {op.why.text}") if op.do == "keep" else op.why
    return replace(op, high="fp32", why=why)


def _overflowing(plan: Plan, ranges: Ranges, model: ir.Model) -> Mapping[OpKey, str]:
    """Ops of which some float tensor or constant does not fit fp16, and which one it is."""
    found: dict[OpKey, str] = {}
    scopes = walk.scope_table(model)
    constants: dict[ir.Value, str] = {}
    for place in walk.walk(model):
        op = plan.ops.get(place.key)
        if op is None or op.high != "fp16":
            continue
        quantized = set(op.inputs)
        for slot, value in enumerate((*place.node.inputs, *place.node.outputs)):
            if value is None or value.dtype != ir.DataType.FLOAT or not value.name:
                continue
            if tensors.is_constant(value):
                text = "" if slot in quantized else constants.setdefault(value, _constant_text(value))
            else:
                text = _range_text(walk.qualified(value, scopes), ranges)
            if text:
                found[place.key] = text
                break
    return found


def _range_text(name: str, ranges: Ranges) -> str:
    stat = ranges.values.get(name)
    if stat is None or not stat.count:
        return ""
    if stat.nonfinite or stat.amax is None:
        return f"'{name}' holds an infinity or a NaN"
    if 0 < stat.amax < FP16_TINY:
        return f"'{name}' reaches no more than {stat.amax:.4g} and would become zero in fp16"
    return f"'{name}' reaches {stat.amax:.4g}, fp16 ends at {FP16_MAX:.0f}" if stat.amax > FP16_MAX else ""


def _constant_text(value: ir.Value) -> str:
    array = tensors.read(value)
    if not array.size:
        return ""
    amax = max(float(array.max()), -float(array.min()))
    if not math.isfinite(amax) or amax > FP16_MAX:
        text = f"the constant '{value.name}' reaches {amax:.4g}, fp16 ends at {FP16_MAX:.0f}"
    elif 0 < amax < FP16_TINY:
        text = f"the constant '{value.name}' ({amax:.4g}) would become zero in fp16"
    else:
        text = ""
    tensors.release(value)
    return text
