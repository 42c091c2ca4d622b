"""Repairs of one plan: what they need of the data, where there is some, and whether they have helped."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import Samples, is_random
from fp8graph.core import channels, repairing
from fp8graph.core.facts import Facts, facts_for
from fp8graph.core.passes import Repair
from fp8graph.data.plan import Adjust, Decision, OpKey, Plan, quant_digest
from fp8graph.flow.judging import Judge
from fp8graph.flow.learning import LIGHT, Effort, Learning
from fp8graph.flow.moving import moved
from fp8graph.flow.weighing import weigh
from fp8graph.graph import tensors, walk
from fp8graph.numerics import sidecar

if TYPE_CHECKING:
    from fp8graph.flow.job import Job

log = logging.getLogger(__name__)
# One of so many samples is held back from those that repairs learn from, where there are as many.
_HELD_BACK = 8
# Factors of channels have to gain so many dB there: of less, half was lost on other samples (resnet8, 20, squeezenet).
_SURE = 1.0
# Kinds of findings that a plan is whole without.
_SPARE = ("codes", "bias")


def repaired(job: Job, plan: Plan, facts: Facts) -> Plan:
    """The settled plan with what the repairs find; one that holds such findings already is left alone, but for those
    that were found for other weights (`bound`).

    Those that want data are left out where there is none, or noise. Each kind of them stays in where the model, on
    samples that it has not learned from, comes nearer to the original.
    """
    if job.stale:
        return _mended(job, plan, facts)
    if any(op.adjust for op in plan.ops.values()):
        return plan
    moving = [item for item in job.repairs if item.moves]
    kinds = [moving, [item for item in job.repairs if item.weighs], [item for item in job.repairs if item.learns]]
    samples = _samples(job, plan, kinds) if any(kinds) and any(True for _ in plan.quantized()) else None
    if samples is None:
        return _plainly(job, plan, facts)
    for kind in kinds:
        if kind:
            plan = _helped(job, plan, kind, samples, facts)
        if kind is moving:  # what others find of a weight is about the weight as it is then
            plan = _plainly(job, plan, facts)
    return plan


def _plainly(job: Job, plan: Plan, facts: Facts) -> Plan:
    """The plan with what repairs find that want nothing of the data, for channels as they are."""
    plain = [item for item in job.repairs if not (item.moves or item.learns or item.weighs)]
    there = job.moved(plan)
    about = facts_for(there.model, plan.shapes) if there.moved else facts
    return repairing.repair(plan, there, plain, job.ctx, about)


@dataclass(frozen=True)
class _Read:
    """Samples to learn from, and a judge of what was learned, on others where there are enough; ops that are left out
    of learning."""

    learned: Samples
    judge: Judge
    left_out: set[OpKey]


def _samples(job: Job, plan: Plan, kinds: Sequence[list[Repair]]) -> _Read | None:
    """None, which is said, where there are none that repairs may learn from. Kinds that may not are emptied.

    They are read once and held: data may come in another order each time, and what is judged has to be the same.
    """
    wanting = [item for kind in kinds for item in kind]
    if job.feeds is None or is_random(job.data):
        # Of what the recipe does in passing it is not said: that random data stands for real is said already.
        light = job.effort is LIGHT and job.feeds is not None
        lost = [item.name for item in wanting if not (light and item.learns)]
        if lost:
            job.ctx.note("FG240", "", f"left out for want of samples: {', '.join(lost)}")
        return None
    learns = [item for item in wanting if item.learns]
    left_out = job.effort.left_out(job.normalized.model, plan) if learns else set()
    if left_out and not _worth(job, plan, learns, left_out):
        _take_out(learns, kinds)
        if not any(kinds):
            return None
    learned, held = _apart(job.feeds, job.effort)
    if not held and job.effort is LIGHT and any(item in kind for item in learns for kind in kinds):
        # What is judged on the samples that it was learned from always seems to help.
        names = ", ".join(item.name for item in learns)
        few = f"{len(learned)} feeds are fewer than {_HELD_BACK}: {names} left out"
        job.ctx.note("FG240", "", few, do="give more --data, or a smaller --batch")
        _take_out(learns, kinds)

    def of(feeds: list[dict[str, Any]]) -> Samples:
        return Samples(label, feeds.__iter__, len(feeds))

    label = job.feeds.label
    return _Read(of(learned), Judge(job, of(held or learned)), left_out)


def _take_out(learns: Sequence[Repair], kinds: Sequence[list[Repair]]) -> None:
    for kind in kinds:
        kind[:] = [item for item in kind if item not in learns]


def _apart(feeds: Samples, effort: Effort) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Feeds to learn from, and feeds held back, as many as there is room for."""
    learned: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    most = effort.samples, effort.judged
    for index, feed in enumerate(feeds):
        if not index and effort.bytes < math.inf:
            size = sum(getattr(array, "nbytes", 0) for array in feed.values())
            room = max(_HELD_BACK, int(effort.bytes / max(size, 1)))
            most = min(most[0], room), min(most[1], room)
        back = index % _HELD_BACK == _HELD_BACK - 1
        part = held if back else learned
        if len(part) < most[back]:
            part.append(dict(feed))
        elif len(learned) == most[0] and len(held) == most[1]:
            break
    return learned, held


