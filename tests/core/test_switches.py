"""One model with a switch at every quantized operand: off it is the original, on it is the plan carried out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fp8graph.core.options import Options
from fp8graph.core.switches import switched
from fp8graph.core.tails import starts, tails
from fp8graph.data import recipe as recipes
from fp8graph.flow.feeding import Reading
from fp8graph.flow.job import Job
from fp8graph.flow.judging import carried_out
from fp8graph.runners.reference import reference
from fp8graph.testing.models import corpus
from tests.small import CONCAT, TWO, feeds, model

RECIPES = ["fp8-full", "fp8-dynamic", "fp8-dynamic-token", "fp8-weight-only", "mxfp8", "int8", "nvfp4", "fp8-block128"]
NAMES = ["two", "concat", *sorted(corpus())]


def job_of(proto, recipe, high=None, *, repaired=False):
    job = Job(Options(high_precision_dtype=high), feeds(proto, 6), Reading())
    base = recipes.load(recipe)
    job.open(proto, base if repaired else replace(base, repairs=()), "reference", None, None, None)
    return job, job.settled_plan(None, plan_only=False)


def proto_of(name):
    texts = {"two": TWO, "concat": CONCAT}
    return model(texts[name]) if name in texts else corpus()[name]


def equal(one, other, tolerance=2e-5):
    for name, array in one.items():
        left, right = array.astype(np.float64), other[name].astype(np.float64)
        rough = max(tolerance, 1e-3 if half(one) else 0.0)
        assert np.abs(left - right).max(initial=0.0) <= rough * np.abs(left).max(initial=1e-6), name


def half(outputs) -> bool:
    return any(array.dtype == np.float16 for array in outputs.values())


def check(proto, recipe, high=None, *, repaired=False):
    job, plan = job_of(proto, recipe, high, repaired=repaired)
    keys = {key for key, _ in plan.quantized()}
    if not keys:
        return set()
    original, whole = reference(job.source.model), reference(carried_out(job, plan).model)
    made = switched(job.moved(plan), carried_out(job, plan, folded=False), plan)
    assert {item.key for item in made.switches} | set(made.missing) == keys
    runner = reference(made.model)
    feed = next(iter(job.feeds))
    off = {item.name: np.array(False) for item in made.switches}
    if high is None:
        equal(original.run(feed), runner.run({**feed, **off}))
    if not made.missing:
        equal(whole.run(feed), runner.run({**feed, **{name: np.array(True) for name in off}}), 2e-3)
    return set(made.missing)


@pytest.mark.parametrize("name", NAMES)
def test_off_is_the_original_and_on_is_the_plan(name):
    proto = proto_of(name)
    if any(value.type.HasField("sequence_type") for value in proto.graph.input):
        pytest.skip("feeds are tensors")
    assert not check(proto, "fp8-full")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("text", [TWO, CONCAT], ids=["two", "concat"])
def test_every_recipe_can_be_switched(recipe, text):
    assert not check(model(text), recipe)


@pytest.mark.parametrize("text", [TWO, CONCAT], ids=["two", "concat"])
def test_what_repairs_made_of_an_op_is_switched_with_it(text):
    assert not check(model(text), "fp8-full", repaired=True)


def test_a_high_precision_part_in_fp16_stays_in_it():
    assert not check(model(TWO), "fp8-full", "fp16")


def test_one_operand_is_quantized_alone():
    proto = model(TWO)
    job, plan = job_of(proto, "fp8-full")
    made = switched(job.normalized, carried_out(job, plan, folded=False), plan)
    assert {(item.key, item.slot, item.weight) for item in made.switches} == {
        ("h", 0, False),
        ("h", 1, True),
        ("y", 0, False),
        ("y", 1, True),
    }
    runner, feed = reference(made.model), feeds(proto)[0]
    off = {item.name: np.array(False) for item in made.switches}
    plain = runner.run({**feed, **off})["y"]
    apart = {
        (item.key, item.slot): np.abs(runner.run({**feed, **off, item.name: np.array(True)})["y"] - plain).max()
        for item in made.switches
    }
    assert all(value > 0 for value in apart.values())


def test_an_end_gives_what_the_whole_gives():
    proto = model(CONCAT)
    job, plan = job_of(proto, "fp8-full")
    made = switched(job.normalized, carried_out(job, plan, folded=False), plan)
    work = {key: 1.0 for key in plan.ops if plan.ops[key].do == "quantize"}
    found = tails(made.model, work, 3)
    assert found and all(0 < tail.share < 1 for tail in found)
    begins = starts(made.model)
    values = {value.name: value for node in made.model.graph for value in node.outputs}
    names = [value.name for value in made.model.graph.outputs]
    live = {name for tail in found for name in tail.inputs} - set(names)
    made.model.graph.outputs.extend(values[name] for name in sorted(live))
    whole, feed = reference(made.model), feeds(proto)[0]
    off = {item.name: np.array(False) for item in made.switches}
    before = whole.run({**feed, **off})
    for tail in found:
        runner, inputs = reference(tail.model), {value.name for value in tail.model.graph.inputs}
        late = {item.name: np.array(True) for item in made.switches if begins[item.name] >= tail.start}
        given = {**before, **feed, **off, **late}
        got = runner.run({name: given[name] for name in inputs})
        wanted = whole.run({**feed, **off, **late})
        equal({name: wanted[name] for name in got}, got)
