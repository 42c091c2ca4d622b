"""Units of a plan, and keep-lists as recipes."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest

import fp8graph
from fp8graph.data import recipe as recipes
from fp8graph.data.plan import Reason
from fp8graph.search.keeplist import keep_recipe
from fp8graph.search.units import keep, units_of
from fp8graph.testing.models import corpus
from tests.small import CONCAT, TWO, feeds, model, plan_of

WHY = Reason("FG238", "test", "it was asked for")


def test_each_op_is_a_unit_of_its_own_where_nothing_ties_it():
    plan = plan_of(model(TWO), target="tensorrt-rtx")
    assert [unit.keys for unit in units_of(plan)] == [("h",), ("y",)]
    assert [key for key, _ in keep(plan, ["h"], WHY).quantized()] == ["y"]
    assert keep(plan, ["h"], WHY).ops["h"].why == WHY


def test_attention_is_kept_as_a_whole():
    proto = corpus()["long_attention"]
    plan = plan_of(proto, target="tensorrt-rtx:sm89")
    groups = [unit for unit in units_of(plan) if len(unit.keys) > 1]
    assert groups, "attention is quantized"
    for unit in groups:
        left = {key for key, _ in keep(plan, [unit.keys[-1]], WHY).quantized()}
        assert not left & set(unit.keys)
    assert sum(len(unit.keys) for unit in units_of(plan)) == len(list(plan.quantized()))


def test_readers_of_a_concat_and_of_its_operands_share_a_scale_and_are_one_unit(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('extends = "fp8-default"\n[quantize]\nconcat = true\n')
    proto = model(CONCAT)
    plan = fp8graph.optimize(proto, data=feeds(proto), recipe=str(recipe), target="reference", compare=False).plan
    shared = {key for key, op in plan.quantized() if any(quant.scale.over for quant in op.inputs.values())}
    assert len(shared) >= 2
    unit = next(unit for unit in units_of(plan) if len(unit.keys) > 1)
    assert shared <= set(unit.keys) and list(unit.keys) == [key for key in plan.ops if key in unit.keys]
    assert not set(unit.keys) & {key for key, _ in keep(plan, [unit.keys[-1]], WHY).quantized()}


@pytest.mark.parametrize("name", recipes.names())
def test_a_packaged_recipe_is_extended(name, tmp_path):
    proto = model(TWO)
    plan = plan_of(proto, target="reference", recipe=name, allow_unquantized=True, data=feeds(proto))
    text = keep_recipe(plan, [("h", "it costs 12.5 dB")])
    assert tomllib.loads(text)["extends"] == name
    path = tmp_path / "keep.toml"
    path.write_text(text)
    found, base = recipes.load(str(path)), recipes.load(name)
    assert found.keep[-1].ops == ("key:h",) and found.keep[-1].why == "it costs 12.5 dB"
    assert replace(found, keep=base.keep, name=name, summary=base.summary) == base


def test_ops_with_one_reason_share_a_line():
    lines = tomllib.loads(keep_recipe(plan_of(model(TWO)), [("a", "one"), ("b", "two"), ("c", "one")]))["keep"]
    assert lines == [{"ops": ["key:a", "key:c"], "why": "one"}, {"ops": ["key:b"], "why": "two"}]


def test_a_recipe_of_one_s_own_is_written_out_with_its_lines(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        'extends = "fp8-default"\nsummary = "one \\"quoted\\" and \\\\"\n[high]\ndtype = "fp16"\n'
        '[[keep]]\nops = ["r*", "type:Gemm"]\nwhy = "so"\n'
        '[[quantize.for]]\nops = ["y"]\nweights = { format = "int8", per = "channel", scale = "amax" }\n'
    )
    own = recipes.load(str(path))
    plan = replace(plan_of(model(TWO), target="reference", allow_unquantized=True), recipe=own.to_json())
    again = tmp_path / "keep.toml"
    again.write_text(keep_recipe(plan, [('a "key" [1]/x', "why")]))
    found = recipes.load(str(again))
    assert found.keep[:-1] == own.keep and found.keep[-1].ops == ('key:a "key" [1]/x',)
    assert replace(found, keep=own.keep) == own
