"""Settling: numbers that data has found go into the plan; else it only retreats to high precision, with a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.base.findings import Notes
from fp8graph.data.plan import Decision, OpKey, Plan, Quant, Reason
from fp8graph.graph import tensors, walk
from fp8graph.numerics.ranges import Ranges, Stat
from fp8graph.numerics.scale import scale_from_amax

FP16_MAX = 65504.0
# Half of fp16's least subnormal: a constant below it would become zero.
FP16_TINY = 2.0**-25


def needs(plan: Plan, model: ir.Model) -> list[str]:
    """Names (with scope) of the tensors whose range the plan has to learn; empty where it is settled.

    With fp16 asked for on a model of another type, the range of every float tensor decides who can be fp16.
    """
    wanted = dict.fromkeys(q.value for q in plan.quants() if not q.settled)
    if _checks_fp16(plan):
        scopes = walk.scope_table(model)
        for place in walk.walk(model):
            if place.scope.startswith("fn:"):
                continue
            for value in (*place.node.inputs, *place.node.outputs):
                if (
                    value is not None
                    and value.name
                    and not tensors.is_constant(value)
                    and value.dtype == ir.DataType.FLOAT
                    and isinstance(value.type, ir.TensorType)
                ):
                    wanted[walk.qualified(value, scopes)] = None
    return list(wanted)


def _checks_fp16(plan: Plan) -> bool:
    return not plan.settled and any(op.high == "fp16" for op in plan.ops.values())


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
    return replace(plan, ops=ops, data=ranges.data)


def _filled(op: Decision, ranges: Ranges) -> Decision:
    inputs: dict[int, Quant] = {}
    for slot, quant in op.inputs.items():
        if quant.settled:
            inputs[slot] = quant
            continue
        stat = ranges.values.get(quant.value, Stat())
        if not stat.count:
            text = f"'{quant.value}' was never computed on the data: it has no range"
            return op.kept(Reason("FG213", "calibration data", text))
        if stat.amax is None or stat.nonfinite:
            text = f"'{quant.value}' held a NaN or an infinity: it has no finite range"
            return op.kept(Reason("FG212", "calibration data", text))
        headroom = float(quant.scale.rule.partition("*")[2] or 1)
        amax = min(stat.amax * headroom, float(np.finfo(np.float32).max))
        scale = float(scale_from_amax(np.float32(amax), formats.get(quant.format)))
        inputs[slot] = replace(quant, scale=replace(quant.scale, value=scale))
    return replace(op, inputs=inputs)


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
