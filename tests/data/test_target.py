"""Targets: rows with sources, chips, and which row decides."""

from __future__ import annotations

import tomllib
from importlib import resources

import pytest

from fp8graph import formats
from fp8graph.base.errors import UsageError
from fp8graph.core import registry
from fp8graph.core.passes import RewritePass, Stage
from fp8graph.data import target
from fp8graph.data.target import Bound, Row, Target
from tests.small import refused

FACTS = {  # the closed list of `core/facts.py`
    "kernel_elements", "in_channels", "out_channels", "group", "channels_per_group", "depthwise", "vector",
    "packed_qkv", "attention", "keys", "queries", "guarded", "head_size", "high",
    "activations", "scales", "block", "powers", "even", "rank", "came",  # of `core/quants.py`: what the recipe asks for
}  # fmt: skip
every_target = pytest.mark.parametrize("name", target.names())


@every_target
def test_every_row_has_a_source_and_a_text(name):
    found = target.load(name)
    assert found.name == name and found.summary and found.rows
    for row in found.rows:
        assert row.source.strip() and row.text.strip() and row.ops
        assert any(letter.isdigit() for letter in row.source), f"a source says its version: {row.source}"
        assert set(row.formats) <= set(formats.names())
        assert set(row.chips) <= set(found.all_chips)


@every_target
def test_rows_ask_only_for_facts_that_there_are(name):
    for row in target.load(name).rows:
        for bound in row.when:
            assert bound.fact in FACTS
            assert bound.equals is not None or bound.min is not None or bound.max is not None


@every_target
def test_forms_are_passes_of_the_legalize_stage(name):
    for form in target.load(name).forms:
        item = registry.create(form)
        assert isinstance(item, RewritePass) and item.stage in (Stage.LEGALIZE, Stage.CLEAN)


@every_target
def test_a_target_names_its_chips_and_which_have_fp8(name):
    table = tomllib.loads(
        resources.files("fp8graph.targets").joinpath(f"{name.replace('-', '_')}.toml").read_text(encoding="utf-8")
    )
    found = target.load(name)
    assert found.chips == tuple(chip for chip, fp8 in found.all_chips.items() if fp8)
    for chip, item in table.get("chips", {}).items():
        assert item["fp8"] or item["source"], f"{chip}: a chip without FP8 says whence that is known"


CHIPS = [  # target, chip, has FP8
    ("tensorrt-rtx", "sm75", False),
    ("tensorrt-rtx", "sm80", False),
    ("tensorrt-rtx", "sm86", False),
    ("tensorrt-rtx", "sm89", True),
    ("tensorrt-rtx", "sm120", True),
    ("tensorrt", "sm90", True),
    ("openvino", "cpu", True),
]


@pytest.mark.parametrize(("name", "chip", "fp8"), CHIPS)
def test_a_chip_is_taken_or_refused(name, chip, fp8):
    spec = f"{name}:{chip}"
    if fp8:
        found = target.load(spec)
        assert (found.chips, found.asked) == ((chip,), spec)
        return
    with refused(UsageError, "FG303", f"'{chip}' has no FP8", "choose one of", "sm89"):
        target.load(spec)
    with refused(UsageError, "FG303", chip):
        target.load(f"{name}:sm89+{chip}")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tensorrt-rtx:sm999", "does not know the chip 'sm999'"),
        ("tensorrt-rtx:sm98", "did you mean 'sm89'?"),
        ("tensorrt-rtx:SM89", "does not know the chip 'SM89'"),
        ("tensorrt-rtx:", "names no chip behind ':'"),
        ("tensorrt-rtx:sm89+", "choose one of sm89, sm120"),
        ("tensorrt-rtx:+sm89", "choose one of sm89, sm120"),
        ("tensorrt-rtx:sm89++sm120", "choose one of sm89, sm120"),
        ("reference:", "it has no chips"),
        ("tensorrt-rtz", "did you mean 'tensorrt-rtx'?"),
        ("tensorrt_rtx", "did you mean 'tensorrt-rtx'?"),
        ("", "there is no target ''"),
        ("../target", "there is no target"),
        ("onnxruntime:sm89", "there is none to choose from"),
    ],
)
def test_an_unknown_target_or_chip_gets_the_nearest_name(spec, says):
    with refused(UsageError, "FG101", says, "--target"):
        target.load(spec)


