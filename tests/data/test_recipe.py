"""Recipes: data that is believed only where every key is known."""

from __future__ import annotations

import copy
import dataclasses
import tomllib
from importlib import resources
from typing import Any

import pytest

from fp8graph.base.errors import Fp8GraphError, UsageError
from fp8graph.core import registry
from fp8graph.core.passes import PlanRule
from fp8graph.data import recipe
from fp8graph.data.recipe import Recipe
from tests.small import refused

DEFAULT = tomllib.loads(resources.files("fp8graph.recipes").joinpath("fp8-default.toml").read_text(encoding="utf-8"))


def with_change(path: str, value: Any) -> dict[str, Any]:
    """The default recipe with one value changed, or taken out where `value` is None."""
    table = copy.deepcopy(DEFAULT)
    *owners, key = path.split(".")
    inner = table
    for name in owners:
        inner = inner[name]
    if value is None:
        inner.pop(key, None)
    else:
        inner[key] = value
    return table


@pytest.mark.parametrize("name", recipe.names())
def test_every_packaged_recipe_loads(name):
    found = recipe.load(name)
    assert found.name == name and found.summary and (found.ops or name in ("fp16", "bf16"))
    assert Recipe.from_mapping(found.to_json(), "plan") == found
    for rule in found.rules:
        assert isinstance(registry.create(rule), PlanRule)
    for item in found.passes:
        assert not isinstance(registry.create(item), PlanRule)


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("quantise", "quantize"),
        ("quantize.weigths", "weights"),
        ("quantize.activations.formt", "format"),
        ("high.dtpe", "dtype"),
        ("pases", "passes"),
        ("quantize.fro", "for"),
    ],
)
def test_unknown_key_refused_with_the_nearest_name(path, nearest):
    with refused(UsageError, "FG140", f"'{path}'", f"did you mean '{nearest}'?", "my.toml"):
        Recipe.from_mapping(with_change(path, "x"), "my.toml")


def test_unknown_key_of_a_keep_line_is_refused():
    with refused(UsageError, "FG140", "'keep.reason'"):
        Recipe.from_mapping(DEFAULT | {"keep": [{"ops": ["a"], "why": "b", "reason": "c"}]}, "my.toml")


@pytest.mark.parametrize(
    ("line", "path", "nearest"),
    [
        ({"ops": ["a"], "fromat": "int8"}, "quantize.for.fromat", "format"),
        ({"ops": ["a"], "wieghts": {}}, "quantize.for.wieghts", "weights"),
        ({"ops": ["a"], "weights": {"blok": [32]}}, "quantize.for.weights.blok", "block"),
    ],
)
def test_unknown_key_of_a_for_line_is_refused_with_the_nearest_name(line, path, nearest):
    with refused(UsageError, "FG140", f"'{path}'", f"did you mean '{nearest}'?"):
        Recipe.from_mapping(with_change("quantize.for", [line]), "my.toml")


def test_a_for_line_takes_from_the_recipe_what_it_does_not_name_and_no_blocks_for_another_granularity():
    table = recipe.load("mxfp8").to_json()
    table["quantize"]["for"] = [
        {"ops": ["a"], "format": "e2m1"},
        {"ops": ["b"], "weights": {"per": "channel"}, "activations": {"format": "none", "per": "tensor"}},
        {"ops": ["c"], "format": "int8", "weights": {"format": "e5m2"}},
    ]
    found = Recipe.from_mapping(table, "my.toml")
    first, second, third = found.lines
    assert first.weights == dataclasses.replace(found.weights, format="e2m1")
    assert first.activations == dataclasses.replace(found.activations, format="e2m1")
    assert (second.weights.per, second.weights.block, second.weights.stored.format) == ("channel", (), None)
    assert (second.activations.format, second.activations.block) == ("none", ())
    assert (third.activations.format, third.weights.format) == ("int8", "e5m2")
    assert set(found.formats) == {"e4m3fn", "e8m0", "e2m1", "int8", "e5m2"}
    assert Recipe.from_mapping(found.to_json(), "plan") == found


