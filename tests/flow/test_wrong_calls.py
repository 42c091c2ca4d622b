"""Calls that contradict themselves or their inputs are refused before anything is written, with words to act on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import Fp8GraphError, InputError, PassContractError, UsageError
from fp8graph.data.plan import Profile
from fp8graph.flow.given import source_digest
from fp8graph.graph.load import load
from tests.small import contents, feeds, model, refused

TEXT = "(float[n,8] x, float[8,8] w, float[8,8] w_b) => (float[n,8] y) { h = MatMul(x, w) y = MatMul(h, w_b) }"
CODE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from fp8graph import Exact, Opinion, PlanRule, Repair, RewritePass, Stage
with open(__file__ + ".runs", "a") as file:
    file.write("x")

@dataclass(frozen=True)
class KeepHead(PlanRule):
    least: int = 3
    def decide(self, op, ctx):
        return Opinion("keep", "ACME1", "mine") if op.key == "h" else None

class Plain(PlanRule):
    def decide(self, op, ctx):
        return None

class Raises(PlanRule):
    def decide(self, op, ctx):
        raise KeyError("gone")

class Leaves(PlanRule):
    def decide(self, op, ctx):
        raise SystemExit(0)

class SaysText(PlanRule):
    def decide(self, op, ctx):
        return "keep"

class SaysNeither(PlanRule):
    def decide(self, op, ctx):
        return Opinion("drop", "ACME1", "mine")

class SaysNoReason(PlanRule):
    def decide(self, op, ctx):
        return Opinion("keep", "", "")

class CountsNothing(RewritePass):
    stage = Stage.FOLD
    exact = Exact()
    def rewrite(self, model, ctx):
        return None

class Stageless(RewritePass):
    def rewrite(self, model, ctx):
        return 0

class Stumbles(Repair):
    def solve(self, op, decision, ctx, weights):
        return 1 / 0

class SolvesNumber(Repair):
    def solve(self, op, decision, ctx, weights):
        return 5

class SolvesHalf(Repair):
    def solve(self, op, decision, ctx, weights):
        return [(1,)]

class NeedsText(Repair):
    def needs(self, op, decision):
        return "h"
    def solve(self, op, decision, ctx, weights):
        return []

class Undefined(PlanRule):
    pass

class Needy(PlanRule):
    def __init__(self, number):
        self.number = number
    def decide(self, op, ctx):
        return None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, data (a file and a folder), a pass file, a recipe, ranges, a settled plan and one without numbers."""
    monkeypatch.chdir(tmp_path)
    onnx.save(model(TEXT), "m.onnx")
    Path("d").mkdir()
    for name in ("data.npz", "d/a.npz"):
        np.savez(name, x=np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8))
    Path("mine.py").write_text(CODE)
    recipe = Path(fp8graph.__file__).parent / "recipes" / "fp8-default.toml"
    Path("r.toml").write_text(recipe.read_text().replace('"fp8-default"', '"mine"'))
    fp8graph.calibrate("m.onnx", data="data.npz", output="ranges.json")
    fp8graph.optimize("m.onnx", output="done.onnx", data="data.npz", compare=False)
    fp8graph.optimize("m.onnx", output="open.onnx", plan_only=True)
    return tmp_path


PLAN = {"plan": "done.onnx.plan.json"}
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({**PLAN, "passes": "keep-router{steps=2}"}, "--passes"),
    ({**PLAN, "pass_file": "mine.py:KeepHead"}, "--pass-file"),
    ({**PLAN, "ranges": "ranges.json"}, "--ranges"),
    ({**PLAN, "samples": 3}, "--samples"),
    ({**PLAN, "batch": 2}, "--batch"),
    ({**PLAN, "recipe": "r.toml"}, "--recipe"),
    ({**PLAN, "plan_only": True}, "--plan-only"),
    ({"plan": "open.onnx.plan.json", "plan_only": True}, "--plan-only"),
]


@pytest.mark.parametrize(("call", "option"), CONTRADICTIONS)
def test_what_a_plan_leaves_no_room_for_is_refused_with_both_names(folder, call, option):
    before = contents(folder)
    with pytest.raises(UsageError) as raised:
        fp8graph.optimize("m.onnx", output="o.onnx", **call)
    assert {option, "--plan"} <= set(raised.value.where.replace(",", "").split()), str(raised.value)
    assert raised.value.why and raised.value.do
    assert {name for name in contents(folder) if name not in before} <= {"mine.py.runs"}


