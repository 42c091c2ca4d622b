"""Repairs of one plan: what they need of the data, where there is some, and whether they have helped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import Samples, is_random
from fp8graph.core import channels, repairing
from fp8graph.core.facts import Facts, facts_for
from fp8graph.core.passes import Repair
from fp8graph.data.plan import Adjust, OpKey, Plan
from fp8graph.flow.judging import Judge
from fp8graph.flow.learning import FULL, LIGHT, Learning
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
    """The settled plan with what the repairs find; one that holds such findings already is left alone.

    Those that want data are left out where there is none, or noise. Each kind of them stays in where the model, on
    samples that it has not learned from, comes nearer to the original.
    """
    if any(op.adjust for op in plan.ops.values()):
        return plan
    plain = [item for item in job.repairs if not (item.moves or item.learns or item.weighs)]
    moving = [item for item in job.repairs if item.moves]
    kinds = [moving, [item for item in job.repairs if item.weighs], [item for item in job.repairs if item.learns]]
    wanting = [item.name for kind in kinds for item in kind]
    if not wanting or not any(True for _ in plan.quantized()):
        return repairing.repair(plan, job.normalized, plain, job.ctx, facts)
    samples = _samples(job, wanting)
    if samples is None:
        return repairing.repair(plan, job.normalized, plain, job.ctx, facts)
    learned, held = samples
    judge = Judge(job, held.first(job.effort.judged))
    for kind in kinds:
        if kind:
            plan = _helped(job, plan, kind, learned, judge, facts)
        if kind is moving:  # what others find of a weight is about the weight as it is then
            there = job.moved(plan)
            about = facts_for(there.model, plan.shapes) if there.moved else facts
            plan = repairing.repair(plan, there, plain, job.ctx, about)
    return plan


def _samples(job: Job, wanting: Sequence[str]) -> tuple[Samples, Samples] | None:
    """Samples to learn from, and to judge on; None, which is said, where there are none that repairs may learn from."""
    if job.feeds is None or is_random(job.data):
        # Of what the recipe does in passing it is not said: that random data stands for real is said already.
        light = job.effort is LIGHT and job.feeds is not None
        lost = [item.name for item in job.repairs if item.name in wanting and not (light and item.learns)]
        if lost:
            job.ctx.note("FG240", "", f"left out for want of samples: {', '.join(lost)}")
        return None
    learned, held = job.feeds.apart(_HELD_BACK)
    if (learned.count or 0) >= _HELD_BACK - 1:
        return learned, held
    if job.effort is FULL:
        return job.feeds, job.feeds
    # What is judged on the samples that it was learned from always seems to help.
    few = f"{(learned.count or 0) + 1} feeds are fewer than {_HELD_BACK}: {', '.join(wanting)} left out"
    job.ctx.note("FG240", "", few, do="give more --data, or a smaller --batch")
    return None


def _helped(job: Job, plan: Plan, kind: Sequence[Repair], feeds: Samples, judge: Judge, facts: Facts) -> Plan:
    """The plan with what repairs of one kind find, where that helps."""
    notes = Notes()  # what they say of themselves counts where they stay in
    there, ctx = job.moved(plan), replace(job.ctx, notes=notes)
    if kind[0].moves:
        better = moved(job, ctx, plan, kind, feeds, facts)
    else:
        if there.moved and ctx.ranges is not None:
            seen = {**ctx.ranges.values, **channels.peaks(plan, there.model, ctx.ranges)}
            facts, ctx = facts_for(there.model, plan.shapes), replace(ctx, ranges=replace(ctx.ranges, values=seen))
        left_out = job.effort.left_out(there.model, plan) if kind[0].learns else set()
        if left_out and not _worth(job, plan, kind, left_out):
            return plan
        observe = Learning(there, job.pipeline, ctx, feeds, job.reading, job.effort, left_out)
        better = repairing.repair(plan, there, kind, ctx, facts, observe, partial(weigh, job, feeds=feeds))
    if better == plan:
        return plan
    before, after = judge.measured(plan).value, judge.measured(better).value
    names = ", ".join(item.name for item in kind)
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
    """A given plan without codes and biases that were found for other weights, as those of a model that was trained on.

    They make up for what rounding loses, and the plan is whole without them. Where there are samples all of them are
    found anew (`job.solve_again`).
    """
    model = job.moved(plan).model
    nodes = {place.key: place.node for place in walk.walk(model)}
    stale = {key for key, op in plan.ops.items() if any(_other(nodes[key], item) for item in op.adjust)}
    if not stale:
        return plan
    again = job.feeds is not None and not is_random(job.data)
    gone = set(plan.ops) if again else stale
    ops = {
        key: replace(op, adjust=tuple(item for item in op.adjust if item.kind not in _SPARE)) if key in gone else op
        for key, op in plan.ops.items()
    }
    held = [item.value for op in ops.values() for item in op.adjust]
    job.solve_again = again
    what = "found anew for all ops" if again else f"left out for {len(stale)} ops"
    job.ctx.note(
        "FG248",
        "",
        f"codes and biases of the plan were found for other weights: {what}",
        severity="info" if again else "warning",
        do="" if again else "give --data, so that they are found anew",
    )
    return replace(plan, ops=ops, arrays={value.name: sidecar.fetch(plan.arrays, value) for value in held})


def _other(node: ir.Node, item: Adjust) -> bool:
    """Whether a finding that can be left out is about another weight than this."""
    value = node.inputs[item.slot] if item.kind in _SPARE and item.slot < len(node.inputs) else None
    if value is None or not tensors.is_constant(value):
        return False
    digest = sidecar.weight_digest(tensors.read(value))
    tensors.release(value)
    return digest != item.weight