def test_for_lines_of_a_recipe_come_before_those_of_its_base(tmp_path):
    text = resources.files("fp8graph.recipes").joinpath("fp8-default.toml").read_text(encoding="utf-8")
    (tmp_path / "base.toml").write_text(text + '[[quantize.for]]\nops = ["a"]\nformat = "e5m2"\n')
    (tmp_path / "ours.toml").write_text('extends = "base.toml"\n[[quantize.for]]\nops = ["b"]\nformat = "int8"\n')
    assert [(line.ops, line.weights.format) for line in recipe.load(str(tmp_path / "ours.toml")).lines] == [
        (("b",), "int8"),
        (("a",), "e5m2"),
    ]


@pytest.mark.parametrize("path", ["name", "summary", "quantize", "quantize.ops", "quantize.weights.per", "rules"])
def test_a_key_that_is_missing_is_named(path):
    with refused(UsageError, "FG140", f"'{path.rpartition('.')[2]}'", "my.toml"):
        Recipe.from_mapping(with_change(path, None), "my.toml")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", 1),
        ("quantize", "MatMul"),
        ("quantize.ops", "MatMul"),
        ("quantize.ops", [1]),
        ("quantize.costly", "false"),  # a text would be true
        ("quantize.costly", 1),
        ("quantize.concat", "yes"),
        ("quantize.blocks", "rows"),
        ("quantize.blocks", 1),
        ("quantize.activations", []),
        ("quantize.activations.format", "e4m3"),
        ("quantize.activations.format", 1),
        ("quantize.weights.per", "row"),
        ("quantize.weights.scale", "entropy"),
        ("high", "fp16"),
        ("high.dtype", "fp64"),
        ("high.dtype", ["fp16"]),
        ("rules", {}),
        ("passes", [["a"]]),
        ("keep", "a"),
        ("keep", [1]),
        ("keep", [{"ops": ["a"]}]),
        ("keep", [{"ops": "a", "why": "b"}]),
        ("quantize.for", "a"),
        ("quantize.for", {}),
        ("quantize.for", [1]),
        ("quantize.for", [{"format": "int8"}]),
        ("quantize.for", [{"ops": "a", "format": "int8"}]),
        ("quantize.for", [{"ops": ["a"], "format": "int9"}]),
        ("quantize.for", [{"ops": ["a"], "format": 8}]),
        ("quantize.for", [{"ops": ["a"], "why": 1}]),
        ("quantize.for", [{"ops": ["a"], "weights": "int8"}]),
        ("quantize.for", [{"ops": ["a"], "weights": {"format": "none"}}]),
        ("quantize.for", [{"ops": ["a"], "weights": {"per": "block"}}]),
        ("quantize.for", [{"ops": ["a"], "activations": {"per": "token"}}]),
        ("schema", "fp8graph.recipe/2"),
        ("schema", "fp8graph.plan/1"),
        ("schema", 1),
    ],
)
def test_a_wrong_value_is_refused(path, value):
    with refused(UsageError, "FG140", "my.toml"):
        Recipe.from_mapping(with_change(path, value), "my.toml")


def test_any_value_anywhere_is_read_or_refused():
    wrong: list[Any] = [None, 0, -1, 2.5, True, "", "x", [], [1], {}, {"x": 1}, [[]], [{}]]
    paths = list(DEFAULT)
    paths += [f"{a}.{b}" for a, inner in DEFAULT.items() if isinstance(inner, dict) for b in inner]
    paths += [f"quantize.{a}.{b}" for a in ("activations", "weights") for b in DEFAULT["quantize"][a]]
    paths.append("quantize.for")
    for path in paths:
        for value in wrong:
            refusal = None
            try:
                found = Recipe.from_mapping(with_change(path, value), "my.toml")
            except Fp8GraphError as error:
                refusal = error
            else:
                assert Recipe.from_mapping(found.to_json(), "plan") == found
            assert refusal is None or (type(refusal), refusal.code) == (UsageError, "FG140")


