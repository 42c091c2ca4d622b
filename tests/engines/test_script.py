"""Scripts that build without fp8graph: same calls, same bytes, and what their command line for NVIDIA's tool says."""

import shutil
import subprocess
import sys
from pathlib import Path

import engine_models as models
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.data.plan import Profile
from fp8graph.engines import script
from fp8graph.engines.job import BuildJob
from fp8graph.engines.program import read_engine

ROWS = Profile((1, 64), (2, 64), (8, 64))
MORE = Profile((16, 64), (32, 64), (64, 64))
CASES = {
    "plain": {},
    "shapes": {"shapes": {"x": ROWS}},
    "profiles": {"shapes": [{"x": ROWS}, {"x": MORE}], "builder_optimization_level": 1, "workspace": 1 << 30},
    "settings": {
        "shapes": {"x": ROWS},
        "weight_streaming": True,
        "builder_args": {"strict-nans": "true", "tiling_optimization_level": "fast", "avg_timing_iterations": "2"},
    },
}


def run(path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The script by itself: another folder, and nothing of ours on the path."""
    command = [sys.executable, "-P", str(path), *arguments]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, env={"PATH": ""}, check=False)


def model_in(folder: Path, *, rows: str | int = 64) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    onnx.save(models.matmul(rows), str(path), save_as_external_data=True, location="m.data", size_threshold=64)
    return path


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_script_builds_the_same_bytes_wherever_its_folder_lies(rtx: None, tmp_path: Path, case: str):
    model = model_in(tmp_path / "a", rows=64 if case == "plain" else "rows")
    built = fp8graph.build(
        model, output=tmp_path / "a" / "m.engine", target="tensorrt-rtx:sm89+sm120",
        emit_script=tmp_path / "a" / "build m.py", **CASES[case],
    )  # fmt: skip
    assert [Path(file.path).name for file in built.files][-1] == "build m.py"
    shutil.move(tmp_path / "a", tmp_path / "b")
    text = (tmp_path / "b" / "build m.py").read_text()
    assert "import fp8graph" not in text
    assert str(tmp_path) not in text
    expected = (tmp_path / "b" / "m.engine").read_bytes()
    (tmp_path / "b" / "m.engine").unlink()
    done = run(tmp_path / "b" / "build m.py")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b" / "m.engine").read_bytes() == expected
    run(tmp_path / "b" / "build m.py", str(tmp_path / "other.engine"))
    assert (tmp_path / "other.engine").read_bytes() == expected


def test_with_several_outputs_the_order_in_the_file_may_differ_and_nothing_else(rtx: None, tmp_path: Path):
    g = models.Graph()
    x = g.qdq(g.input("x", [32, 64]), "x")
    for index in range(6):
        g.output(g.op("MatMul", [x, g.weight8([64, 64], f"w{index}", seed=index)], f"mm{index}"))
    model = tmp_path / "m.onnx"
    model.write_bytes(g.model().SerializeToString())
    fp8graph.build(model, output=tmp_path / "a", target="tensorrt-rtx:sm89", emit_script=tmp_path / "b.py")
    assert run(tmp_path / "b.py", str(tmp_path / "b")).returncode == 0
    a, b = (read_engine(tmp_path / name) for name in "ab")
    assert (a.unknown, len(a.ops)) == ("", len(b.ops))
    assert sorted(map(str, a.ops)) == sorted(map(str, b.ops))
    assert (tmp_path / "a").stat().st_size == (tmp_path / "b").stat().st_size


@pytest.mark.parametrize("changed", ["m.onnx", "m.data"])
def test_a_script_builds_nothing_from_other_files(rtx: None, tmp_path: Path, changed: str):
    model = model_in(tmp_path)
    fp8graph.build(model, target="tensorrt-rtx:sm89", emit_script=tmp_path / "b.py")
    with (tmp_path / changed).open("ab") as file:
        file.write(b"\0")
    done = run(tmp_path / "b.py")
    assert done.returncode == 1
    assert f"{changed} is another file" in done.stderr
    assert not (tmp_path / "m.engine").exists()


def test_without_an_engine_the_script_alone_is_written(tmp_path: Path):
    model = model_in(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    built = fp8graph.build(model, target="tensorrt", emit_script=tmp_path / "b.py", version_compatible=True)
    assert {path.name for path in tmp_path.iterdir()} - before == {"b.py"}
    assert (built.manifest, built.chips, len(built.files)) == ({}, (), 1)
    text = (tmp_path / "b.py").read_text()
    assert "import tensorrt as trt" in text
    assert "BuilderFlag.VERSION_COMPATIBLE" in text
    assert "trtexec --onnx=m.onnx --saveEngine=m.engine" in text


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["-h"], 0, "Builds an engine from m.onnx"),
        (["e", "--help"], 0, "usage: python b.py [ENGINE]"),
        (["--verbose"], 2, "--verbose is not understood\nusage: python b.py [ENGINE]"),
        (["-"], 2, "- is not understood"),
        (["a", "b"], 2, "b is not understood"),
    ],
)
def test_a_script_takes_an_engine_and_help_and_nothing_else(tmp_path: Path, words: list[str], status: int, says: str):
    fp8graph.build(model_in(tmp_path), target="tensorrt", emit_script=tmp_path / "b.py")
    before = {path.name for path in tmp_path.iterdir()}
    command = [sys.executable, "-P", "b.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert says in (done.stderr if status else done.stdout)
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"target": "tensorrt-rtx"}, "FG100"),
        ({"target": "tensorrt-rtx:sm89", "version_compatible": True}, "FG100"),
        ({"target": "onnxruntime"}, "FG101"),
        ({"target": "tensorrt", "emit_script": "m.onnx"}, "FG103"),
        ({"target": "tensorrt", "emit_script": None}, "FG100"),
        ({"target": "tensorrt", "output": "b.py"}, "FG103"),
        ({"target": "tensorrt", "attest": True}, "FG100"),
    ],
    ids=str,
)
def test_scripts_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], code: str):
    monkeypatch.setattr("fp8graph.engines.probe.devices", list)
    model = model_in(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        fp8graph.build(model, **{"emit_script": "b.py", **options})
    assert caught.value.code == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.data", "m.onnx"]


def test_the_line_for_nvidias_tool():
    common = {"model": "/m.onnx", "optimization_level": 5, "workspace_bytes": 1 << 30, "plugins": ("/lib/ops.so",)}
    rtx = BuildJob(builder="tensorrt-rtx", profiles=({"x": ROWS}, {"x": MORE}), refit=True, **common)
    line, left_out = script.command_line(rtx, "m.engine", ("sm89", "sm120"), "m.onnx")
    assert line == (
        "tensorrt_rtx --onnx=m.onnx --saveEngine=m.engine --skipInference --profilingVerbosity=detailed "
        "--computeCapabilities=89,120 "
        "--profile=0 --minShapes=x:1x64 --optShapes=x:2x64 --maxShapes=x:8x64 "
        "--profile=1 --minShapes=x:16x64 --optShapes=x:32x64 --maxShapes=x:64x64 "
        "--builderOptimizationLevel=5 --memPoolSize=workspace:1073741824B --staticPlugins=ops.so --refit"
    )
    assert left_out == []
    other = BuildJob(
        builder="tensorrt", hardware_compatibility_level="ampere_plus", version_compatible=True, strip_weights=True,
        save_timing_cache="/t.cache", weight_streaming=True, builder_args={"b": "1", "a": "2"}, **common,
    )  # fmt: skip
    line, left_out = script.command_line(other, "m.engine", (), "m.onnx")
    assert "--stronglyTyped" in line
    assert line.endswith(
        "--versionCompatible --allowWeightStreaming --stripWeights --hardwareCompatibilityLevel=ampere+ "
        "--timingCacheFile=t.cache"
    )
    assert left_out == ["a=2", "b=1"]