REPEATED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"recipe": "fp8-default", "target": "tensorrt-rtx"}),
    ({}, {"data": "data.npz", "samples": 2, "batch": 2}),  # the comparison at the end reads it
    ({"passes": "keep-router{steps=2}"}, {}),
    ({"passes": "keep-router{steps=2}"}, {"passes": "keep-router{steps=2}"}),
    ({"recipe": "r.toml"}, {"recipe": "r.toml"}),
    ({"pass_file": "mine.py:KeepHead"}, {"pass_file": "mine.py:KeepHead"}),
]


@pytest.mark.parametrize(("made", "again"), REPEATED)
def test_what_repeats_a_plan_is_welcome(folder, made, again):
    plan = fp8graph.optimize("m.onnx", data="data.npz", **made).plan
    assert fp8graph.optimize("m.onnx", plan=plan, **again).plan == plan


def test_a_plan_without_numbers_is_filled_from_ranges_or_data(folder):
    for given in ({"ranges": "ranges.json"}, {"data": "data.npz", "samples": 2}):
        for plan_only in (True, False):
            made = fp8graph.optimize("m.onnx", plan="open.onnx.plan.json", plan_only=plan_only, **given)
            assert made.plan.settled


INPUTS: list[tuple[str, dict[str, Any]]] = [
    ("m.onnx", {}),
    ("data.npz", {}),
    ("ranges.json", {"ranges": "ranges.json"}),
    ("r.toml", {"recipe": "r.toml"}),
    ("mine.py", {"pass_file": "mine.py:Plain"}),
    ("done.onnx.plan.json", {"plan": "done.onnx.plan.json"}),
    ("d/a.npz", {"data": "d"}),
]


@pytest.mark.parametrize(("name", "call"), INPUTS)
@pytest.mark.parametrize("kind", ["itself", "symlink", "hardlink", "way round", "beside"])
def test_no_input_is_overwritten_whatever_it_is_called(folder, name, call, kind):
    output = {"symlink": "link.onnx", "hardlink": "hard.onnx", "way round": f"d/../{name}"}.get(kind, name)
    if kind == "symlink":
        Path(output).symlink_to(name)
    elif kind == "hardlink":
        os.link(name, output)
    elif kind == "beside":  # a file that is written beside OUT
        Path("o.onnx.data").symlink_to(name)
        output = "o.onnx"
    before = contents(folder)
    with refused(UsageError, "FG103", "inputs are never changed"):
        fp8graph.optimize("m.onnx", output=output, force=True, **{"data": "data.npz", **call})
    if name not in ("ranges.json", "mine.py") and kind != "beside":
        with refused(UsageError, "FG103", "inputs are never changed"):
            fp8graph.calibrate("m.onnx", output=output, force=True, **{"data": "data.npz", **call})
    assert {path: sha for path, sha in contents(folder).items() if not path.endswith(".runs")} == before


def test_a_file_in_a_folder_of_data_that_is_no_data_may_be_replaced(folder):
    Path("d/old.onnx").write_bytes(b"old")
    fp8graph.optimize("m.onnx", output="d/old.onnx", data="d", force=True)


SHAPES: list[tuple[Any, str | None]] = [
    ({"x": (3, 8)}, None),
    ({"x": [3, 8]}, None),
    ({"x": ((1, 8), (2, 8), (4, 8))}, None),
    ({"x": Profile((0, 8), (2, 8), (4, 8))}, None),  # a cache that is still empty
    ({"x": (0, 8)}, "would always be empty"),
    ({"x": Profile((0, 8), (0, 8), (0, 8))}, "would always be empty"),
    ({"x": "3x8"}, "it takes a shape or a Profile"),
    ({"x": 3}, "it takes a shape or a Profile"),
    ({"x": ((1, 8), (2, 8))}, "it takes a shape or a Profile"),
    ({"x": ((4, 8), (2, 8), (1, 8))}, "min <= opt <= max does not hold"),
    ([("x", (3, 8))], "a mapping of shapes by input name"),
]


