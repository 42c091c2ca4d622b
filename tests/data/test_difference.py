"""Two contents side by side: how ops and scales find each other, and what counts as a difference."""

from __future__ import annotations

import pytest

from fp8graph.data.contents import Contents, OpContent, ScaleContent
from fp8graph.data.difference import Difference, differ


def op(key: str, precision: str = "fp8", name: str = "", op_type: str = "MatMul", **more: object) -> OpContent:
    return OpContent(key, name, op_type, precision, **more)  # type: ignore[arg-type]


def of(*ops: OpContent, kind: str = "model", **more: object) -> Contents:
    return Contents(kind, ops=ops, **more)  # type: ignore[arg-type]


def summary(found: Difference) -> tuple[list[str], list[str], list[str], int]:
    changed = [f"{one.a.key}:{one.a.precision}>{one.b.key}:{one.b.precision}" for one in found.changed]
    return changed, [one.key for one in found.removed], [one.key for one in found.added], found.same


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([op("x"), op("y")], [op("y"), op("x")], ([], [], [], 2)),
        ([op("x")], [op("x", "fp16")], (["x:fp8>x:fp16"], [], [], 0)),
        ([op("x")], [op("y")], ([], ["x"], ["y"], 0)),
        # by key, then by name
        ([op("x", name="n")], [op("y", "fp16", name="n")], (["x:fp8>y:fp16"], [], [], 0)),
        ([op("x", name="n"), op("y")], [op("y", name="n")], ([], ["x"], [], 1)),
        # a name that occurs twice, or on an op of another type, tells nothing
        ([op("x", name="n"), op("z", name="n")], [op("y", name="n")], ([], ["x", "z"], ["y"], 0)),
        ([op("x", name="n")], [op("y", name="n", op_type="Gemm")], ([], ["x"], ["y"], 0)),
        # what serves others on both sides is left out; a node that is merged on one side only is told
        ([op("q", minor=True)], [op("q", "fp16", minor=True)], ([], [], [], 0)),
        ([op("q", minor=True), op("", minor=True)], [], ([], [], [], 0)),
        ([op("m", "high", minor=True)], [op("m", "fp8")], (["m:high>m:fp8"], [], [], 0)),
        # operands and stored weights count, too
        ([op("x", detail="fp8 x fp8")], [op("x", detail="fp8 x fp16")], (["x:fp8>x:fp8"], [], [], 0)),
        ([op("x", weight="fp16")], [op("x", weight="fp8")], (["x:fp8>x:fp8"], [], [], 0)),
        ([op("x", weight_bytes=4, why="one")], [op("x", weight_bytes=8, why="other")], ([], [], [], 1)),
    ],
)
def test_ops_are_found_by_key_then_by_name(a, b, expected):
    found = differ(of(*a), of(*b))
    assert summary(found) == expected
    assert found.equal == (not any(expected[:3]))


def scale(tensor: str, largest: float | None = 1.0, format: str = "e4m3fn", key: str = "", **more: object):
    return ScaleContent(tensor, key, format, least=largest, largest=largest, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("a", "b", "moved", "counts"),
    [
        ([scale("x")], [scale("x")], [], (0, 0, 1)),
        ([scale("x")], [scale("x", 2.0)], [("x", 2.0)], (0, 0, 0)),
        ([scale("x")], [scale("y")], [], (1, 1, 0)),
        ([scale("x", format="e4m3fn")], [scale("x", format="e5m2")], [("x", 1.0)], (0, 0, 0)),
        (
            [scale("x", None, origin="computed amax")],
            [scale("x", None, origin="computed mse")],
            [("x", None)],
            (0, 0, 0),
        ),
        ([scale("w", digest="1")], [scale("w", digest="2")], [("w", 1.0)], (0, 0, 0)),
        # one tensor in two formats, and read by two ops
        ([scale("x", 1.0, "e5m2"), scale("x", 2.0)], [scale("x", 2.0), scale("x", 1.0, "e5m2")], [], (0, 0, 2)),
        ([scale("x", 1.0, key="p"), scale("x", 2.0, key="q")], [scale("x", 2.0, key="q")], [], (1, 0, 1)),
    ],
)
def test_scales_are_found_by_tensor_and_format(a, b, moved, counts):
    found = differ(of(scales=tuple(a)), of(scales=tuple(b)))
    assert [(one.a.tensor, one.ratio) for one in found.moved] == moved
    assert found.scales == counts
    assert found.equal == (not moved and not any(counts[:2]))


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ({"about": {"recipe": "one"}}, {"about": {"recipe": "other"}}, True),
        ({"io": {"chips": ["sm89"]}}, {"io": {"chips": ["sm120"]}}, False),
        ({"io": {"shapes": {}}}, {"io": {}}, True),
        ({"weights": {"fp8": 8}}, {"weights": {"fp16": 16}}, False),
        ({"weights": {"fp8": 8}}, {"weights": {"fp8": 8, "fp16": 0}}, True),
        ({"weights": {"fp8": 8}}, {"weights": {}}, True),
        ({"unknown": "new build"}, {}, False),
        ({"unknown": "new", "about": {"sha256": "1"}}, {"unknown": "new", "about": {"sha256": "1"}}, True),
        ({"unknown": "new", "about": {"sha256": "1"}}, {"unknown": "new", "about": {"sha256": "2"}}, False),
    ],
)
def test_what_a_file_is_does_not_count_and_what_it_holds_does(a, b, equal):
    found = differ(of(**a), of(**b))
    assert found.equal is equal
    assert found.to_json()["equal"] is equal


def test_of_what_cannot_be_read_nothing_is_said():
    found = differ(of(op("x"), kind="engine"), of(kind="engine", unknown="engines of 9.9 were not checked"))
    assert found.unknown == {"b": "engines of 9.9 were not checked"}
    assert (found.removed, found.changed) == ((), ())
