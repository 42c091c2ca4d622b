"""OpenVINO as an engine: what its runtime model lists, what attest makes of that, and what a build refuses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_models as models
import onnx
import pytest

from fp8graph.base.errors import Fp8GraphError, InputError
from fp8graph.data.attestation import Attestation
from fp8graph.data.plan import Plan, Profile
from fp8graph.engines import child, openvino, reading
from fp8graph.engines.attest import attest_engine
from fp8graph.engines.build import EngineBuilt, build_engine
from fp8graph.engines.job import BuildJob
from fp8graph.engines.sites import sites
from fp8graph.engines.witness import EngineOp, Witness
from fp8graph.graph.load import load

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: pip install 'fp8graph[openvino]'"
)


def row(name: str, type_: str, *inputs: str, precision: str = "f32", names: tuple[str, ...] | None = None) -> Any:
    return {
        "name": name,
        "type": type_,
        "precision": precision,
        "names": [name] if names is None else list(names),
        "inputs": list(inputs),
    }


# x -> Convert to FP8 -> Convert from FP8 -> scale; w is a constant
X, W, B = row("x", "Input"), row("w", "Const"), row("b", "Const")
PAIR = [X, row("x_q", "Convert", "x"), row("x_f", "Convert", "x_q", precision="f8e4m3")]
SCALED = [*PAIR, row("x_dq", "Eltwise", "x_f"), W, B]
LISTED = [  # rows, and what they say of the product `y`
    ([*SCALED, row("y", "FullyConnected", "x_dq", "w")], "emulated"),
    ([*PAIR, W, row("y", "Convolution", "x_f", "w")], "emulated"),  # a scale of 1 leaves no op
    ([*SCALED, row("t", "Transpose", "x_dq"), row("y", "MatMul", "t", "w")], "emulated"),
    ([*SCALED, row("r", "Reorder", "x_dq", names=()), row("y", "Deconvolution", "r", "w")], "emulated"),
    ([*PAIR, B, W, row("x_dq", "Subgraph", "x_f", "b"), row("y", "MatMul", "x_dq", "w")], "emulated"),
    ([*PAIR, W, row("s", "Subgraph", "x_f", names=("x_dq", "Multiply_7")), row("y", "MatMul", "s", "w")], "emulated"),
    ([*SCALED, row("y", "MatMul", "x_dq", "x_dq")], "emulated"),
    ([*SCALED, row("y", "MatMul", "x_dq", "x")], "high"),  # one operand was not rounded
    ([X, W, row("y", "FullyConnected", "x", "w")], "high"),
    ([*PAIR, W, row("s", "Subgraph", "x_f", names=("x_dq", "gelu")), row("y", "MatMul", "s", "w")], "high"),
    ([*SCALED, row("g", "Eltwise", "x_dq"), row("y", "MatMul", "g", "w")], "high"),  # another op lies between
    ([*SCALED, row("m", "MVN", "x_dq"), row("y", "MatMul", "m", "w")], "high"),
    ([X, row("f", "FakeQuantize", "x"), W, row("y", "MatMul", "f", "w")], "high"),  # versions before 2026.4
    ([*SCALED, row("y", "Subgraph", "x_dq", "w")], "generated"),
    ([X], "missing"),
]


@pytest.mark.parametrize(("rows", "word"), LISTED)
def test_a_product_is_emulated_where_all_that_moves_was_rounded_to_fp8(rows: list[Any], word: str):
    model = load(models.matmul()).model
    name = replace(sites(model)[-1].name, base="y", full="y")
    assert Witness(openvino.listing(rows), [name]).says(name).word == word


def test_no_listing_of_openvino_is_ever_called_fp8():
    for precision in ("f32", "bf16", "f16", "f8e4m3"):
        (op,) = [
            op
            for op in openvino.listing([*SCALED, row("y", "MatMul", "x_dq", "w", precision=precision)])
            if op.said == "MatMul"
        ]
        assert "fp8" not in op.operands
        assert EngineOp.from_json(json.loads(json.dumps(op.to_json()))) == op


def test_a_product_that_goes_by_another_name_is_the_only_one_before_it():
    g = models.Graph()
    a = g.qdq(g.input("x", [32, 64]), "a")
    one = g.op("Add", [g.op("MatMul", [a, g.weight8([64, 128], "w")], "mm"), g.weight([128], "bias")], "biased")
    two = g.op("MatMul", [a, g.weight8([64, 128], "v")], "other")
    g.output(g.op("Add", [one, two], "sum"))
    found = sites(load(g.model()).model)

    def names(*listed: str, said: str = "FullyConnected") -> tuple[str, ...]:
        (op,) = openvino.attribute([EngineOp(0, said, listed, ("fp32", "fp32"), ())], found)
        return op.names

    assert names("biased") == ("biased", "mm")
    assert names("mm", "biased") == ("mm", "biased")
    assert names("sum") == ("sum",)  # two products stand before it
    assert names("sum_o") == ("sum",)  # an output's name
    assert names("biased", said="Eltwise") == ("biased",)


# ------------------------------------------------------------------------------------------------- with OpenVINO


def make(model: onnx.ModelProto, folder: Path, **options: Any) -> tuple[Path, Path, EngineBuilt]:
    path, engine = folder / "m.onnx", folder / "m.engine"
    path.write_bytes(model.SerializeToString())
    job = BuildJob(model=str(path), builder="openvino", **options)
    return path, engine, build_engine(job, engine)


def said(done: Attestation) -> dict[str, tuple[str, str]]:
    return {key: (op.planned, op.verdict) for key, op in done.verdicts.items()}


def planned(model: onnx.ModelProto, target: str = "openvino:cpu") -> Plan:
    return replace(models.plan_of(model), target=target)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, EngineBuilt]:
    """The sound little network, built."""
    return make(models.network(), tmp_path_factory.mktemp("openvino"), chips=("cpu",))


@needs_openvino
def test_an_engine_comes_with_a_manifest_and_a_log(sound: Any):
    model, engine, built = sound
    assert sorted(path.name for path in engine.parent.iterdir()) == [
        "m.engine",
        "m.engine.json",
        "m.engine.log",
        "m.onnx",
    ]
    manifest = built.manifest
    assert (manifest["builder"]["name"], manifest["chips"]) == ("openvino", ["cpu"])
    assert manifest["builder"]["version"].count(".") == 2 and "-" not in manifest["builder"]["version"]
    assert any(layer.get("rounded") == ["fp8"] for layer in manifest["layers"])
    assert "precision" in engine.with_name("m.engine.log").read_text()
    assert reading.owner(engine) == "openvino" and reading.owner(model) == ""


@needs_openvino
def test_every_planned_op_is_emulated_and_that_is_what_the_target_promised(sound: Any):
    model, engine, _ = sound
    done = attest_engine(engine, model, planned(models.network()))
    assert set(said(done).values()) == {("emulated", "emulated")} and len(said(done)) == 4
    assert (done.honest, done.counts["fp8"], done.share("macs"), done.chips) == (True, 0, 0.0, ("cpu",))
    assert {op.rests_on for op in done.verdicts.values()} == {("builder", "file")}
    assert {op.forecast for op in done.verdicts.values()} == {"emulated"}


@needs_openvino
@pytest.mark.parametrize("plan", [None, planned(models.network(), "tensorrt-rtx:sm89")], ids=["no plan", "another's"])
def test_who_was_promised_fp8_does_not_get_it_here(sound: Any, plan: Plan | None):
    model, engine, _ = sound
    done = attest_engine(engine, model, plan)
    assert set(said(done).values()) == {("fp8", "emulated")} and not done.honest


@needs_openvino
@pytest.mark.parametrize(("drop", "op"), [("a3", "gemm_o"), ("a1", "conv1_o")])
def test_an_op_whose_pair_is_missing_fell_back(tmp_path: Path, drop: str, op: str):
    model, engine, _ = make(models.network(drop=drop), tmp_path)
    done = attest_engine(engine, model, planned(models.network()))
    assert {key: op.verdict for key, op in done.broken.items()} == {op: "fell-back"}


@needs_openvino
@pytest.mark.parametrize(
    ("model", "count"),
    [(models.attention(), 2), (models.merged(), 2), (models.matmul("rows"), 1)],
    ids=["attention", "two of one input", "open rows"],
)
def test_attention_and_merged_products_are_attested_one_by_one(tmp_path: Path, model: onnx.ModelProto, count: int):
    path, engine, _ = make(model, tmp_path)
    done = attest_engine(engine, path, planned(model))
    assert [op.verdict for op in done.verdicts.values()] == ["emulated"] * count


@needs_openvino
def test_bodies_are_not_listed_and_so_unknown(tmp_path: Path):
    path, engine, _ = make(models.loop(), tmp_path)
    done = attest_engine(engine, path, None)
    assert said(done) == {"loop_o.body/in_mm_o": ("fp8", "unknown")}


@needs_openvino
def test_settings_reach_the_plug_in(tmp_path: Path):
    for precision in ("f32", "bf16"):
        folder = tmp_path / precision
        folder.mkdir()
        _, engine, built = make(models.matmul(), folder, builder_args={"inference-precision-hint": precision})
        assert f"precision: {precision}" in engine.with_name("m.engine.log").read_text()
        kind = {"f32": "fp32", "bf16": "bf16"}[precision]
        assert [row["operands"] for row in built.manifest["layers"] if "rounded" in row] == [[kind, kind]]


@needs_openvino
@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        ({"builder_args": {"NOPE": "1"}}, 2, "no setting 'NOPE'"),
        ({"builder_args": {"INFERENCE_PRECISION_HINT": "f99"}}, 2, "Supported values: bf16"),
        ({"refit": True}, 2, "no refit"),
        ({"optimization_level": 3}, 2, "no builder optimization level"),
        ({"workspace_bytes": 1 << 20}, 2, "no memory pool limit"),
        ({"version_compatible": True}, 2, "no version compatible"),
        ({"profiles": ({"y": Profile((32, 64), (32, 64), (32, 64))},)}, 2, "no input 'y'"),
        ({"profiles": ({"x": Profile((32,), (32,), (32,))},)}, 2, "do not fit"),
        ({"profiles": ({"x": Profile((32, 7), (32, 7), (32, 7))},)}, 2, "do not fit"),
        ({"profiles": ({}, {})}, 2, "one range of shapes"),
        ({"plugins": ("/nowhere/ops.so",)}, 3, "custom ops"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_it_does_not_have_is_refused_and_nothing_is_left(
    tmp_path: Path, options: dict[str, Any], status: int, says: str
):
    path = tmp_path / "m.onnx"
    path.write_bytes(models.matmul().SerializeToString())
    job = BuildJob(model=str(path), builder="openvino", **options)

    def attempt() -> None:  # what the child does, in this process: the same and quicker
        openvino.refuse(job, [])
        openvino.build(openvino.load(), job, tmp_path / "m.engine", lambda line: None)

    with pytest.raises(Fp8GraphError) as caught:
        attempt()
    assert caught.value.status == status
    assert says in f"{caught.value.what} {caught.value.why}"
    assert list(tmp_path.iterdir()) == [path]


@needs_openvino
def test_an_operator_that_openvino_does_not_know_is_named(tmp_path: Path):
    g = models.Graph("fp32")
    g.output(g.op("Strange", [g.input("x", [2, 2])], "odd", domain="local"), [2, 2])
    model = g.model()
    model.opset_import.add(domain="local", version=1)
    with pytest.raises(Fp8GraphError) as caught:
        make(model, tmp_path)
    assert (caught.value.status, caught.value.code) == (4, "FG504") and "Strange" in caught.value.why


@needs_openvino
def test_a_damaged_engine_is_refused_and_one_of_another_version_is_unknown(sound: Any, tmp_path: Path):
    model, engine, _ = sound
    data = engine.read_bytes()
    cut, other = tmp_path / "cut.engine", tmp_path / "other.engine"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError) as caught:
        attest_engine(cut, model, None)
    assert caught.value.code == "FG508"
    other.write_bytes(data.replace(b"ov=20", b"ov=19", 1))
    done = attest_engine(other, model, None)
    assert {op.verdict for op in done.verdicts.values()} == {"unknown"} and not done.honest


def test_without_openvino_the_engine_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    engine = tmp_path / "m.engine"
    engine.write_bytes(openvino.MAGIC + b"meta=1.0;ov=2026.4.1;isa=some")
    (tmp_path / "openvino").mkdir()  # found first, and it does not import
    (tmp_path / "openvino" / "__init__.py").write_text("raise ImportError('half there')")
    monkeypatch.setattr(child, "environment", _first(tmp_path, child.environment))
    file = reading.read_engine(engine)
    assert (file.builder, file.ops) == ("openvino 2026.4.1", ())
    assert "not usable here" in file.unknown and "fp8graph[openvino]" in file.unknown


def _first(folder: Path, environment: Any) -> Any:
    def changed() -> dict[str, str]:
        found: dict[str, str] = environment()
        return found | {"PYTHONPATH": f"{folder}:{found['PYTHONPATH']}"}

    return changed


@pytest.mark.parametrize(("version", "can"), [("2026.3.1", False), ("2025.4.1", False)])
def test_versions_that_round_to_a_uniform_grid_are_refused(version: str, can: bool):
    assert (openvino.why_not_here(version, []) == "") is can


@needs_openvino
def test_reading_does_not_import_openvino_into_this_process(sound: Any):
    code = f"import sys; from fp8graph.engines import reading; from pathlib import Path; \
        reading.read_engine(Path({str(sound[1])!r})); sys.exit('openvino' in sys.modules)"
    assert subprocess.run([*child.python("x")[:-2], "-c", code], env=child.environment(), check=False).returncode == 0