def _helped(job: Job, plan: Plan, kind: Sequence[Repair], samples: _Read, facts: Facts) -> Plan:
    """The plan with what repairs of one kind find, where that helps."""
    names = ", ".join(item.name for item in kind)
    before = samples.judge.measured(plan).value
    if before == math.inf:
        job.ctx.note("FG241", "", f"{names}: not asked, for the outputs are those of the original already")
        return plan
    notes = Notes()  # what they say of themselves counts where they stay in
    there, ctx = job.moved(plan), replace(job.ctx, notes=notes)
    if kind[0].moves:
        better = moved(job, ctx, plan, kind, samples.learned, facts)
    else:
        if there.moved and ctx.ranges is not None:
            seen = {**ctx.ranges.values, **channels.peaks(plan, there.model, ctx.ranges)}
            facts, ctx = facts_for(there.model, plan.shapes), replace(ctx, ranges=replace(ctx.ranges, values=seen))
        observe = Learning(there, job.pipeline, ctx, samples.learned, job.reading, job.effort, samples.left_out)
        weighed = partial(weigh, job, feeds=samples.learned)
        better = repairing.repair(plan, there, kind, ctx, facts, observe, weighed)
    if better == plan:
        return plan
    after = samples.judge.measured(better).value
    log.info("%s: %.2f dB -> %.2f dB on samples held back", names, before, after)
    least = _SURE if kind[0].moves else 0.0
    if after > before + least:
        for item in notes.items():
            job.ctx.notes.add(item.code, item.op, item.text, severity=item.severity, do=item.do)
        return better
    enough = f" by {least:g} dB" if least else ""
    job.ctx.note("FG241", "", f"{names} did not help{enough}: {before:.1f} dB without, {after:.1f} dB with it")
    return plan


def _worth(job: Job, plan: Plan, kind: Sequence[Repair], left_out: set[OpKey]) -> bool:
    """Whether repairs that leave ops out, since all would take too long, are of any use; says what they leave out."""
    quantized = sum(1 for _ in plan.quantized())
    worth = 2 * len(left_out) <= quantized
    names, count = ", ".join(item.name for item in kind), len(left_out) if worth else quantized
    text = f"{names}: left out for {count} of {quantized} ops, for the time that they take"
    job.ctx.note("FG247", "", text, do=f"--passes {','.join(item.name for item in kind)} takes it")
    return worth


def bound(job: Job, plan: Plan) -> Plan:
    """A given plan without codes and biases that were found for other weights, as those of a model that was trained on,
    or for another format, as in a plan that was edited. `job.stale` has the ops.

    They make up for what rounding loses: the plan is whole without them, and `repaired` finds them anew where it can.
    """
    nodes = {place.key: place.node for place in walk.walk(job.moved(plan).model)}
    stale = {key for key, op in plan.ops.items() if any(_other(nodes[key], op, item) for item in op.adjust)}
    if not stale:
        return plan
    job.stale = stale
    ops = {
        key: replace(op, adjust=tuple(item for item in op.adjust if item.kind not in _SPARE)) if key in stale else op
        for key, op in plan.ops.items()
    }
    held = [item.value for op in ops.values() for item in op.adjust]
    return replace(plan, ops=ops, arrays={value.name: sidecar.fetch(plan.arrays, value) for value in held})


def _other(node: ir.Node, op: Decision, item: Adjust) -> bool:
    """Whether a finding that can be left out is about another weight than this, or one that was rounded otherwise."""
    if item.kind not in _SPARE:
        return False
    value = node.inputs[item.slot] if item.slot < len(node.inputs) else None
    if op.do != "quantize" or (item.quant and item.quant != quant_digest(op.inputs.get(item.slot))):
        return True
    if value is None or not tensors.is_constant(value):
        return False
    digest = sidecar.weight_digest(tensors.read(value))
    tensors.release(value)
    return digest != item.weight


def _mended(job: Job, plan: Plan, facts: Facts) -> Plan:
    """A given plan that has lost findings, with such as can be found anew; says so."""
    lost, job.stale = job.stale, set()
    before, learns = plan, [item for item in job.repairs if item.learns]
    plan = _plainly(job, plan, facts)
    samples = _samples(job, plan, [learns]) if learns and job.feeds is not None and not is_random(job.data) else None
    if samples is not None and learns:
        plan = _helped(job, plan, learns, samples, facts)
    found = {key for key in lost if plan.ops[key].adjust != before.ops[key].adjust}
    what = f"codes and biases of {len(lost)} ops were found for other weights, or another way to quantize them"
    if found:
        job.ctx.note("FG248", "", f"{what}: found anew for {len(found)}")
    else:
        do = "give --data, so that they are found anew" if job.feeds is None else ""
        job.ctx.note("FG248", "", f"{what}: left out", severity="warning", do=do)
    return plan
