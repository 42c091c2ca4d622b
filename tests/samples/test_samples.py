"""Every sample runs as its docstring says, in a folder of its own, and answers with the statuses that it promises."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

import fp8graph
from fp8graph.data.attestation import OpVerdict
from fp8graph.runners.reference import reference
from tests.small import needs_rtx

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
PLUG_IN = SAMPLES / "deployment_pipeline"


@dataclass
class Ran:
    """What a sample came to."""

    status: int
    out: str
    err: str


# Of what `optimize` writes: the model, its plan, and what repairs have found.
ENDS = ("", ".plan.json", ".plan.safetensors")


def run(cwd: Path, *argv: object, path: Path | None = None) -> Ran:
    """Runs a command line of Python in `cwd`; `path` is where it looks for packages first."""
    env = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "PYTHONPATH")}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    command = [sys.executable, *map(str, argv)]
    done = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def no_builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on whose account tensorrt_rtx cannot be imported."""
    folder = tmp_path_factory.mktemp("no_builder")
    (folder / "tensorrt_rtx").mkdir()
    (folder / "tensorrt_rtx" / "__init__.py").write_text("raise ImportError('left out by the test')\n")
    return folder


# The demo

MEASURED = ("fp8graph", "accuracy", "output", "file", "engine")  # depends on versions, or on the processor


def plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def readme() -> list[str]:
    """The lines of the demo's output that README.md shows, but for what may differ elsewhere."""
    text = (SAMPLES.parent / "README.md").read_text(encoding="utf-8")
    shown = plain(text.partition("```text\n")[2].partition("```")[0])
    assert shown
    return [line for line in shown if not line.strip().startswith(MEASURED)]


@needs_rtx
def test_the_demo_attests_every_planned_op_and_keeps_the_accuracy(tmp_path: Path):
    ran = run(tmp_path, SAMPLES / "demo.py")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.rstrip().endswith("accuracy within one point")
    assert "FP32 98.44 %" in ran.out  # the ViT, as samples/digits/README.md says
    assert "FP32 99.11 %" in ran.out  # the CNN
    assert "for sm89: 19 of 19 planned ops run in FP8" in ran.out
    assert "the builder's layer listing and the engine file" in ran.out
    assert "3 of 3 run as one fused FP8 kernel each" in ran.out
    assert "the first Conv on an image" in ran.out
    assert "\x1b" not in ran.out
    assert [line for line in readme() if line not in plain(ran.out)] == []
    made = {file.name for file in (tmp_path / "demo").iterdir()}
    assert made == {
        f"{name}.{suffix}"
        for name in ("cnn", "vit")
        for suffix in ("engine", "engine.json", "engine.log", *(f"fp8.onnx{end}" for end in ENDS))
    } - {"vit.fp8.onnx.plan.safetensors"}  # what repairs find does not help there


