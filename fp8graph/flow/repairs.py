"""Repairs of one plan: what they need of the data, where there is some."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fp8graph.calibrate.samples import is_random
from fp8graph.core import repairing
from fp8graph.core.facts import Facts
from fp8graph.data.plan import Plan
from fp8graph.flow.learning import Learning
from fp8graph.flow.weighing import weigh

if TYPE_CHECKING:
    from fp8graph.flow.job import Job


def repaired(job: Job, plan: Plan, facts: Facts) -> Plan:
    """The settled plan with what the repairs find; those that want data are left out where there is none, or noise."""
    wanting = [item.name for item in job.repairs if item.learns or item.weighs]
    if any(op.adjust for op in plan.ops.values()) or not wanting:  # a replayed plan holds it already
        return repairing.repair(plan, job.normalized, job.repairs, job.ctx, facts)
    if job.feeds is None or is_random(job.data):
        job.ctx.note("FG240", "", f"left out for want of samples: {', '.join(wanting)}")
        return repairing.repair(plan, job.normalized, job.repairs, job.ctx, facts)
    observe = Learning(job.normalized, job.pipeline, job.ctx, job.feeds, job.reading)
    weighed = partial(weigh, job, feeds=job.feeds)
    return repairing.repair(plan, job.normalized, job.repairs, job.ctx, facts, observe, weighed)
