"""Engine, manifest, model and plan belong together, or attest says that they do not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import engine_models as models
import onnx
import pytest
from conftest import Build, Made

from fp8graph.data.attestation import Attestation
from fp8graph.data.plan import Decision, Plan, Reason
from fp8graph.engines.attest import attest_engine

pytestmark = pytest.mark.usefixtures("rtx")

SHA = "ab" * 32  # of the plan that `sound` was built with


def told(done: Attestation) -> list[tuple[str, str, str]]:
    return [(note.code, note.severity, note.op) for note in done.notes]


def copied(made: Made, folder: Path, change: Callable[[Path, Path], None]) -> Path:
    """A copy of an engine and its manifest, changed."""
    engine, manifest = folder / "m.engine", folder / "m.engine.json"
    shutil.copy(made.engine, engine)
    shutil.copy(made.engine.with_name(manifest.name), manifest)
    change(engine, manifest)
    return engine


def without_layers(engine: Path, manifest: Path) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"layers": None}))


def grown(engine: Path, manifest: Path) -> None:
    """One byte of the weights, at the end of the file, is another: the file is whole and its programs are the same."""
    data = bytearray(engine.read_bytes())
    data[-40] ^= 1
    engine.write_bytes(data)


def test_where_all_belong_together_nothing_is_noted(sound: Made, plan: Plan):
    done = attest_engine(sound.engine, sound.model, plan, plan_sha256=SHA)
    assert (told(done), done.honest, done.sound, done.findings) == ([], True, True, ())
    assert {op.rests_on for op in done.verdicts.values()} == {("builder", "file")}


@pytest.mark.parametrize(
    ("change", "note", "honest"),
    [
        (lambda _, manifest: manifest.unlink(), ("FG511", "info", ""), True),
        (without_layers, ("FG511", "info", ""), True),
        (grown, ("FG510", "error", ""), False),
    ],
    ids=["no manifest", "no layers in it", "an engine that was changed"],
)
def test_where_the_file_is_alone_that_is_told(sound: Made, plan: Plan, tmp_path: Path, change, note, honest):
    done = attest_engine(copied(sound, tmp_path, change), sound.model, plan, plan_sha256=SHA)
    assert told(done) == [note]
    assert "the engine file is the only witness" in done.notes[0].text
    assert {op.rests_on for op in done.verdicts.values()} == {("file",)}
    assert (done.counts, done.honest) == ({"fp8": 4}, honest)


def test_another_plan_than_the_one_that_was_built_with_is_told(sound: Made, plan: Plan):
    done = attest_engine(sound.engine, sound.model, plan, plan_sha256="cd" * 32)
    assert told(done) == [("FG509", "error", "")]
    assert "another plan: sha256 abababababab, this one has cdcdcdcdcdcd" in done.notes[0].text
    assert (done.counts, done.honest) == ({"fp8": 4}, False)


def test_a_plan_that_was_not_given_is_noted_and_the_models_own_pairs_are_the_promise(sound: Made):
    done = attest_engine(sound.engine, sound.model, None)
    assert (told(done), done.honest) == ([("FG511", "info", "")], True)


def test_other_data_files_are_another_model(build: Build, tmp_path: Path):
    made = build(models.matmul())
    model = onnx.load(str(made.model))
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="m.data", size_threshold=64)
    document = json.loads(made.engine.with_name("m.engine.json").read_text())
    from fp8graph.base.files import sha256_of

    engine = tmp_path / "m.engine"
    shutil.copy(made.engine, engine)
    said = document | {"model": sha256_of(path), "data": {"m.data": sha256_of(tmp_path / "m.data")}}
    (tmp_path / "m.engine.json").write_text(json.dumps(said))
    assert attest_engine(engine, path, None).counts == {"fp8": 1}
    (tmp_path / "m.engine.json").write_text(json.dumps(said | {"data": {"m.data": "00" * 32}}))
    done = attest_engine(engine, path, None)
    assert done.counts == {"fp8": 0, "unknown": 1}
    assert "other data in m.data" in done.verdicts["mm_o"].why


def scaled(plan: Plan, key: str, number: float) -> Plan:
    """The plan with another scale for an op's activation."""
    op = plan.ops[key]
    quant = op.inputs[0]
    changed = replace(quant, scale=replace(quant.scale, value=number))
    return replace(plan, ops={**plan.ops, key: replace(op, inputs={**op.inputs, 0: changed})})


def kept(plan: Plan, key: str, code: str = "FG203") -> Plan:
    return replace(plan, ops={**plan.ops, key: plan.ops[key].kept(Reason(code, "test", "test"))})