def test_without_a_builder_the_demo_says_what_to_install_and_ends_with_4(tmp_path: Path, no_builder: Path):
    ran = run(tmp_path, SAMPLES / "demo.py", "out", path=no_builder)
    assert (ran.status, ran.err) == (4, "")
    assert "FP32 98.44 %" in ran.out
    assert "pip install -e '.[rtx]'" in ran.out
    assert "run in FP8" not in ran.out
    assert not list((tmp_path / "out").glob("*.engine*"))


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """The demo as a module."""
    spec = importlib.util.spec_from_file_location("samples_demo", SAMPLES / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shown(demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The CNN with a plan, and an attestation made up: every op is what was planned."""
    out, data = tmp_path_factory.mktemp("demo") / "cnn.fp8.onnx", SAMPLES / "digits" / "calibration.npz"
    done = fp8graph.optimize(SAMPLES / "digits" / "cnn.onnx", output=out, target=demo.TARGET, data=data, samples=8)
    heard = {"builder": "fp8: fp8 x fp8", "file": "fp8: fp8 x fp8"}
    verdicts = {key: OpVerdict(op.op_type, op.name, "fp8", "fp8", "", heard) for key, op in done.plan.quantized()}
    return demo.Shown(done, out, fp8graph.Attestation("e", "m", "p", "builder 1", ("sm89",), 1, verdicts))


def says(
    demo: ModuleType, shown: Any, accuracies: list[float], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], str]:
    """What the demo finds wrong with the CNN, and what it prints."""
    monkeypatch.setattr(demo, "accuracy", lambda path: accuracies.pop(0))
    text = io.StringIO()
    return demo.show(Console(file=text, width=200), "cnn", shown), text.getvalue()


@pytest.mark.parametrize(("before", "after", "fine"), [(99.0, 98.0, True), (99.0, 97.9, False), (98.0, 99.0, True)])
def test_the_demo_lets_accuracy_fall_by_one_point(
    demo: ModuleType, shown: Any, monkeypatch: pytest.MonkeyPatch, before: float, after: float, fine: bool
):
    wrong, _ = says(demo, shown, [before, after], monkeypatch)
    assert wrong == ([] if fine else [f"cnn: accuracy fell from {before:.2f} % to {after:.2f} %"])


@pytest.mark.parametrize("verdict", ["unknown", "fell-back", "storage"])
def test_the_demo_takes_nothing_but_fp8_for_fp8(
    demo: ModuleType, shown: Any, monkeypatch: pytest.MonkeyPatch, verdict: Any
):
    verdicts = dict(shown.attestation.verdicts)
    verdicts["logits"] = dataclasses.replace(verdicts["logits"], verdict=verdict, why="a reason")
    fallen = dataclasses.replace(shown, attestation=dataclasses.replace(shown.attestation, verdicts=verdicts))
    wrong, text = says(demo, fallen, [99.0, 99.0], monkeypatch)
    assert wrong == [f"cnn: 1 ops planned in FP8 are {verdict}: a reason"]
    assert f"1 {verdict}" in text
    monkeypatch.setattr(demo, "make", lambda *_: fallen)
    monkeypatch.setattr(demo, "accuracy", lambda path: 99.0)
    assert demo.run(shown.model.parent, Console(file=io.StringIO())) == 1


# A deployment pipeline with a plug-in


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the plug-in was installed, as a user would; without the network and without a trace."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the plug-in, is not installed")
    folder = tmp_path_factory.mktemp("installed")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    done = run(folder, "-m", "pip", "install", *options, "--target", folder, PLUG_IN)
    assert done.status == 0, done.err
    return folder


@pytest.mark.parametrize("plugged", [True, False], ids=["installed", "as an object"])
def test_the_pipeline_keeps_the_head(tmp_path: Path, plugged: bool, request: pytest.FixtureRequest):
    path = request.getfixturevalue("installed") if plugged else None
    ran = run(tmp_path, PLUG_IN / "pipeline.py", "-o", "out.onnx", path=path)
    assert (ran.status, ran.err) == (0, "")
    assert f"keep-head: {'the installed plug-in' if plugged else 'an object'}" in ran.out
    assert "keep      Gemm  logits: ACME001 the head: it makes the output 'logits' (by keep-head)" in ran.out
    assert ran.out.rstrip().endswith("wrote out.onnx")
    plan = fp8graph.inspect(tmp_path / "out.onnx.plan.json")
    assert plan["quantized"] == 8
    assert {row["code"] for row in plan["rows"] if row["key"] == "logits"} == {"ACME001"}


def test_the_plug_in_is_listed_with_its_owner_and_page(installed: Path, tmp_path: Path):
    ran = run(tmp_path, "-m", "fp8graph", "passes", "show", "acme:keep-head", path=installed)
    assert ran.status == 0
    assert ran.out.startswith("keep-head  of acme")
    assert "Why            The head is small" in ran.out


def test_the_command_line_takes_the_plug_in_and_its_option(installed: Path, tmp_path: Path):
    digits, out = SAMPLES / "digits", tmp_path / "vit.onnx"
    argv = ("optimize", digits / "vit.onnx", "-o", out, "--plan-only", "--passes", "keep-head{steps=0}")
    assert run(tmp_path, "-m", "fp8graph", *argv, path=installed).status == 0
    rows = {row["key"]: row for row in fp8graph.inspect(tmp_path / "vit.onnx.plan.json")["rows"]}
    assert (rows["logits"]["do"], rows["logits"]["by"]) == ("keep", "keep-head")


def test_the_pipeline_refuses_a_model_that_is_none(tmp_path: Path):
    (tmp_path / "none.onnx").write_bytes(b"no model")
    ran = run(tmp_path, PLUG_IN / "pipeline.py", "-o", "out.onnx", "--model", "none.onnx")
    assert ran.status == 3
    assert ran.err.startswith("error[FG106]")
    assert not (tmp_path / "out.onnx").exists()


# onnx-graphsurgeon


def test_a_graph_goes_in_and_a_graph_comes_out(tmp_path: Path):
    ran = run(tmp_path, SAMPLES / "graphsurgeon_pipeline.py", "-o", "out.onnx")
    assert ran.status == 0, ran.err
    assert "FP8   Gemm  logits" in ran.out
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == ["probabilities"]
    with np.load(SAMPLES / "digits" / "heldout.npz") as file:
        images, labels = file["image"], file["label"]
    found = reference(tmp_path / "out.onnx").run({"image": images})["probabilities"]
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert (found.argmax(1) == labels).mean() > 0.98


# Building an engine


def engine(cwd: Path, *more: object, path: Path | None = None) -> Ran:
    digits = SAMPLES / "digits"
    argv = (digits / "cnn.onnx", "--data", digits / "calibration.npz", "-o", "out.engine", *more)
    return run(cwd, SAMPLES / "build_engine.py", *argv, path=path)


@needs_rtx
def test_an_engine_for_two_chips_is_built_and_attested(tmp_path: Path):
    ran = engine(tmp_path, "--chips", "sm89", "sm120", "--max-batch", "16", "--script", "again.py")
    assert ran.status == 0, ran.err
    assert "CHIPS = ['SM89', 'SM120']" in (tmp_path / "again.py").read_text()
    assert "for sm89+sm120: 9 fp8 of 9 planned ops" in ran.out
    assert "calibrating" in ran.err  # progress
    assert "Building engine" in ran.err
    plan = fp8graph.inspect(tmp_path / "out.fp8.onnx.plan.json")
    assert plan["shapes"]["image"] == {"min": [1, 1, 8, 8], "opt": [16, 1, 8, 8], "max": [16, 1, 8, 8]}
    again = engine(tmp_path)
    assert (again.status, again.out) == (2, "")
    assert again.err.startswith("error[FG102]")  # nothing is overwritten without --force


@needs_rtx
@pytest.mark.parametrize("target", ["reference", "tensorrt-rtx:sm89"])
def test_a_recipe_mixes_formats_by_pattern_and_the_engine_runs_each(target: str, tmp_path: Path):
    """INT8 in the first block, a head that is stored, E4M3 in all others."""
    out, digits = tmp_path / "mixed.onnx", SAMPLES / "digits"
    recipe, data = SAMPLES / "mixed_formats.toml", digits / "calibration.npz"
    done = fp8graph.optimize(digits / "cnn.onnx", output=out, recipe=str(recipe), data=data, target=target)
    planned = {key: op.precision for key, op in done.plan.quantized()}
    said = {key: "int8" if "/blocks.0/" in key else "storage" if key == "logits" else "fp8" for key in planned}
    assert planned == said and sorted(set(said.values())) == ["fp8", "int8", "storage"]
    assert done.comparison is not None and (done.comparison.outputs["logits"].sqnr_db or 0) > 25
    if target != "reference":
        fp8graph.build(out, output=tmp_path / "mixed.engine", target=target)
        attested = fp8graph.attest(tmp_path / "mixed.engine", model=out)
        assert {key: each.verdict for key, each in attested.verdicts.items()} == planned


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        (("--chips", "sm86"), 2, "FG303"),
        (("--chips", "sm1000"), 2, "FG101"),
        (("--data", "absent.npz"), 3, "FG108"),
    ],
    ids=["a chip without FP8", "an unknown chip", "no such data"],
)
def test_what_cannot_be_done_has_its_status(tmp_path: Path, more: tuple[str, ...], status: int, code: str):
    ran = engine(tmp_path, *more)
    assert (ran.status, ran.out) == (status, "")
    assert f"error[{code}]" in ran.err
    assert not list(tmp_path.iterdir())


def test_a_missing_builder_is_status_4(tmp_path: Path, no_builder: Path):
    ran = engine(tmp_path, path=no_builder)
    assert ran.status == 4
    assert "error[FG505]" in ran.err
    assert not (tmp_path / "out.engine").exists()


def test_a_cache_in_fp8_is_fed_from_step_to_step(tmp_path: Path):
    done = run(tmp_path, SAMPLES / "kv_cache.py", "-o", "decoder.onnx")
    assert done.status == 0, done.err
    assert "past_key -> present_key: e4m3fn" in done.out
    assert "4096 bytes in fp32, 1024 in FP8" in done.out
    assert float(done.out.rpartition("output ")[2].split()[0]) > 12