@pytest.mark.parametrize(("shapes", "says"), SHAPES)
def test_shapes_are_given_in_any_sensible_form(shapes, says):
    if says is None:
        assert isinstance(fp8graph.optimize(model(TEXT), shapes=shapes, plan_only=True).plan.shapes["x"], Profile)
        return
    with pytest.raises(UsageError, match="FG100") as raised:
        fp8graph.optimize(model(TEXT), shapes=shapes, plan_only=True)
    assert says in str(raised.value)


def test_a_profile_out_of_order_is_an_error_of_ours_and_a_value_error():
    for error in (UsageError, ValueError):
        with pytest.raises(error):
            Profile((2,), (1,), (1,))


WRONG: list[dict[str, Any]] = [
    {"target": 3}, {"recipe": 3}, {"plan": 3}, {"ranges": 3}, {"output": 3}, {"output": ""}, {"progress": print},
    {"samples": 0}, {"samples": "3"}, {"samples": True}, {"batch": -1}, {"batch": 1.5}, {"seed": -1},
    {"passes": 3}, {"passes": [3]}, {"passes": "no-such-pass"}, {"pass_file": 3}, {"custom_ops": 3},
    {"op_types_to_exclude": 3}, {"nodes_to_exclude": [3]}, {"data": 3}, {"attention": "on"},
    {"high_precision_dtype": "fp64"}, {"recipe": Path("none.toml")}, {"model": 3}, {"model": None},
]  # fmt: skip


@pytest.mark.parametrize("call", WRONG, ids=str)
@pytest.mark.parametrize("function", [fp8graph.optimize, fp8graph.calibrate], ids=["optimize", "calibrate"])
def test_an_argument_of_another_kind_is_an_error_of_ours(folder, function, call):
    given = {"model": "m.onnx", "data": "data.npz", **call}
    if function is fp8graph.calibrate and "ranges" in call:
        return
    with pytest.raises(Fp8GraphError) as raised:
        function(given.pop("model"), **given)
    assert raised.value.status in (2, 3) and raised.value.do, str(raised.value)


class KeepMine(fp8graph.PlanRule):
    """No dataclass: it has no options."""

    def decide(self, op, ctx):
        return fp8graph.Opinion("keep", "ACME1", "mine") if op.key == "h" else None


@pytest.mark.parametrize(
    "passes", [KeepMine(), [KeepMine()], (KeepMine(), "raise-opset"), "raise-opset", ["raise-opset"]]
)
def test_passes_are_given_alone_in_a_list_by_name_or_as_objects(passes):
    plan = fp8graph.optimize(model(TEXT), plan_only=True, passes=passes).plan
    mine = not isinstance(passes, str) and passes != ["raise-opset"]
    assert plan.ops["h"].do == ("keep" if mine else "quantize")
    assert plan.asked.get("pass_code") == (["keep-mine"] if mine else None)


@pytest.mark.parametrize("call", ["build", "attest"])
def test_a_model_that_is_no_file_cannot_be_built(tmp_path, call):
    how: dict[str, Any] = {"output": tmp_path / "e"} if call == "build" else {"model": model(TEXT)}
    with pytest.raises(Fp8GraphError) as raised:
        getattr(fp8graph, call)(model(TEXT), **how)
    assert raised.value.status in (2, 3)


BUILDS: list[dict[str, Any]] = [
    {"output": 3}, {"output": ""}, {"shapes": [3]}, {"shapes": 3}, {"shapes": "x"}, {"shapes": {"x": 3}},
    {"shapes": [{"x": "3x8"}]}, {"target": 3}, {"plan": 3}, {"emit_script": 3}, {"custom_ops": 3}, {"custom_ops": [3]},
    {"load_timing_cache": 3}, {"save_timing_cache": 3}, {"workspace": "1"}, {"memory_limit": 0.5}, {"timeout": "1"},
    {"builder_optimization_level": "3"}, {"hardware_compatibility_level": 3}, {"builder_args": 3},
]  # fmt: skip


@pytest.mark.parametrize("call", BUILDS, ids=str)
def test_an_argument_of_another_kind_builds_nothing(folder, call):
    before = contents(folder)
    with pytest.raises(UsageError, match="FG100") as raised:
        fp8graph.build("m.onnx", **{"output": "e", **call})
    assert raised.value.why and raised.value.do
    assert contents(folder) == before