def forgotten(plan: Plan, key: str) -> Plan:
    return replace(plan, ops={name: op for name, op in plan.ops.items() if name != key})


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda plan: scaled(plan, "mm_o", 0.03), "the plan gives operand 0 the scale 0.03, the model 0.02"),
        (lambda plan: kept(plan, "mm_o"), "the plan keeps this MatMul in high precision, the model quantizes it"),
        (lambda plan: forgotten(plan, "mm_o"), "the plan does not know this MatMul"),
        (lambda plan: scaled(plan, "mm_o", 0.04), ""),  # a power of two may have been folded into it
        (lambda plan: scaled(plan, "mm_o", 0.02001), ""),  # it may be kept in half precision
        (lambda plan: kept(plan, "mm_o", "FG230"), ""),  # it came with its own
    ],
    ids=["scale", "kept", "unknown", "power of two", "rounded", "quantized already"],
)
def test_a_model_that_is_not_what_the_plan_wrote_is_told(sound: Made, plan: Plan, change, note: str):
    done = attest_engine(sound.engine, sound.model, change(plan))
    assert [(found.code, found.op, found.text) for found in done.notes] == ([("FG512", "mm_o", note)] if note else [])
    assert done.honest is not bool(note)
    assert not done.broken


def test_an_op_whose_pair_the_model_lacks_is_never_fine(sound: Made, plan: Plan, tmp_path: Path):
    """The engine runs a node of its name in FP8, but it was not built from a model in which it has no Q/DQ."""
    model = tmp_path / "m.onnx"
    model.write_bytes(models.network(drop="a4").SerializeToString())
    engine = copied(sound, tmp_path, lambda _, manifest: manifest.unlink())
    done = attest_engine(engine, model, plan)
    op = done.verdicts["mm_o"]
    assert (op.verdict, op.code, done.counts["fp8"]) == ("unknown", "FG512", 3)
    assert op.why.startswith("the plan quantizes operand 0 to fp8, in the model it has no Q/DQ")


def test_a_finding_names_every_op_that_is_not_as_planned(build: Build, plan: Plan):
    broken = build(models.network(drop="a3"))
    more = replace(plan, ops={**plan.ops, "gone": replace(plan.ops["mm_o"], name="gone")})
    found = attest_engine(broken.engine, broken.model, more).findings
    assert [(item.code, item.severity, item.op) for item in found] == [
        ("FG501", "error", "gemm_o"),
        ("FG502", "error", "gone"),
    ]
    assert found[0].text.startswith("Gemm: planned fp8, the engine: fell-back (operand 0, 'flat_o', has no Q/DQ")


def test_what_could_run_in_fp8_and_was_not_planned_counts(build: Build, plan: Plan):
    """gemm stays in high precision, though the table's row for it is native; mm makes the output of the model."""
    made = build(models.network(drop="a3", high="w3"))
    done = attest_engine(made.engine, made.model, kept(plan, "gemm_o"))
    macs = {key: op.macs or 0 for key, op in done.verdicts.items()}
    assert [(key, op.verdict, op.row, op.head) for key, op in done.others.items()] == [
        ("gemm_o", "high", "native", False)
    ]
    assert done.honest
    assert done.share("macs") == pytest.approx(sum(macs.values()) / (sum(macs.values()) + 64 * 512))
    assert done.totals("macs") == {"fp8": sum(macs.values()), "high": 64 * 512}
    without_head = build(models.network(drop="a4", high="w4"))
    done = attest_engine(without_head.engine, without_head.model, kept(plan, "mm_o"))
    assert (done.others["mm_o"].head, done.share("macs")) == (True, 1.0)


def test_a_refused_op_does_not_count_unless_it_was_planned(build: Build, plan: Plan):
    wide = build(models.network(kernel=7, drop="a1", high="w1"))
    done = attest_engine(wide.engine, wide.model, kept(plan, "conv1_o"))
    assert (done.others["conv1_o"].row, done.share("macs")) == ("refused", 1.0)
    wide = build(models.network(kernel=7))
    done = attest_engine(wide.engine, wide.model, plan)
    assert done.verdicts["conv1_o"].row == "refused"
    share = done.share("macs")
    assert share is not None and share < 0.5


def test_a_model_without_pairs_and_plan_promises_nothing_and_still_says_what_runs(build: Build):
    made = build(models.attention(quantized=False))
    done = attest_engine(made.engine, made.model, None)
    assert (done.verdicts, done.honest) == ({}, False)
    assert {key: op.verdict for key, op in done.others.items()} == {"scores_o": "high", "mixed_o": "high"}


