"""A model that is given what repairs have found since it was made computes what one made of the whole plan does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fp8graph.core.options import Options
from fp8graph.core.renewing import renew
from fp8graph.data import recipe as recipes
from fp8graph.data.plan import Plan
from fp8graph.flow.feeding import Reading
from fp8graph.flow.job import Job
from fp8graph.flow.judging import carried_out
from fp8graph.graph import walk
from fp8graph.runners.reference import reference
from tests.learned import REPAIRS, images, network


def opened(high: str, *repairs: str) -> tuple[Job, Plan]:
    """A job and its repaired plan."""
    job = Job(Options(high_precision_dtype=high), images(96, 1), Reading(batch=4))
    job.open(network(3), replace(recipes.load("fp8-full"), repairs=repairs), "reference", None, None, None)
    return job, job.settled_plan(None, plan_only=False)


def without(plan: Plan, *kinds: str) -> Plan:
    """The plan before these kinds of findings."""
    ops = {
        key: replace(op, adjust=tuple(item for item in op.adjust if item.kind not in kinds))
        for key, op in plan.ops.items()
    }
    return replace(plan, ops=ops)


@pytest.mark.parametrize("high", ["fp32", "fp16"])
@pytest.mark.parametrize("repairs", [REPAIRS, REPAIRS[1:]], ids=["with terms", "without"])
def test_codes_and_biases_are_those_of_the_whole_plan(high, repairs):
    job, plan = opened(high, *repairs)
    before = without(plan, "codes", "bias")
    assert before != plan
    model, whole = (carried_out(job, each).model for each in (before, plan))
    nodes = {place.key: place.node for place in walk.walk(job.normalized.model) if place.key}
    feed = {name: array[:4] for name, array in images(8, 2).items()}
    (old,) = reference(model.clone(), (), ()).run(feed).values()
    assert renew(model, before, plan, nodes)
    (new,), (wanted,) = (reference(each, (), ()).run(feed).values() for each in (model, whole))
    assert np.array_equal(new, wanted) and not np.array_equal(old, wanted)


def test_terms_cannot_be_given_to_a_model_that_is_made():
    job, plan = opened("fp32", "split-terms")
    before = without(plan, "terms")
    model = carried_out(job, before).model
    assert not renew(model, before, plan, {place.key: place.node for place in walk.walk(job.normalized.model)})
