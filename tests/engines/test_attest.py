"""Attesting real engines of TensorRT-RTX, built here without a GPU."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import engine_models as models
import pytest
from conftest import Build, Made

from fp8graph.base.errors import InputError
from fp8graph.data.attestation import Attestation
from fp8graph.data.plan import Plan, Profile
from fp8graph.engines.attest import attest_engine

pytestmark = pytest.mark.usefixtures("rtx")


def verdicts(attestation: Attestation) -> dict[str, str]:
    return {key: op.verdict for key, op in attestation.verdicts.items()}


def fallen(attestation: Attestation) -> dict[str, str]:
    """Why, for each op that fell back; every other one has to be in FP8."""
    assert set(verdicts(attestation).values()) <= {"fp8", "fell-back"}
    return {key: op.why for key, op in attestation.broken.items()}


def test_a_sound_network_runs_in_fp8(sound: Made, plan: Plan):
    done = attest_engine(sound.engine, sound.model, plan, plan_sha256="ab" * 32)
    assert verdicts(done) == {"conv1_o": "fp8", "conv2_o": "fp8", "gemm_o": "fp8", "mm_o": "fp8"}
    assert not done.broken
    assert done.counts == {"fp8": 4}
    assert done.builder.startswith("tensorrt-rtx 1.")
    assert (done.chips, done.profiles, done.plan) == (("sm89",), 1, "ab" * 32)
    said = [(op.name, op.planned) for op in done.verdicts.values()]
    assert said == [("conv1", "fp8"), ("conv2", "fp8"), ("gemm", "fp8"), ("mm", "fp8")]


def test_both_witnesses_are_heard(sound: Made, plan: Plan):
    for op in attest_engine(sound.engine, sound.model, plan).verdicts.values():
        assert dict(op.witnesses) == {"builder": "fp8: fp8 x fp8", "file": "fp8: fp8 x fp8"}
        assert op.why == ""


def test_sizes_come_from_the_shapes(sound: Made, plan: Plan):
    sizes = {k: (op.macs, op.weight_bytes) for k, op in attest_engine(sound.engine, sound.model, plan).verdicts.items()}
    assert sizes == {
        "conv1_o": (16 * 16 * 32 * 16 * 9, 32 * 16 * 9),
        "conv2_o": (4 * 4 * 32 * 32 * 9, 32 * 32 * 9),
        "gemm_o": (64 * 512, 64 * 512),
        "mm_o": (64 * 48, 64 * 48),
    }


def test_attesting_twice_gives_equal_documents_that_can_be_read_back(sound: Made, plan: Plan):
    one, two = (attest_engine(sound.engine, sound.model, plan).to_json() for _ in range(2))
    assert json.dumps(one) == json.dumps(two)
    assert Attestation.from_json(json.loads(json.dumps(one))).to_json() == one


@pytest.mark.parametrize(
    ("broken", "op", "why"),
    [
        ({"drop": "a3"}, "gemm_o", "operand 0, 'flat_o', has no Q/DQ"),
        ({"early": True}, "conv2_o", "MaxPool 'pool' stands between DequantizeLinear and operand 0"),
        ({"high": "w4"}, "mm_o", "the weight 'w4', operand 1, has no Q/DQ"),
        ({"drop": "a1"}, "conv1_o", "operand 0, 'x', has no Q/DQ"),
        ({"kernel": 7}, "conv1_o", "the kernel 7x7 has 49 elements, FP8 kernels have at most 32"),
    ],
    ids=lambda value: str(value),
)
def test_a_broken_model_is_told_for_exactly_the_op_that_broke(build: Build, plan: Plan, broken, op: str, why: str):
    made = build(models.network(**broken))
    reasons = fallen(attest_engine(made.engine, made.model, plan))
    assert list(reasons) == [op]
    assert reasons[op].startswith(why)


def test_without_a_plan_the_models_own_pairs_are_the_promise(sound: Made, build: Build):
    assert verdicts(attest_engine(sound.engine, sound.model, None)) == {
        "conv1_o": "fp8",
        "conv2_o": "fp8",
        "gemm_o": "fp8",
        "mm_o": "fp8",
    }
    early = build(models.network(early=True))
    assert list(fallen(attest_engine(early.engine, early.model, None))) == ["conv2_o"]


def test_an_op_that_the_model_lacks_is_absent(sound: Made, plan: Plan):
    more = replace(plan, ops={**plan.ops, "gone": replace(plan.ops["mm_o"], name="gone")})
    op = attest_engine(sound.engine, sound.model, more).verdicts["gone"]
    assert (op.verdict, op.macs, op.why) == ("absent", None, "the model holds no node with its key or name")


def test_an_op_is_found_by_its_name_where_the_model_has_no_keys(build: Build, plan: Plan):
    model = models.network()
    made = {name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        del node.metadata_props[:]
        node.output[:] = [f"{name}_other" for name in node.output]
        node.input[:] = [f"{name}_other" if name in made else name for name in node.input]
    model.graph.output[0].name += "_other"
    keyless = build(model)
    assert set(verdicts(attest_engine(keyless.engine, keyless.model, plan)).values()) == {"fp8"}


def test_products_merged_into_one_count_each(build: Build):
    made = build(models.merged())
    text = made.engine.with_name("m.engine.json").read_text()
    assert any({"up", "gate"} <= set(row["onnx"]) for row in json.loads(text)["layers"] if row["layer"] == "gemm")
    assert verdicts(attest_engine(made.engine, made.model, None)) == {"up_o": "fp8", "gate_o": "fp8"}


def test_fused_attention_is_fp8_for_both_products(build: Build):
    made = build(models.attention())
    done = attest_engine(made.engine, made.model, models.plan_of(models.attention()))
    assert verdicts(done) == {"scores_o": "fp8", "mixed_o": "fp8"}
    assert {op.witnesses["file"] for op in done.verdicts.values()} == {"fp8: fused attention on fp8 x fp8 x fp8"}
    assert [op.weight_bytes for op in done.verdicts.values()] == [0, 0]


def test_attention_fused_in_fp16_fell_back(build: Build):
    plan = models.plan_of(models.attention())
    plain = build(models.attention(quantized=False))
    assert set(verdicts(attest_engine(plain.engine, plain.model, plan)).values()) == {"fell-back"}
    single = build(models.attention(queries=1))
    reasons = fallen(attest_engine(single.engine, single.model, plan))
    assert reasons["scores_o"].startswith("attention of a single query on fp16")


def test_attention_without_the_softmax_pair_loses_its_second_product(build: Build):
    made = build(models.attention(softmax=False))
    reasons = fallen(attest_engine(made.engine, made.model, models.plan_of(models.attention())))
    assert list(reasons) == ["mixed_o"]
    assert reasons["mixed_o"].startswith("operand 0, 'softmax_o', has no Q/DQ")


@pytest.mark.parametrize("same_names", [False, True])
def test_branches_of_an_if_are_told_apart(build: Build, same_names: bool):
    whole, broken = (build(models.branches(same_names, broken=b)) for b in ("", "else"))
    plan = models.plan_of(models.branches(same_names))
    assert verdicts(attest_engine(whole.engine, whole.model, plan)) == {
        "if_o.then_branch/then_mm_o": "fp8",
        "if_o.else_branch/else_mm_o": "fp8",
    }
    assert list(fallen(attest_engine(broken.engine, broken.model, plan))) == ["if_o.else_branch/else_mm_o"]


def test_the_body_of_a_loop_is_attested(build: Build):
    made = build(models.loop())
    assert verdicts(attest_engine(made.engine, made.model, None)) == {"loop_o.body/in_mm_o": "fp8"}


def test_pairs_inside_a_function_are_a_promise(build: Build):
    made = build(models.function())
    done = attest_engine(made.engine, made.model, None)
    assert {key: (op.planned, op.verdict) for key, op in done.verdicts.items()} == {"mm_o": ("fp8", "fp8")}


def test_a_weight_alone_in_fp8_is_storage_where_that_was_planned(build: Build):
    made = build(models.matmul(weight_only=True))
    planned = models.plan_of(models.matmul(), weight_only=["mm_o"])
    assert verdicts(attest_engine(made.engine, made.model, planned)) == {"mm_o": "storage"}
    assert verdicts(attest_engine(made.engine, made.model, None)) == {"mm_o": "storage"}
    assert list(fallen(attest_engine(made.engine, made.model, models.plan_of(models.matmul())))) == ["mm_o"]


def test_block_scales_that_the_engine_applies_wrongly_are_told(build: Build):
    made = build(models.blocked())
    op = attest_engine(made.engine, made.model, None).verdicts["mm_o"]
    assert op.verdict == "fp8"
    assert op.why == "it runs in FP8 with wrong numbers: of scales in blocks only the first are applied"


def test_every_profile_has_to_be_in_fp8(build: Build):
    shapes = {rows: {"x": Profile((rows, 64), (rows, 64), (rows, 64))} for rows in (1, 32)}
    both = build(models.matmul("rows"), profiles=(shapes[1], shapes[32]))
    done = attest_engine(both.engine, both.model, None)
    assert (verdicts(done), done.profiles) == ({"mm_o": "fp8"}, 2)
    assert done.verdicts["mm_o"].macs == 64 * 128
    # One row alone becomes multiply and sum in a kernel, more rows a product in fp16.
    mixed = build(models.matmul("rows", weight_only=True), profiles=(shapes[1], shapes[32]))
    op = attest_engine(mixed.engine, mixed.model, models.plan_of(models.matmul())).verdicts["mm_o"]
    assert op.verdict == "fell-back"
    assert "profile 0: part of a generated kernel" in op.witnesses["file"]
    assert "profile 1: fused with its dequantization" in op.witnesses["file"]


def test_one_engine_for_two_chips(build: Build):
    made = build(models.matmul(), chips=("sm89", "sm120"))
    done = attest_engine(made.engine, made.model, None)
    assert (done.chips, verdicts(done)) == (("sm89", "sm120"), {"mm_o": "fp8"})


def copy_with(made: Made, folder: Path, change: dict[int, int], manifest: bool = True) -> Path:
    """A copy of an engine with some bytes changed, and its manifest made to speak of the copy."""
    data = bytearray(made.engine.read_bytes())
    for at, byte in change.items():
        data[at] = byte
    engine = folder / "m.engine"
    engine.write_bytes(data)
    if manifest:
        from fp8graph.base.files import sha256_of

        document = json.loads(made.engine.with_name("m.engine.json").read_text()) | {"engine": sha256_of(engine)}
        engine.with_name("m.engine.json").write_text(json.dumps(document))
    return engine


def test_of_an_engine_of_another_version_nothing_is_known(sound: Made, plan: Plan, tmp_path: Path):
    engine = copy_with(sound, tmp_path, {25: 9})
    done = attest_engine(engine, sound.model, plan)
    assert set(verdicts(done).values()) == {"unknown"}
    op = done.verdicts["mm_o"]
    assert "engines of tensorrt-rtx 1.9." in op.why
    assert "the builder's listing alone says fp8" in op.why


def test_without_a_manifest_the_file_speaks_alone(sound: Made, plan: Plan, tmp_path: Path):
    engine = copy_with(sound, tmp_path, {}, manifest=False)
    op = attest_engine(engine, sound.model, plan).verdicts["mm_o"]
    assert op.verdict == "fp8"
    assert op.why == "on the word of the engine file alone: no m.engine.json beside it"
    assert op.witnesses["builder"] == "silent: no m.engine.json beside it"


def test_a_manifest_of_another_file_is_not_heard(sound: Made, plan: Plan, tmp_path: Path):
    engine = copy_with(sound, tmp_path, {}, manifest=False)
    shutil.copy(sound.engine.with_name("m.engine.json"), tmp_path)
    document = json.loads((tmp_path / "m.engine.json").read_text())
    (tmp_path / "m.engine.json").write_text(json.dumps(document | {"engine": "00" * 32}))
    done = attest_engine(engine, sound.model, plan)
    assert "speaks of another file" in done.verdicts["mm_o"].why
    assert [note.code for note in done.notes] == ["FG510"]
    assert not done.honest and not done.sound


def test_a_damaged_manifest_is_refused(sound: Made, plan: Plan, tmp_path: Path):
    engine = copy_with(sound, tmp_path, {})
    path = tmp_path / "m.engine.json"
    document = json.loads(path.read_text())
    damaged = [
        json.dumps(document | damage)
        for damage in (
            {"layers": [{"layer": 1}]},
            {"layers": 5},
            {"profiles": [3]},
            {"data": []},
            {"layers": [{"layer": "gemm", "onnx": [], "operands": [], "profile": 10**9}]},
            {"schema": "fp8graph.engine/2"},
            {"schema": "fp8graph.plan/1"},
        )
    ]
    for text in (*damaged, "[]", "[1, 2]", "", "{}", "null", json.dumps(document)[:-100], '{"Layers": []}'):
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            attest_engine(engine, sound.model, plan)
        assert (caught.value.code, caught.value.status) == ("FG111", 3)
        assert "move m.engine.json away" in caught.value.do


def test_witnesses_that_disagree_are_no_success(sound: Made, plan: Plan, tmp_path: Path):
    engine = copy_with(sound, tmp_path, {})
    path = tmp_path / "m.engine.json"
    document = json.loads(path.read_text())
    for row in document["layers"]:
        if "mm" in row["onnx"] and row["layer"] == "gemm":
            row["operands"] = ["fp16", "fp16"]
    path.write_text(json.dumps(document))
    done = attest_engine(engine, sound.model, plan)
    assert done.verdicts["mm_o"].verdict == "unknown"
    assert "the witnesses disagree: the builder says" in done.verdicts["mm_o"].why
    assert done.counts == {"fp8": 3, "unknown": 1}


def test_a_chip_that_the_programs_do_not_serve_is_unknown(sound: Made, plan: Plan, tmp_path: Path):
    engine = copy_with(sound, tmp_path, {})
    path = tmp_path / "m.engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chips": ["sm89", "sm120"]}))
    op = attest_engine(engine, sound.model, plan).verdicts["mm_o"]
    assert (op.verdict, "do not serve sm120" in op.why) == ("unknown", True)


@pytest.mark.parametrize("other", [{"drop": "a3"}, {}], ids=["broken", "whose names and types are the same"])
def test_of_the_engine_of_another_model_nothing_is_known(sound: Made, build: Build, plan: Plan, other):
    model = models.network(**other)
    model.producer_name = "another"
    made = build(model)
    done = attest_engine(made.engine, sound.model, plan)
    assert set(verdicts(done).values()) == {"unknown"}
    assert done.counts["fp8"] == 0 and done.share("macs") == 0
    assert done.verdicts["mm_o"].why == "the engine was built from another model"
    assert "built from another model: sha256 " in done.notes[0].text
    assert {op.rests_on for op in done.verdicts.values()} == {()}
    assert [(note.code, note.severity) for note in done.notes] == [("FG509", "error")]
    assert {finding.code for finding in done.findings} == {"FG509"}
    assert not done.honest and not done.sound


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -1])
def test_a_truncated_engine_is_refused(sound: Made, plan: Plan, tmp_path: Path, keep: int):
    engine = tmp_path / "m.engine"
    engine.write_bytes(sound.engine.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        attest_engine(engine, sound.model, plan)
    assert (caught.value.code, caught.value.status) == ("FG508", 3)


def test_a_file_that_is_no_engine_is_refused(sound: Made, plan: Plan, tmp_path: Path):
    for path in (sound.model, tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError) as caught:
            attest_engine(path, sound.model, plan)
        assert caught.value.code == "FG508"
