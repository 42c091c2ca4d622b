"""One way to build with TensorRT 10.x, 11.x and TensorRT-RTX: every call is held against what their packages declare.

The libraries of `tensorrt` cannot be had everywhere; what its package takes is in `bindings/`, made by
`bindings/read_bindings.py`. No engine comes of it.
"""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import engine_models as models
import pytest
import strict

from fp8graph.base.errors import InputError, UsageError
from fp8graph.data.plan import Profile
from fp8graph.engines import script, tensorrt, tensorrt_rtx, worker
from fp8graph.engines.job import BuildJob

SHAPES = (
    {"x": Profile((1, 64), (2, 64), (4, 64)), "n": Profile((1,), (2,), (4,))},
    {"x": Profile((8, 64), (8, 64), (8, 64)), "n": Profile((8,), (8,), (8,))},
)
INPUTS = {"x": ((-1, 64), False), "n": ((), True)}
LOGGED = "a line that only a warning is"


class Stage:
    """A stand-in that goes through a whole build, and the job to build with it."""

    def __init__(self, table: Path, folder: Path) -> None:
        self.rtx = "rtx" in table.name
        self.backend = tensorrt_rtx if self.rtx else tensorrt
        self.strict = strict.Strict(table)
        self.trt: ModuleType = self.strict.module("tensorrt_rtx" if self.rtx else "tensorrt")
        self.strict.answers |= {
            "Builder.__init__": lambda this, logger: setattr(self, "logger", logger),
            "Builder.build_serialized_network": self._build,
            "INetworkDefinition.num_inputs": lambda this: len(INPUTS),
            "INetworkDefinition.num_outputs": lambda this: 1,
            "INetworkDefinition.num_layers": lambda this: 7,
            "INetworkDefinition.get_input": self._input,
            "IPluginRegistry.load_library": lambda this, path: object(),
            "ITimingCache.serialize": lambda this: self._memory(b"timings"),
        }
        self.folder = folder
        self.model = folder / "m.onnx"
        self.model.write_bytes(models.matmul("rows").SerializeToString())
        self.events: list[Any] = []

    def _memory(self, data: bytes) -> Any:
        kind = self.strict.classes["IHostMemory"]
        return kind.__new__(kind, data)

    def _input(self, this: Any, index: int) -> Any:
        tensor, name = self.strict.make("ITensor"), list(INPUTS)[index]
        said = {"name": name, "shape": INPUTS[name][0], "is_shape_tensor": INPUTS[name][1]}
        tensor.__dict__.update({f"ITensor.{attribute}": value for attribute, value in said.items()})
        return tensor

    def _build(self, this: Any, network: Any, config: Any) -> Any:
        severity = self.trt.ILogger.Severity
        self.logger.log(severity.WARNING, LOGGED)
        self.logger.log(severity.VERBOSE, "Layers:\nnone")
        monitor = config.__dict__.get("IBuilderConfig.progress_monitor")
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            assert monitor.step_complete("Building", 0) is True
            monitor.phase_finish("Building")
        return self._memory(b"an engine")

    def job(self) -> BuildJob:
        """Everything that this builder can be asked for."""
        cache = self.folder / "t.cache"
        cache.write_bytes(b"old")
        datacentre: dict[str, Any] = {
            "version_compatible": True,
            "hardware_compatibility_level": "ampere_plus",
            "load_timing_cache": str(cache),
            "save_timing_cache": str(self.folder / "new.cache"),
            "refit": True,
            "strip_weights": True,
        }
        return BuildJob(
            model=str(self.model),
            builder=self.backend.NAME,
            chips=("sm89", "sm120") if self.rtx else ("sm90",),
            profiles=SHAPES,
            optimization_level=4,
            workspace_bytes=1 << 30,
            weight_streaming=True,
            plugins=(str(self.folder / "ops.so"),),
            builder_args={"tf32": "false", "avg_timing_iterations": "2", "engine_capability": "standard"},
            **({} if self.rtx else datacentre),
        )

    def build(self, job: BuildJob, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        monkeypatch.setattr(worker, "devices", lambda: [{"name": "GPU", "chip": "sm90"}])
        monkeypatch.setitem(sys.modules, self.trt.__name__, self.trt)
        log = worker.Log(self.folder)
        cache = str(self.folder / "cache") if job.save_timing_cache else ""
        try:
            return worker.build(self.backend, job, self.folder / "engine", cache, log, self.events.append)
        finally:
            log._file.close()


@pytest.fixture(params=strict.TABLES, ids=lambda table: table.stem)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    return Stage(request.param, tmp_path)


def test_a_build_with_every_setting_calls_only_what_is_declared(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    made = stage.build(stage.job(), monkeypatch)
    assert (stage.folder / "engine").read_bytes() == b"an engine"
    assert made["version"] == stage.trt.__version__
    assert made["warnings"] == [LOGGED]
    assert [event["event"] for event in stage.events] == ["phase", "start", "step", "done"]
    flag = stage.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert stage.strict.called("Builder.create_network") == [(1 << flag.value,)]
    set_flags = {flag.name for (flag,) in stage.strict.called("IBuilderConfig.set_flag")}
    datacentre = set() if stage.rtx else {"VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN"}
    assert set_flags == {"WEIGHT_STREAMING"} | datacentre
    assert [flag.name for (flag,) in stage.strict.called("IBuilderConfig.clear_flag")] == ["TF32"]
    assert stage.strict.called("IOptimizationProfile.set_shape")[1] == ("x", (8, 64), (8, 64), (8, 64))
    assert stage.strict.called("IOptimizationProfile.set_shape_input")[0] == ("n", [1], [2], [4])
    assert len(stage.strict.called("IBuilderConfig.add_optimization_profile")) == 2
    assert stage.strict.called("IPluginRegistry.load_library") == [(str(stage.folder / "ops.so"),)]
    if stage.rtx:
        chips = [(chip.name, index) for chip, index in stage.strict.called("IBuilderConfig.set_compute_capability")]
        assert chips == [("SM89", 0), ("SM120", 1)]
    else:
        assert stage.strict.called("IBuilderConfig.create_timing_cache") == [(b"old",)]
        assert (stage.folder / "cache").read_bytes() == b"timings"


def test_stripped_weights_alone_come_back_unchanged(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    chips = ("sm89",) if stage.rtx else ()
    job = BuildJob(model=str(stage.model), builder=stage.backend.NAME, chips=chips, profiles=SHAPES, strip_weights=True)
    stage.build(job, monkeypatch)
    flags = [flag.name for (flag,) in stage.strict.called("IBuilderConfig.set_flag")]
    assert flags == ["STRIP_PLAN", "REFIT_IDENTICAL"]


def test_what_the_parser_refuses_is_asked_for(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    stage.strict.answers |= {
        "OnnxParser.parse_from_file": lambda this, path: False,
        "OnnxParser.num_errors": lambda this: 1,
        "OnnxParser.get_error": lambda this, index: stage.strict.make("ParserError"),
        "ParserError.desc": lambda this: "no",
    }
    with pytest.raises(worker.RefusedError) as caught:
        stage.build(stage.job(), monkeypatch)
    assert caught.value.said["errors"] == [{"text": "no", "node": "", "op_type": ""}]


def test_what_the_builder_refuses_is_a_refusal(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    stage.strict.answers["Builder.build_serialized_network"] = lambda this, network, config: None
    with pytest.raises(worker.RefusedError):
        stage.build(stage.job(), monkeypatch)


def test_a_model_with_nothing_in_it_and_a_missing_library_are_found(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    stage.strict.answers["INetworkDefinition.num_outputs"] = lambda this: 0
    with pytest.raises(InputError, match="no graph"):
        stage.build(stage.job(), monkeypatch)
    stage.strict.answers["IPluginRegistry.load_library"] = lambda this, path: None
    with pytest.raises(InputError, match="custom ops"):
        stage.build(stage.job(), monkeypatch)


def test_a_setting_that_this_version_lacks_is_a_wrong_call(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    for name, code in (("no_such_thing", "FG101"), ("create_timing_cache", "FG101"), ("engine_capability", "FG100")):
        job = BuildJob(
            model=str(stage.model), builder=stage.backend.NAME, chips=("sm89",) if stage.rtx else (),
            builder_args={name: "1"}, profiles=SHAPES,
        )  # fmt: skip
        with pytest.raises(UsageError) as caught:
            stage.build(job, monkeypatch)
        assert caught.value.code == code


def test_the_script_of_a_build_makes_the_same_calls(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    job = stage.job()
    path = stage.folder / "build_m.py"
    text = script.text(job, path, stage.folder / "s.engine", chips=job.chips, digests={}, version="")
    path.write_text(text)
    stage.build(job, monkeypatch)
    expected, stage.strict.calls = stage.strict.calls, []
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert (stage.folder / "s.engine").read_bytes() == b"an engine"
    # Objects are others, and a script tells no progress.
    said = [plainly(call) for call in stage.strict.calls]
    wanted = [plainly(call) for call in expected if not re.search("progress_?monitor", call[0], re.IGNORECASE)]
    assert sorted(said) == sorted(wanted)


def plainly(call: tuple[str, tuple[Any, ...]]) -> str:
    """A call as text, without the addresses of objects."""
    name, arguments = call
    known = (int, str, bytes, tuple, list)
    shown = (repr(item) if isinstance(item, known) else str(getattr(item, "name", ".")) for item in arguments)
    return f"{name}({', '.join(shown)})"


@pytest.mark.parametrize("table", strict.TABLES, ids=lambda table: table.stem)
def test_the_stand_in_refuses_what_is_not_declared(table: Path):
    made = strict.Strict(table)
    builder = made.make("Builder")
    config = builder.create_builder_config()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1  # gone since TensorRT 10
    with pytest.raises(AttributeError):
        builder.build_cuda_engine()
    for wrong in (
        lambda: builder.create_network("1"),
        lambda: builder.create_network(1, 2),
        lambda: config.set_flag(1),
        lambda: setattr(config, "builder_optimization_level", "3"),
        lambda: made.classes["IBuilderConfig"](),
        lambda: config.set_memory_pool_limit(pool=1 << 30),
    ):
        with pytest.raises(strict.MisuseError):
            wrong()


def _read(*arguments: str) -> None:
    tool = Path(__file__).parent / "bindings" / "read_bindings.py"
    subprocess.run([sys.executable, str(tool), *arguments], check=True, stdout=subprocess.DEVNULL)


def test_the_table_of_the_installed_package_is_what_it_declares(rtx: None, tmp_path: Path):
    tool = Path(__file__).parent / "bindings"
    code = f"import sys; sys.path.insert(0, {str(tool)!r}); import read_bindings as r; r.show('tensorrt_rtx')"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    kept = tool / f"tensorrt-rtx-{found['version']}.json"
    if not kept.exists():
        pytest.skip(f"no table of {found['version']}: python tests/engines/bindings/read_bindings.py tensorrt-rtx")
    assert json.loads(kept.read_text()) == found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the stand-ins for the libraries are made for Linux")
def test_the_tables_of_tensorrt_are_what_its_wheels_declare():
    tool = Path(__file__).parent / "bindings"
    tables = {path: path.read_text() for path in tool.glob("tensorrt-1*.json")}
    try:
        _read("tensorrt", *(json.loads(text)["version"] for text in tables.values()))
        assert {path: path.read_text() for path in tables} == tables
    finally:
        for path, text in tables.items():
            path.write_text(text)
