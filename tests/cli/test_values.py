"""Shapes, sizes and bounds as they are typed."""

from __future__ import annotations

import argparse

import pytest

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.shaping import Shapes
from fp8graph.data.plan import Profile


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:[1,3,224,224]", {"x": (1, 3, 224, 224)}),
        ("x:[1, 3, 224, 224]", {"x": (1, 3, 224, 224)}),
        ("x:1x3x224x224", {"x": (1, 3, 224, 224)}),
        ("x:1,3,224,224", {"x": (1, 3, 224, 224)}),
        ("x:1x3,y:2x4", {"x": (1, 3), "y": (2, 4)}),
        ("x:[1,3],y:[2,4]", {"x": (1, 3), "y": (2, 4)}),
        ("input:0:1x3", {"input:0": (1, 3)}),
        ("x:7", {"x": (7,)}),
        ("x:[]", {"x": ()}),
        ("x:0x3", {"x": (0, 3)}),
    ],
)
def test_shapes_are_read(text, expected):
    assert values.shapes(text) == expected


@pytest.mark.parametrize(
    "text", ["x", "x:", ":1x3", "x:1x", "x:-1x3", "x:1x?x3", "x:[1,3", "x:axb", "1x3", "x:1x3,x:2x3"]
)
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        values.shapes(text)


def profiles(**typed: list[str]):
    given = {
        name: [(0, values.shapes(text)) for text in typed[name]] if name in typed else None
        for name, _, _ in Shapes.KINDS
    }
    return Shapes.read(argparse.Namespace(**given))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({}, None),
        ({"shapes": ["x:1x3", "y:2"]}, {"x": Profile((1, 3), (1, 3), (1, 3)), "y": Profile((2,), (2,), (2,))}),
        ({"min_shapes": ["x:1x3"], "opt_shapes": ["x:8x3"], "max_shapes": ["x:32x3"]},
         {"x": Profile((1, 3), (8, 3), (32, 3))}),
        ({"opt_shapes": ["x:8x3"]}, {"x": Profile((8, 3), (8, 3), (8, 3))}),
        ({"min_shapes": ["x:1x3"], "max_shapes": ["x:9x3"]}, {"x": Profile((1, 3), (9, 3), (9, 3))}),
    ],
)  # fmt: skip
def test_profiles_are_completed(typed, expected):
    assert profiles(**typed) == expected


@pytest.mark.parametrize(
    "typed",
    [
        {"shapes": ["x:1x3"], "min_shapes": ["x:1x3"]},
        {"shapes": ["x:1x3", "x:2x3"]},
        {"min_shapes": ["x:9x3"], "max_shapes": ["x:1x3"]},
        {"min_shapes": ["x:1x3"], "max_shapes": ["x:1x3x3"]},
    ],
)
def test_profiles_that_contradict_themselves_are_refused(typed):
    with pytest.raises(UsageError):
        profiles(**typed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4G", 4 << 30), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("64kb", 64 << 10), ("1000", 1000), ("7B", 7)],
)
def test_sizes_are_binary(text, expected):
    assert values.size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1", "4X", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        values.size(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("25", ("", 25.0)), ("logits:25.5", ("logits", 25.5)), ("out:0:1", ("out:0", 1.0))]
)
def test_a_bound_speaks_about_one_output_or_all(text, expected):
    assert values.bound(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("fp8>=0.95", ("fp8", 0.95)), ("fp8 >= 95%", ("fp8", 0.95)), ("fell-back>=.5", ("fell-back", 0.5))],
)
def test_requirements_are_read(text, expected):
    assert values.requirement(text) == expected


@pytest.mark.parametrize("text", ["fp8", "fp8>0.9", "fp8>=x", "fp8>=95", "nan>=nan"])
def test_what_is_no_requirement_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        values.requirement(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "x"])
def test_numbers_are_finite(text):
    with pytest.raises(argparse.ArgumentTypeError):
        values.number(text)
