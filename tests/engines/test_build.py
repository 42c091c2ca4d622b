"""Building: what is written, what is told on the way, and what every failure amounts to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import engine_models as models
import onnx
import pytest
from conftest import Build, Made

from fp8graph.base.errors import BackendError, Fp8GraphError, InputError, InternalError, UsageError
from fp8graph.base.files import sha256_of
from fp8graph.data.plan import Profile
from fp8graph.engines.build import build_engine
from fp8graph.engines.job import BuildJob
from fp8graph.engines.probe import devices

FAKE = Path(__file__).with_name("fake_worker.py")


class Told:
    """Remembers what it is told of progress."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.events.append(("start", what, total, unit))

    def step(self, n: int = 1) -> None:
        self.events.append(("step", n))

    def done(self) -> None:
        self.events.append(("done",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound little model in a folder of its own."""
    file = tmp_path / "in" / "m.onnx"
    file.parent.mkdir()
    file.write_bytes(models.matmul().SerializeToString())
    return file


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the engine is to go: a folder that has to be empty after a failure."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "m.engine"


def job(model: Path, **options: object) -> BuildJob:
    return BuildJob(model=str(model), builder="tensorrt-rtx", **{"chips": ("sm89",), **options})


def refused(model: onnx.ModelProto | Path, output: Path, **options: object) -> Fp8GraphError:
    """The error of a build that has to fail; nothing may be left of it."""
    if not isinstance(model, Path):
        path = output.parent.parent / "refused.onnx"
        path.write_bytes(model.SerializeToString())
        model = path
    with pytest.raises(Fp8GraphError) as caught:
        build_engine(job(model, **options), output)
    assert list(output.parent.iterdir()) == []
    assert caught.value.what
    assert caught.value.why or caught.value.do
    assert str(output.parent) not in str(caught.value)
    return caught.value


# ------------------------------------------------------------------------------------------------- what is written


def test_engine_manifest_and_log_are_written_and_nothing_else(sound: Made):
    folder = sound.engine.parent
    assert sorted(p.name for p in folder.iterdir()) == ["m.engine", "m.engine.json", "m.engine.log", "m.onnx"]
    assert [Path(f.path) for f in sound.built.files] == [
        sound.engine,
        folder / "m.engine.json",
        folder / "m.engine.log",
    ]
    for file in sound.built.files:
        assert (sha256_of(Path(file.path)), Path(file.path).stat().st_size) == (file.sha256, file.bytes)
    assert "Layers:" in (folder / "m.engine.log").read_text()
    assert sound.built.warnings == []


def test_the_manifest_says_what_the_engine_was_built_from(sound: Made):
    document = json.loads(sound.engine.with_name("m.engine.json").read_text())
    assert document == sound.built.manifest
    assert document["schema"] == "fp8graph.engine/1"
    assert document["engine"] == sha256_of(sound.engine)
    assert document["model"] == sha256_of(sound.model)
    assert document["plan"] == "ab" * 32
    assert document["builder"]["name"] == "tensorrt-rtx"
    assert document["chips"] == ["sm89"]
    assert any(row["layer"] == "gemm" and "mm" in row["onnx"] for row in document["layers"])


def test_the_manifest_holds_no_path_and_is_the_same_twice(sound: Made, build: Build):
    text = sound.engine.with_name("m.engine.json").read_text()
    assert str(sound.engine.parent) not in text
    assert "/tmp" not in text
    assert os.uname().nodename not in text
    again = build(models.network(), plan="ab" * 32)
    assert again.engine.with_name("m.engine.json").read_text() == text
    assert again.engine.read_bytes() == sound.engine.read_bytes()


def test_an_existing_engine_is_replaced_whole(rtx: None, path: Path, output: Path):
    for name in ("m.engine", "m.engine.json", "m.engine.log"):
        (output.parent / name).write_text("old")
    build_engine(job(path), output)
    assert all((output.parent / name).stat().st_size > 100 for name in ("m.engine", "m.engine.json", "m.engine.log"))


def test_a_failure_leaves_an_existing_engine_as_it_was(rtx: None, path: Path, output: Path):
    output.write_text("old")
    with pytest.raises(UsageError):
        build_engine(job(path, chips=("sm86",)), output)
    assert [(p.name, p.read_text()) for p in output.parent.iterdir()] == [("m.engine", "old")]


def test_options_are_in_the_manifest(build: Build):
    made = build(
        models.matmul(),
        optimization_level=2,
        weight_streaming=True,
        builder_args={"strict-nans": "true", "avg_timing_iterations": "2", "tiling_optimization_level": "fast"},
    )
    assert made.built.manifest["options"] == {
        "optimization_level": 2,
        "weight_streaming": True,
        "builder_args": {"avg_timing_iterations": "2", "strict-nans": "true", "tiling_optimization_level": "fast"},
    }


def test_a_timing_cache_is_a_warning_where_there_is_none(build: Build, tmp_path: Path):
    made = build(models.matmul(), save_timing_cache=str(tmp_path / "t.cache"))
    assert "no timing cache" in made.built.warnings[0]
    assert list(tmp_path.iterdir()) == []


def test_external_data_is_found(rtx: None, tmp_path: Path, output: Path):
    path = tmp_path / "big.onnx"
    onnx.save(models.network(), str(path), save_as_external_data=True, location="big.data", size_threshold=64)
    assert build_engine(job(path), output).manifest["chips"] == ["sm89"]


# -------------------------------------------------------------------------------------------------------- progress


def test_progress_arrives(rtx: None, path: Path, output: Path):
    told = Told()
    build_engine(job(path), output, progress=told)
    assert told.events[0][:2] == ("start", "Building engine")
    assert told.events[-1] == ("done",)
    assert [event[0] for event in told.events].count("start") == 1
    assert [event[0] for event in told.events].count("step") >= 3


def test_progress_is_closed_after_a_failure(path: Path, output: Path):
    told = Told()
    with pytest.raises(BackendError):
        build_engine(job(path), output, progress=told, worker=[sys.executable, str(FAKE), "segv"])
    assert [event[0] for event in told.events].count("start") == [event[0] for event in told.events].count("done")


# ------------------------------------------------------------------------------------------- builders that misbehave


def misbehaving(how: str, path: Path, output: Path, **limits: float) -> Fp8GraphError:
    with pytest.raises(Fp8GraphError) as caught:
        build_engine(job(path), output, worker=[sys.executable, str(FAKE), how], **limits)
    assert list(output.parent.iterdir()) == []
    return caught.value


def test_a_crash_is_a_status(path: Path, output: Path):
    error = misbehaving("segv", path, output)
    assert (error.status, error.code) == (4, "FG507")
    assert "SIGSEGV" in error.what
    assert "it was at: Optimizing" in error.why
    assert "last words: ERROR the builder's last words" in error.why


def test_a_builder_that_is_killed_most_likely_had_no_memory(path: Path, output: Path):
    error = misbehaving("kill", path, output)
    assert (error.status, error.code) == (4, "FG132")
    assert "memory" in error.why


def test_a_bug_of_ours_is_no_failure_of_the_builder(path: Path, output: Path):
    error = misbehaving("raise", path, output)
    assert (error.status, type(error)) == (5, InternalError)
    assert error.why == "RuntimeError: a bug of ours"


def test_a_result_that_is_none_is_a_crash(path: Path, output: Path):
    assert misbehaving("garbage", path, output).code == "FG507"


def test_a_build_that_does_not_end_is_stopped_with_all_it_started(
    path: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pids = tmp_path / "pids"
    monkeypatch.setenv("FAKE_WORKER_PIDS", str(pids))
    error = misbehaving("hang", path, output, timeout_s=3)
    assert (error.status, error.code) == (4, "FG506")
    assert "within 3 s" in error.what
    for pid in pids.read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is watched through /proc")
def test_a_build_that_takes_too_much_memory_is_stopped(path: Path, output: Path):
    error = misbehaving("eat", path, output, memory_limit_bytes=400 << 20)
    assert (error.status, error.code) == (4, "FG132")
    assert "of 400 MiB" in error.why


def test_a_builder_that_is_not_installed_is_named(path: Path, output: Path):
    with pytest.raises(BackendError) as caught:
        build_engine(BuildJob(model=str(path), builder="tensorrt"), output)
    assert caught.value.code == "FG505"
    assert list(output.parent.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- wrong calls


@pytest.mark.usefixtures("rtx")
class TestRefusals:
    """Calls and models that the builder refuses, each with what the user is told."""

    def test_a_chip_without_fp8(self, output: Path):
        error = refused(models.matmul(), output, chips=("sm86",))
        assert (error.status, error.code) == (2, "FG303")
        assert "(sm86)" in error.what

    def test_an_unknown_chip(self, output: Path):
        error = refused(models.matmul(), output, chips=("sm90",))
        assert (error.status, error.code) == (2, "FG101")
        assert "sm89" in error.why

    def test_open_dimensions_without_shapes(self, output: Path):
        error = refused(models.matmul("rows"), output)
        assert (error.status, error.code) == (2, "FG100")
        assert error.where == "input 'x' ?x64"
        assert "--shapes x:1x64" in error.do

    @pytest.mark.parametrize(
        ("shapes", "code", "said"),
        [
            ({"y": Profile((1, 64), (1, 64), (1, 64))}, "FG101", "has no input 'y'"),
            ({"x": Profile((1, 32), (1, 32), (1, 32))}, "FG100", "do not fit"),
            ({"x": Profile((1,), (1,), (1,))}, "FG100", "do not fit"),
        ],
    )
    def test_shapes_that_do_not_fit(self, output: Path, shapes: dict[str, Profile], code: str, said: str):
        error = refused(models.matmul("rows"), output, profiles=(shapes,))
        assert (error.status, error.code) == (2, code)
        assert said in error.what

    def test_what_the_builder_does_not_have(self, output: Path):
        for options in ({"version_compatible": True}, {"hardware_compatibility_level": "ampere_plus"}):
            error = refused(models.matmul(), output, **options)
            assert (error.status, error.code) == (2, "FG100")

    def test_a_setting_that_does_not_exist(self, output: Path):
        error = refused(models.matmul(), output, builder_args={"strict_nan": "1"})
        assert (error.status, error.code) == (2, "FG101")
        assert "strict_nans" in error.do
        error = refused(models.matmul(), output, builder_args={"avg_timing_iterations": "many"})
        assert error.code == "FG100"

    def test_a_library_that_is_none(self, output: Path, tmp_path: Path):
        error = refused(models.matmul(), output, plugins=(str(tmp_path / "none.so"),))
        assert (error.status, error.code) == (3, "FG111")

    @pytest.mark.skipif(shutil.which("cc") is None, reason="a library is compiled")
    def test_a_library_without_custom_ops_is_refused_in_the_builders_words(self, output: Path, tmp_path: Path):
        source = tmp_path / "ops.c"
        names = ("getCreators", "getPluginCreators", "setLoggerFinder")
        source.write_text("".join(f"void *{name}(int *n) {{ *n = 0; return 0; }}\n" for name in names))
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "ops.so"), str(source)], check=True)
        error = refused(models.matmul(), output, plugins=(str(tmp_path / "ops.so"),))
        assert (error.status, error.code) == (3, "FG111")
        assert "No creator returned by getPluginCreators" in error.why

    @pytest.mark.parametrize(
        ("options", "status", "said"),
        [
            ({"refit": True}, 4, "--refit"),
            ({"strip_weights": True}, 4, "--strip-weights"),
            ({"builder_args": {"strip-plan": "1"}}, 4, "STRIP_PLAN"),
            ({"builder_args": {"REFIT": "true"}}, 4, "REFIT"),
            ({"refit": True, "chips": ("sm89", "sm120")}, 2, "--refit"),
            ({"builder_args": {"version_compatible": "on"}}, 2, "--version-compatible"),
        ],
        ids=str,
    )
    def test_what_needs_a_gpu_or_is_not_there_is_said_before_it_is_tried(
        self, output: Path, options: dict[str, object], status: int, said: str
    ):
        if devices() and status == 4:
            pytest.skip("this machine has a GPU")
        error = refused(models.matmul(), output, **options)
        assert (error.status, error.where) == (status, said)

    def test_too_small_a_workspace(self, output: Path):
        error = refused(models.matmul(), output, workspace_bytes=1 << 20)
        assert (error.status, error.code) == (2, "FG100")

    def test_a_scale_of_zero_names_the_node(self, output: Path):
        error = refused(models.matmul(scale=0.0), output)
        assert (error.status, error.code) == (4, "FG504")
        assert error.where == "refused.onnx, node 'a_q' (QuantizeLinear)"
        assert "Scale coefficients must all be positive" in error.why

    def test_another_format_names_the_node(self, output: Path):
        error = refused(models.matmul(format_=models.E5M2), output)
        assert (error.status, error.where) == (4, "refused.onnx, node 'a_q' (QuantizeLinear)")
        assert "E4M3FN only" in error.why

    def test_a_constant_in_another_format_is_named(self, output: Path):
        model = models.matmul()
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
        weight.data_type = onnx.TensorProto.FLOAT8E5M2
        error = refused(model, output)
        assert error.where == "refused.onnx, tensor 'w' (FLOAT8E5M2), read by node 'w_dq' (DequantizeLinear)"

    def test_an_unknown_operator_is_named(self, output: Path):
        g = models.Graph()
        g.output(g.op("Sparkle", [g.input("x", [4, 4])], "shiny", domain="com.example"))
        model = g.model()
        model.opset_import.add(domain="com.example", version=1)
        error = refused(model, output)
        assert (error.status, error.code) == (4, "FG504")
        assert error.where == "refused.onnx, node 'shiny' (Sparkle)"
        assert "does not know an operator" in error.what

    def test_an_fp8_tensor_in_a_relu_names_the_node(self, output: Path):
        g = models.Graph()
        s = g.constant(models.np.float32(0.1), "s")
        q = g.op("QuantizeLinear", [g.input("x", [4, 4]), s], "q", output_dtype=onnx.TensorProto.FLOAT8E4M3FN)
        g.output(g.op("DequantizeLinear", [g.op("Relu", [q], "r"), s], "dq"), type_=onnx.TensorProto.FLOAT)
        error = refused(g.model(), output)
        assert error.where == "refused.onnx, node 'q' (QuantizeLinear)"
        assert "takes none" in error.what

    def test_one_tensor_quantized_in_two_branches(self, output: Path):
        error = refused(models.branches(scales="fp32"), output)
        assert "two branches of an If" in error.what
        assert "tensor 'x'" in error.where

    def test_a_file_that_is_no_model(self, output: Path, tmp_path: Path):
        for data in (b"", b"\x00\x01nonsense" * 20):
            (tmp_path / "bad.onnx").write_bytes(data)
            error = refused(tmp_path / "bad.onnx", output)
            assert (error.status, type(error)) == (3, InputError)