@pytest.mark.parametrize(
    "call", [{"files": 3}, {"files": [3]}, {"files": ""}, {"output": 3}, {"format": 3}, {"format": ["md"]}], ids=str
)
def test_an_argument_of_another_kind_reports_nothing(folder, call):
    with pytest.raises(UsageError, match="FG100"):
        fp8graph.report(**{"files": "done.onnx.plan.json", **call})


OTHERS: list[tuple[str, dict[str, Any]]] = [
    *(("check", {"model": "m.onnx", name: 3}) for name in ("plan", "target")),
    ("check", {"model": "m.onnx", "fix": True, "output": 3}),
    ("inspect", {"file": 3}), ("inspect", {"file": None}),
    *(("inspect", {"file": "m.onnx", name: given}) for name in ("show", "op") for given in (3, [3])),
    ("diff", {"a": 3, "b": "m.onnx"}), ("diff", {"a": "m.onnx", "b": None}),
    ("diff", {"a": "m.onnx", "b": "m.onnx", "op": 3}),
    ("bench", {"a": 3}), ("bench", {"a": "m.onnx", "b": 3}), ("bench", {"a": "m.onnx", "rounds": [11]}),
    ("bench", {"a": "m.onnx", "shapes": {"x": 3}}),
    ("import_plan", {"source": "m.onnx", "model": "m.onnx", "from_": 3}),
    ("calibrate", {"merge": [None]}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "call"), OTHERS, ids=str)
def test_an_argument_of_another_kind_is_refused_wherever_it_is_given(folder, function, call):
    with pytest.raises(UsageError, match="FG100") as raised:
        getattr(fp8graph, function)(**call)
    assert raised.value.why and raised.value.do


def test_one_pattern_or_section_needs_no_list(folder):
    for listed, alone in (({"op": ["h"]}, {"op": "h"}), ({"show": ["io"]}, {"show": "io"})):
        assert fp8graph.inspect("m.onnx", **alone) == fp8graph.inspect("m.onnx", **listed)


def test_a_mended_model_never_takes_the_place_of_the_plan(folder):
    before = contents(folder)
    with refused(UsageError, "FG103"):
        plan = "done.onnx.plan.json"
        fp8graph.check("done.onnx", plan=plan, fix=True, output=plan, force=True)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "shapes", [{"x": (3, 8)}, [{"x": [3, 8]}], ({"x": (1, 8)}, {"x": Profile((2, 8), (3, 8), (4, 8))})]
)
def test_an_engine_takes_shapes_in_the_forms_of_optimize(folder, shapes):
    fp8graph.build("m.onnx", target="tensorrt", emit_script="b.py", shapes=shapes)
    assert "PROFILES = [" in Path("b.py").read_text()


@pytest.mark.parametrize(("name", "status"), [("KeepHead", 0), ("Plain", 0), ("Undefined", 2), ("Needy", 2)])
def test_a_pass_file_is_run_once_and_may_hold_any_class(folder, name, status):
    if status:
        with refused(UsageError, "FG113", "cannot be made with no options", "TypeError"):
            fp8graph.optimize("m.onnx", plan_only=True, pass_file=f"mine.py:{name}")
    else:
        made = fp8graph.optimize("m.onnx", plan_only=True, pass_file=f"mine.py:{name}").plan
        assert (made.ops["h"].do == "keep") == (name == "KeepHead")
    assert Path("mine.py.runs").read_text() == "x"


BREACHES = [
    ("Raises", "the rule raises failed", "KeyError: 'gone'"),
    ("Leaves", "the rule leaves failed", "SystemExit: 0"),
    ("SaysText", "the rule says-text broke its contract", "it returned str 'keep'"),
    ("SaysNeither", "the rule says-neither broke its contract", "'drop'"),
    ("SaysNoReason", "the rule says-no-reason broke its contract", "lacks a code"),
    ("CountsNothing", "the pass counts-nothing broke its contract", "rewrite() returned None"),
    ("Stageless", "the pass stageless has no stage", "stage = None"),
    ("Stumbles", "the repair stumbles failed", "ZeroDivisionError"),
    ("SolvesNumber", "the repair solves-number broke its contract", "it returned int 5"),
    ("SolvesHalf", "the repair solves-half broke its contract", "(1,)"),
    ("NeedsText", "the repair needs-text broke its contract", "it returned str 'h'"),
]


