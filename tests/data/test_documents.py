"""Documents: what is damaged, foreign or newer is refused whole, and never with a traceback."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph.base.canon import pretty
from fp8graph.base.errors import Fp8GraphError, InputError
from fp8graph.data.attestation import Attestation, OpVerdict
from fp8graph.data.comparison import Comparison, OutputDifference
from fp8graph.data.document import load_json
from fp8graph.data.plan import Decision, Plan, Profile, Quant, Reason, Scale
from fp8graph.formats.spec import PerAxis, PerTensor
from fp8graph.numerics.ranges import Ranges, Stat
from tests.small import refused

WHY = Reason("FG201", "recipe fp8-default", "both operands in FP8")
PLAN = Plan(
    "sha256:0",
    "tensorrt-rtx:sm89",
    {"name": "fp8-default"},
    {
        "h": Decision(
            "MatMul",
            "mm",
            "quantize",
            WHY,
            inputs={
                0: Quant("x", "e4m3fn", PerTensor(), Scale("observed", "amax", 0.5)),
                1: Quant("w", "e4m3fn", PerAxis(1), Scale("computed", "amax")),
            },
            group="attention s",
        ),
        "y": Decision("Relu", "", "keep", Reason("FG202", "recipe", "not its type"), "fp16"),
    },
    {"x": Profile((1, 8), (2, 8), (4, 8))},
    {"nodes_to_exclude": ["a"]},
    "calibration.npz",
)
RANGES = Ranges(
    "sha256:1",
    "calibration.npz",
    3,
    {"x": {(1, 8): 2, (2, 8): 1}},
    {"x": Stat(40, 0, -1.5, 2.25), "h": Stat(40, 3), "never": Stat()},
)
ATTESTATION = Attestation(
    "e",
    "m",
    "p",
    "tensorrt_rtx 1.7",
    ("sm89",),
    2,
    {
        "h": OpVerdict("MatMul", "mm", "fp8", "fp8", "", {"program": "fp8"}, 128, 64),
        "k": OpVerdict("Conv", "", "fp8", "fell-back", "half precision", {}, None, None),
    },
)
READERS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "plan": (PLAN, Plan.from_json),
    "ranges": (RANGES, Ranges.from_json),
    "attestation": (ATTESTATION, Attestation.from_json),
}
every_kind = pytest.mark.parametrize("kind", READERS)


def document(kind: str) -> dict[str, Any]:
    """The document as it would be read from a file."""
    return json.loads(pretty(READERS[kind][0].to_json()))


@every_kind
def test_a_document_comes_back_as_it_was(kind):
    value, read = READERS[kind]
    assert read(document(kind)) == value


@every_kind
@pytest.mark.parametrize("version", ["2", "10", "0", "", "x", "1.5", "-1", "²"])
def test_another_major_version_is_refused_with_advice(kind, version):
    changed = document(kind) | {"schema": f"fp8graph.{kind}/{version}"}
    do = "pip install -U fp8graph" if version in ("2", "10") else "write the document anew"
    with refused(InputError, "FG111", "f.json", f"version {version}", do):
        READERS[kind][1](changed, "f.json")


@every_kind
@pytest.mark.parametrize(
    "other", [None, [], 1, "plan", {}, {"schema": 1}, {"schema": "fp8graph.recipe/1"}, {"schema": ""}], ids=repr
)
def test_what_is_no_such_document_is_refused(kind, other):
    with refused(InputError, "FG111", "f.json", kind):
        READERS[kind][1](other, "f.json")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON tree."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutated(tree: Any, path: tuple[Any, ...], change: Any) -> Any:
    """A copy of `tree` in which the value at `path` is `change`, or is gone."""
    out = copy.deepcopy(tree)
    owner = out
    for key in path[:-1]:
        owner = owner[key]
    if change is GONE:
        del owner[path[-1]]
    else:
        owner[path[-1]] = change
    return out


GONE = object()
# Whatever json.loads can give: it reads NaN, Infinity, 1e999 and integers of any size.
WRONG = [
    GONE, None, True, -1, 0, 2.5, 10**400, float("nan"), float("inf"), -float("inf"), 1e300, 1e-300, "", "x", "1", [],
    {}, [None], [[]], [[1]], [[1, 2, 3]], {"": ""}, {"x": None}, {"-1": 1}, {"schema": {}},
]  # fmt: skip


@every_kind
def test_no_single_damage_is_a_traceback(kind):
    """Every value replaced by everything: read as something sound that can be written and used, or refused."""
    tree, read = document(kind), READERS[kind][1]
    accepted = 0
    for path in places(tree):
        for change in WRONG:
            damaged = mutated(tree, path, change)
            refusal = None
            try:
                found = read(damaged, "f.json")
            except InputError as error:
                refusal = error
            if refusal is not None:
                assert refusal.code == "FG111" and refusal.where == "f.json" and refusal.what
                continue
            accepted += 1
            spelt = pretty(found.to_json())  # what was accepted is sound: it can be written, and read again
            assert read(json.loads(spelt)) == found, (path, change)
            use(found)
    assert accepted < 0.75 * len(WRONG) * sum(1 for _ in places(tree))


def use(found: Any) -> None:
    """What programs do with a document."""
    if isinstance(found, Plan):
        _ = [found.settled, list(found.quants()), list(found.kept())]
    elif isinstance(found, Ranges):
        assert all(stat.amax is None or stat.amax >= 0 for stat in found.values.values())
        found.merge(found)
    else:
        _ = [found.counts, found.broken, found.share("macs"), found.share("weight_bytes")]


@every_kind
def test_no_heap_of_damages_is_a_traceback(kind):
    dice, read = random.Random(7), READERS[kind][1]
    refusals = 0
    for _ in range(400):
        tree: Any = document(kind)
        for _ in range(dice.randrange(2, 6)):
            paths = list(places(tree))
            if paths:
                tree = mutated(tree, dice.choice(paths), dice.choice(WRONG))
        try:
            use(read(tree, "f.json"))
        except Fp8GraphError:
            refusals += 1
    assert refusals > 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@every_kind
@given(tree=JSON)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_json_is_read_or_refused(kind, tree):
    if isinstance(tree, dict):
        tree["schema"] = f"fp8graph.{kind}/1"
    with pytest.raises(InputError):
        READERS[kind][1](tree)


@pytest.mark.parametrize(
    "text",
    ["", "{", "nothing", "[1,]", "{'a': 1}", "\ufeff{}", '{"a": ' + "[" * 100_000, "1" * 5000, "\x00"],
    ids=lambda text: repr(text[:12]),
)
def test_a_file_that_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "f.json"
    path.write_text(text, encoding="utf-8")
    with refused(InputError, "FG111", "the plan", "f.json"):
        load_json(path, "the plan")


def test_an_attestation_counts_and_weighs_its_verdicts():
    assert ATTESTATION.counts == {"fp8": 1, "fell-back": 1}
    assert list(ATTESTATION.broken) == ["k"]
    assert ATTESTATION.share("macs") == 1.0
    nothing = Attestation("e", "m", "", "b", (), 0, {})
    assert nothing.counts == {"fp8": 0} and nothing.share("macs") is None
    with pytest.raises(ValueError, match="sideways"):
        OpVerdict("Conv", "", "fp8", "sideways")  # type: ignore[arg-type]


@pytest.mark.parametrize("verdict", ["fell-back", "storage", "absent", "unknown", "emulated", "folded"])
def test_no_other_verdict_is_a_success_not_even_unknown(verdict):
    assert not OpVerdict("Conv", "", "fp8", verdict).as_planned


def test_a_comparison_is_written_without_infinities():
    made = Comparison({"y": OutputDifference(None, None, 0.0, 0, True)}, 4, ("the output 'z' is missing",))
    assert json.loads(pretty(made.to_json())) == {
        "schema": "fp8graph.comparison/1",
        "samples": 4,
        "outputs": {"y": {"sqnr_db": None, "cosine": None, "max_abs": 0.0, "new_nonfinite": 0, "equal": True}},
        "problems": ["the output 'z' is missing"],
        "missed": [],
    }
