"""Repairs of one plan: what they need of the data, where there is some, and whether they have helped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import Samples, is_random
from fp8graph.core import channels, repairing
from fp8graph.core.facts import Facts, facts_for
from fp8graph.core.passes import Repair
from fp8graph.data.plan import Plan
from fp8graph.flow.judging import Judge
from fp8graph.flow.learning import Learning
from fp8graph.flow.moving import moved
from fp8graph.flow.weighing import weigh

if TYPE_CHECKING:
    from fp8graph.flow.job import Job

log = logging.getLogger(__name__)
# One of so many samples is held back from those that repairs learn from, where there are as many.
_HELD_BACK = 8
# Factors of channels have to gain so many dB there: of less, half was lost on other samples (resnet8, 20, squeezenet).
_SURE = 1.0


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
    if job.feeds is None or is_random(job.data):
        job.ctx.note("FG240", "", f"left out for want of samples: {', '.join(wanting)}")
        return repairing.repair(plan, job.normalized, plain, job.ctx, facts)
    learned, held = job.feeds.apart(_HELD_BACK)
    if (learned.count or 0) < _HELD_BACK - 1:  # too few to hold some of them back
        learned = held = job.feeds
    judge = Judge(job, held)
    for kind in kinds:
        if kind:
            plan = _helped(job, plan, kind, learned, judge, facts)
        if kind is moving:  # what others find of a weight is about the weight as it is then
            there = job.moved(plan)
            about = facts_for(there.model, plan.shapes) if there.moved else facts
            plan = repairing.repair(plan, there, plain, job.ctx, about)
    return plan


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
        observe = Learning(there, job.pipeline, ctx, feeds, job.reading)
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