MINE = """
name = "mine"
summary = "the default in fp16, but for the head"
extends = "fp8-default"
rules = []
[high]
dtype = "fp16"
[quantize.weights]
per = "tensor"
[[keep]]
ops = ["logits", "type:Gemm"]
why = "the head matters"
"""


def test_a_recipe_extends_another_one_and_changes_what_it_names(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    mine, default = recipe.load(str(path)), recipe.load("fp8-default")
    assert (mine.name, mine.high, mine.rules, mine.weights.per) == ("mine", "fp16", (), "tensor")
    assert (mine.weights.format, mine.activations) == (default.weights.format, default.activations)
    assert (mine.ops, mine.passes) == (default.ops, default.passes)
    assert [(line.ops, line.why) for line in mine.keep] == [(("logits", "type:Gemm"), "the head matters")]


def test_one_extends_no_more(tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    (tmp_path / "more.toml").write_text('extends = "mine.toml"\n')
    with refused(UsageError, "FG140", "one step is allowed", "more.toml"):
        recipe.load(str(tmp_path / "more.toml"))
    (tmp_path / "own.toml").write_text('extends = "own.toml"\n')
    with refused(UsageError, "FG140", "one step is allowed", "own.toml"):
        recipe.load(str(tmp_path / "own.toml"))


def test_a_recipe_extends_a_file_beside_it(tmp_path):
    text = resources.files("fp8graph.recipes").joinpath("fp8-default.toml").read_text(encoding="utf-8")
    (tmp_path / "base.toml").write_text(text)
    (tmp_path / "mine.toml").write_text('name = "mine"\nextends = "base.toml"\nrules = []\n')
    mine = recipe.load(str(tmp_path / "mine.toml"))
    assert (mine.name, mine.rules, mine.passes) == ("mine", (), recipe.load("fp8-default").passes)


@pytest.mark.parametrize("outside", ["../base.toml", "/etc/base.toml", "sub/base.toml", "fp8-defalt", 5])
def test_extends_names_no_outside_path(tmp_path, outside):
    (tmp_path / "mine.toml").write_text(f'name = "more"\nextends = {outside!r}\n')
    with refused(UsageError, "FG140" if outside != "fp8-defalt" else "FG101"):
        recipe.load(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("fp8-defalt", "FG101", "did you mean 'fp8-default'?"),
        ("", "FG101", "there is no recipe ''"),
        ("none.toml", "FG140", "cannot be read"),
        ("folder/none.toml", "FG140", "cannot be read"),
        ("torn.toml", "FG140", "no TOML"),
        ("binary.toml", "FG140", "cannot be read"),
    ],
)
def test_a_recipe_that_is_not_there_is_refused(tmp_path, monkeypatch, name, code, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.toml").write_text('name = "x')
    (tmp_path / "binary.toml").write_bytes(b"\xff\x00")
    with refused(UsageError, code, says):
        recipe.load(name)


def test_keep_lines_of_a_recipe_and_its_base_add_up_and_its_name_is_its_own(tmp_path):
    text = resources.files("fp8graph.recipes").joinpath("fp8-default.toml").read_text(encoding="utf-8")
    (tmp_path / "base.toml").write_text(text + '[[keep]]\nops = ["head"]\nwhy = "the base says so"\n')
    (tmp_path / "ours.toml").write_text('extends = "base.toml"\n[[keep]]\nops = ["a", "b"]\nwhy = "we say so"\n')
    ours = recipe.load(str(tmp_path / "ours.toml"))
    assert [line.ops for line in ours.keep] == [("head",), ("a", "b")]
    assert (ours.name, ours.summary) == ("ours", "fp8-default, changed")
    (tmp_path / "bare.toml").write_text('extends = "base.toml"\n')
    assert [line.ops for line in recipe.load(str(tmp_path / "bare.toml")).keep] == [("head",)]
    (tmp_path / "wrong.toml").write_text('extends = "base.toml"\nkeep = 5\n')
    with refused(UsageError, "FG140", "[[keep]]"):
        recipe.load(str(tmp_path / "wrong.toml"))