def test_a_target_without_chips_named_holds_for_all_that_have_fp8():
    found = target.load("tensorrt-rtx")
    assert set(found.chips) == {chip for chip, fp8 in found.all_chips.items() if fp8} and found.asked == "tensorrt-rtx"
    assert target.load("tensorrt-rtx:sm89+sm120").chips == ("sm89", "sm120")


def row(status, *, chips=(), ops=("MatMul",), when=(), text="t") -> Row:
    return Row(ops, ("e4m3fn",), status, "a source", text, "channel", chips, when)


def made(*rows: Row, chips: tuple[str, ...] = ("a", "b")) -> Target:
    return Target("t", "s", chips, {"a": True, "b": True}, 21, 13, (), (), rows)


@pytest.mark.parametrize(
    ("one", "other", "worst"),
    [
        ("native", "native", "native"),
        ("native", "costly", "costly"),
        ("costly", "emulated", "emulated"),
        ("emulated", "refused", "refused"),
        ("refused", "native", "refused"),
    ],
)
def test_of_several_chips_the_worst_row_counts(one, other, worst):
    rows = [row(one, chips=("a",)), row(other, chips=("b",))]
    assert made(*rows).row("MatMul", "e4m3fn", {}).status == worst
    assert made(*rows[::-1]).row("MatMul", "e4m3fn", {}).status == worst
    assert made(*rows, chips=("a",)).row("MatMul", "e4m3fn", {}).status == one


def test_the_first_row_that_applies_decides():
    small = Bound("keys", max=31)
    found = made(row("costly", when=(small,), text="few keys"), row("native", text="any"))
    for keys, status in ((31, "costly"), (32, "native")):
        assert found.row("MatMul", "e4m3fn", {"keys": keys}).status == status
    assert found.row("MatMul", "e4m3fn", {}).status == "native"  # what is not known fulfils no bound


@pytest.mark.parametrize(("op", "format"), [("Conv", "e4m3fn"), ("MatMul", "e5m2")])
def test_what_no_row_names_is_refused_and_says_so(op, format):
    found = made(row("native")).row(op, format, {})
    assert found.status == "refused" and op in found.text and format in found.text and found.source


@pytest.mark.parametrize(
    ("bound", "value", "holds"),
    [
        (Bound("x", min=2), 2, True),
        (Bound("x", min=2), 1, False),
        (Bound("x", max=2), 2, True),
        (Bound("x", max=2), 3, False),
        (Bound("x", 1, 3), 2, True),
        (Bound("x", 1, 3), 4, False),
        (Bound("x", equals=True), True, True),
        (Bound("x", equals=True), False, False),
        (Bound("x", equals="half"), "half", True),
        (Bound("x", equals="half"), "single", False),
        (Bound("x", min=1), "half", False),
        (Bound("x", min=1), None, False),
    ],
)
def test_a_bound_holds_or_not(bound, value, holds):
    assert bound.holds({} if value is None else {"x": value}) is holds