@pytest.mark.parametrize(("name", "what", "why"), BREACHES)
def test_a_pass_that_breaks_its_contract_is_named(folder, name, what, why):
    with refused(PassContractError, "FG901", what, why, "do:"):
        fp8graph.optimize("m.onnx", data="data.npz", pass_file=f"mine.py:{name}")


def test_the_pass_that_carries_out_the_plan_stands_once_in_a_pipeline(folder):
    with refused(UsageError, "FG113", "insert-qdq stands twice", "leave insert-qdq out of --passes"):
        fp8graph.optimize("m.onnx", data="data.npz", passes="insert-qdq")
    assert fp8graph.optimize("m.onnx", data="data.npz", passes="fold-constants").planned == 2


def test_models_with_other_inputs_are_not_compared_and_both_lists_are_said():
    one = model("(float[n,8] x, float[8,8] w) => (float[n,8] y) { y = MatMul(x, w) }")
    rows = [
        ("(float[n,8] z) => (float[n,8] y) { y = Relu(z) }", "has an input 'x'"),
        ("(float[n,8] x, float[n,8] m) => (float[n,8] y) { y = Mul(x, m) }", "has an input 'm'"),
        ("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }", "another shape"),
        ("(float16[n,8] x) => (float16[n,8] y) { y = Relu(x) }", "float32 in the first model, float16 in the second"),
    ]
    for text, says in rows:
        with refused(InputError, "FG107", says, "inputs of the first: x float32 ?x8; of the second: "):
            fp8graph.compare(one, model(text), data=feeds(one))
    fixed = model("(float[2,8] x, float[8,8] w) => (float[2,8] y) { y = MatMul(x, w) }")
    assert fp8graph.compare(one, fixed, data=feeds(one)).outputs["y"].equal


def test_a_model_has_one_digest_however_it_is_handed_over(tmp_path):
    text = "(float[2,64] x, float[64,64] w, float[1] w_b) => (float[2,64] y) { h = MatMul(x, w) y = Add(h, w_b) }"
    proto = model(text)
    onnx.save(proto, str(tmp_path / "inside.onnx"))
    onnx.save(model(text), str(tmp_path / "beside.onnx"), save_as_external_data=True, location="b", size_threshold=0)
    import onnx_ir as ir

    forms = [tmp_path / "inside.onnx", str(tmp_path / "beside.onnx"), proto, ir.from_proto(proto)]
    assert len({source_digest(load(form)) for form in forms}) == 1
    assert source_digest(load(model(text, seed=2))) != source_digest(load(proto))
    ranges = fp8graph.calibrate(proto, data=feeds(proto)).ranges
    assert fp8graph.optimize(forms[1], ranges=ranges, plan_only=True).plan.settled


def test_ranges_of_another_model_are_refused_with_a_file_to_look_at():
    seen = fp8graph.calibrate(model(TEXT), data=feeds(model(TEXT))).ranges
    with refused(InputError, "FG110", "the ranges given", "this one is sha256:", "calibrate MODEL"):
        fp8graph.optimize(model(TEXT, seed=4), ranges=seen, plan_only=True)


def test_calibrate_observes_what_the_same_options_of_optimize_need(tmp_path):
    proto = model("(float[2,8] x, float[8,8] w) => (float[2,8] y) { h = Relu(x) m = MatMul(h, w) y = Relu(m) }")
    plain = fp8graph.calibrate(proto, data=feeds(proto)).ranges
    asked: dict[str, Any] = {"high_precision_dtype": "fp16", "op_types_to_quantize": ["MatMul"]}
    whole = fp8graph.calibrate(proto, data=feeds(proto), **asked).ranges
    assert set(plain.values) < set(whole.values)
    assert fp8graph.optimize(proto, ranges=whole, plan_only=True, **asked).plan.settled
    with refused(UsageError, "FG120", "the ranges lack tensors"):
        fp8graph.optimize(proto, ranges=plain, plan_only=True, **asked)


@pytest.mark.parametrize("output", ["o.onnx.data", "o.onnx", "o.onnx.plan.json", "data.npz"])
def test_no_engine_is_built_over_what_it_is_built_from(folder, output):
    fp8graph.optimize("m.onnx", output="o.onnx", data="data.npz", external_data_size_threshold=16)
    before = contents(folder)
    with refused(UsageError, "FG103", output):
        fp8graph.build("o.onnx", output=output, target="tensorrt-rtx:sm89", force=True, custom_ops=["data.npz"])
    assert contents(folder) == before