def test_the_forecast_stands_beside_what_became_of_an_op(build: Build, plan: Plan):
    broken = build(models.network(kernel=7, drop="a3"))
    done = attest_engine(broken.engine, broken.model, plan)
    assert {key: (op.planned, op.forecast, op.verdict) for key, op in done.verdicts.items()} == {
        "conv1_o": ("fp8", "fell-back", "fell-back"),
        "conv2_o": ("fp8", "fp8", "fp8"),
        "gemm_o": ("fp8", "storage", "fell-back"),
        "mm_o": ("fp8", "fp8", "fp8"),
    }
    plain = build(models.attention(quantized=False))
    assert {op.forecast for op in attest_engine(plain.engine, plain.model, None).others.values()} == {"high"}


def test_the_constants_of_an_engine_are_what_the_model_promises(build: Build):
    for model in (models.network(), models.merged(), models.network(high="w3")):
        made = build(model)
        weights = attest_engine(made.engine, made.model, None).weights
        assert weights.excess is not None and abs(weights.excess) < 0.02, weights


def test_a_plan_forecasts_the_weights_that_the_model_has_in_high_precision(build: Build, plan: Plan):
    made = build(models.network(high="w3", drop="a3"))
    planned = attest_engine(made.engine, made.model, plan).weights
    alone = attest_engine(made.engine, made.model, None).weights
    assert (planned.forecast, alone.forecast) == ((alone.forecast or 0) - 64 * 512, alone.forecast)
    assert planned.engine == alone.engine


def test_verdicts_are_told_profile_by_profile_where_they_differ(build: Build):
    from fp8graph.data.plan import Profile

    shapes = [{"x": Profile((rows, 64), (rows, 64), (rows, 64))} for rows in (1, 32)]
    made = build(models.matmul("rows"), profiles=tuple(shapes))
    path = made.engine.with_name("m.engine.json")
    document = json.loads(path.read_text())
    for row in document["layers"]:  # as if the listing of the second profile told of half precision
        if row["layer"] == "gemm" and row.get("profile") == 1:
            row["operands"] = ["fp16", "fp16"]
    path.write_text(json.dumps(document))
    op = attest_engine(made.engine, made.model, None).verdicts["mm_o"]
    assert (op.verdict, op.profiles, op.code) == ("unknown", ("fp8", "unknown"), "FG503")
    assert op.why.startswith("profile 0: fp8; profile 1: unknown, the witnesses disagree")


def test_a_decision_without_a_node_is_absent(sound: Made, plan: Plan):
    ghost: Decision = replace(plan.ops["mm_o"], name="ghost")
    op = attest_engine(sound.engine, sound.model, replace(plan, ops={"ghost_o": ghost})).verdicts["ghost_o"]
    assert (op.verdict, op.code, op.rests_on) == ("absent", "FG502", ())


@pytest.mark.parametrize(
    ("kind", "channels", "group", "quantized"),
    [
        ("fp16", 3, 1, False),
        ("bf16", 5, 1, False),
        ("fp16", 4, 1, False),
        ("fp16", 6, 2, False),
        ("fp16", 8, 8, False),
        ("fp16", 32, 32, False),
        ("fp32", 3, 1, False),
        ("fp16", 5, 1, True),
    ],
)
def test_what_kernels_of_a_conv_add_is_forecast(build: Build, kind: str, channels: int, group: int, quantized: bool):
    """The builder pads the channels of a Conv in half precision to an even number, in FP8 to a multiple of four."""
    g = models.Graph(kind)
    x, shape = g.input("x", [2, channels, 24, 25]), [32, channels // group, 3, 3]
    operands = [g.qdq(x, "a"), g.weight8(shape, "w", 0)] if quantized else [x, g.weight(shape, "w")]
    g.output(g.op("Conv", operands, "conv", group=group))
    made = build(g.model())
    weights = attest_engine(made.engine, made.model, None).weights
    assert weights.engine is not None and weights.forecast is not None
    assert abs(weights.engine - weights.forecast) <= 8, weights  # factors of the kernel


@pytest.mark.parametrize("kind", ["fp16", "fp32"])
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(("k", "n"), [(32, 1), (32, 3), (32, 64), (3, 64), (33, 64), (33, 5), (1, 64)])
def test_what_kernels_of_a_product_add_is_forecast(build: Build, kind: str, quantized: bool, k: int, n: int):
    """The builder pads K and N to even numbers."""
    g = models.Graph(kind)
    x = g.op("Relu", [g.input("x", [2, 24, k])], "relu")
    operands = [g.qdq(x, "a"), g.weight8([k, n], "w", 1)] if quantized else [x, g.weight([k, n], "w")]
    g.output(g.op("MatMul", operands, "mm"))
    made = build(g.model())
    weights = attest_engine(made.engine, made.model, None).weights
    assert weights.engine is not None and weights.forecast is not None
    assert abs(weights.engine - weights.forecast) <= 12, weights  # factors of the kernel