MEASURED = [  # facts that the tables of TensorRT-RTX have from engines
    ("Conv", {"kernel_elements": 32, "group": 1}, "native"),
    ("Conv", {"kernel_elements": 33, "group": 1}, "refused"),
    ("Conv", {"kernel_elements": 9, "group": 8, "channels_per_group": 1, "depthwise": True}, "costly"),
    ("Conv", {"kernel_elements": 49, "group": 8, "channels_per_group": 1, "depthwise": True}, "refused"),
    ("Conv", {"kernel_elements": 9, "group": 2, "channels_per_group": 15, "depthwise": False}, "costly"),
    ("Conv", {"kernel_elements": 9, "group": 2, "channels_per_group": 16, "depthwise": False}, "native"),
    ("MatMul", {"vector": True}, "refused"),
    ("MatMul", {"vector": False}, "native"),
    ("MatMul", {"attention": True, "high": "half", "keys": 31}, "costly"),
    ("MatMul", {"attention": True, "high": "half", "keys": 32, "head_size": 256}, "native"),
    ("MatMul", {"attention": True, "high": "single", "keys": 31}, "native"),
    # neither precision fuses: two products in FP8 are better than two in fp16
    ("MatMul", {"attention": True, "high": "half", "keys": 64, "head_size": 257}, "native"),
    ("MatMul", {"attention": True, "high": "half", "keys": 64, "head_size": 16}, "native"),
    ("MatMul", {"attention": True, "high": "single", "keys": 64, "head_size": 15}, "costly"),
    ("Conv", {"kernel_elements": 9, "group": 1, "in_channels": 3}, "costly"),
    ("Conv", {"kernel_elements": 9, "group": 1, "in_channels": 4}, "native"),
    ("MatMul", {"attention": True, "high": "half", "keys": 64, "queries": 1}, "costly"),
    ("MatMul", {"attention": True, "high": "half", "keys": 64, "queries": 2}, "native"),
    ("MatMul", {"attention": True, "high": "half", "keys": 64, "guarded": True}, "costly"),
    ("MatMul", {"attention": True, "high": "single", "keys": 64, "queries": 1}, "costly"),
    ("MatMul", {"attention": True, "high": "single", "keys": 64, "guarded": True}, "native"),
    ("Gemm", {"vector": False}, "native"),
    ("ConvTranspose", {"kernel_elements": 9, "group": 1}, "refused"),
]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MatMul", "Gemm"])
@pytest.mark.parametrize("format", ["e4m3fn", "e5m2"])
def test_openvino_emulates_whatever_it_takes(op, format):
    assert target.load("openvino:cpu").row(op, format, {}).status == "emulated"


@pytest.mark.parametrize(("op", "facts", "status"), MEASURED)
def test_the_rows_say_what_was_measured(op, facts, status):
    found = target.load("tensorrt-rtx:sm89")
    assert found.row(op, "e4m3fn", facts).status == status
    assert found.row(op, "e5m2", facts).status in ("refused", "costly")


@pytest.mark.parametrize(("chips", "status"), [("sm120", "costly"), ("sm89", "refused"), ("sm89+sm120", "refused")])
def test_a_depthwise_7x7_runs_in_fp8_on_one_chip_alone(chips, status):
    facts = {"kernel_elements": 49, "group": 8, "channels_per_group": 1, "depthwise": True}
    assert target.load(f"tensorrt-rtx:{chips}").row("Conv", "e4m3fn", facts).status == status


def test_packed_qkv_wants_one_weight_scale():
    found = target.load("tensorrt-rtx:sm89")
    assert found.row("MatMul", "e4m3fn", {"packed_qkv": True, "vector": False}).weights == "tensor"
    assert found.row("MatMul", "e4m3fn", {"packed_qkv": False, "vector": False}).weights == "any"


@pytest.mark.parametrize("order", [("e4m3fn", "e5m2"), ("e5m2", "e4m3fn")])
def test_of_two_formats_the_worse_row_decides(order):
    format, row = target.load("tensorrt-rtx:sm89").worst("MatMul", order, {"vector": False})
    assert (format, row.status) == ("e5m2", "refused")


def test_every_line_about_types_epilogues_and_blocks_has_a_source():
    for name in target.names():
        found = target.load(name)
        for line in (*found.types, *found.epilogues, *([found.ragged] if found.ragged else [])):
            assert line.source and line.text and any(letter.isdigit() for letter in line.source)
