"""Patterns over ops, and the nearest name for a typo."""

from __future__ import annotations

import pytest

from fp8graph.base.names import OpPattern, did_you_mean, nearest

KEY, NAME, TYPE = "layers.0/attn/scores", "/attn/MatMul[3]", "MatMul"


@pytest.mark.parametrize(
    ("pattern", "selected"),
    [
        ("layers.0/attn/scores", True),
        ("layers.0/*", True),  # `*` crosses `/`
        ("layers.?/attn/scores", True),
        ("layers.[01]/attn/*", True),
        ("layers.1/*", False),
        ("scores", False),  # a pattern holds the whole key or name, no part of it
        ("*scores", True),
        ("/attn/MatMul[3]", True),  # a name with brackets is taken literally, too
        ("/attn/MatMul[*", True),
        ("MatMul", False),
        ("Layers.0/*", False),
        ("", False),
        ("*", True),
        ("key:layers.0/*", True),
        ("key:/attn/*", False),
        ("name:/attn/*", True),
        ("name:layers.0/*", False),
        ("type:MatMul", True),
        ("type:Mat*", False),
        ("type:Conv", False),
        (r"re:layers\.\d+/attn/(scores|context)", True),
        (r"re:layers\.\d+", False),  # the whole key
        (r"re:.*MatMul\[\d\]", True),
        ("re:(?i)LAYERS.*", True),
    ],
)
def test_a_pattern_selects_by_key_name_type_or_expression(pattern, selected):
    assert OpPattern(pattern).matches(KEY, NAME, TYPE) is selected


def test_brackets_are_a_glob_where_no_name_has_them():
    assert OpPattern("/attn/MatMul[3]").matches("y", "/attn/MatMul3", TYPE)


def test_an_op_without_a_name_is_selected_by_its_key_alone():
    assert OpPattern("*").matches("y", "", "Relu")
    assert not OpPattern("name:*").matches("y", "", "Relu")


@pytest.mark.parametrize("pattern", ["key:", "name:", "re:"])
def test_a_prefix_with_nothing_behind_it_is_a_name_like_others(pattern):
    assert OpPattern(pattern).matches(pattern, "", "Relu")
    assert not OpPattern(pattern).matches("y", "z", "Relu")


@pytest.mark.parametrize("pattern", ["re:(", "re:*", "re:[a"])
def test_a_broken_expression_is_a_value_error_that_quotes_it(pattern):
    with pytest.raises(ValueError, match="no regular expression"):
        OpPattern(pattern)


@pytest.mark.parametrize(
    ("name", "known", "says"),
    [
        ("fp8-defalt", ["fp8-default", "int8"], "did you mean 'fp8-default'?"),
        ("zzz", ["fp8-default", "int8"], "known: fp8-default, int8"),
        ("x", [], "there is none to choose from"),
        ("zzz", [f"n{i:02}" for i in range(20)], "known: " + ", ".join(f"n{i:02}" for i in range(12)) + ", ..."),
    ],
)
def test_a_typo_gets_the_nearest_name_or_the_list(name, known, says):
    assert did_you_mean(name, known) == says
    assert did_you_mean(name, set(known)) == says


def test_nothing_near_is_none():
    assert nearest("zzz", ["fp8-default"]) is None
    assert nearest("Conv_1", ["Conv_0", "Conv_2", "Relu"]) in ("Conv_0", "Conv_2")
