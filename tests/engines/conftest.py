"""Makes this folder's helpers importable, and gives engines that are built once a session."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import engine_models

from fp8graph.data.plan import Plan
from fp8graph.engines.build import EngineBuilt, build_engine
from fp8graph.engines.job import BuildJob


@dataclass(frozen=True)
class Made:
    """A model, its engine, and what the build gave."""

    model: Path
    engine: Path
    built: EngineBuilt


Build = Callable[..., Made]


@pytest.fixture(scope="session")
def rtx() -> None:
    """Skips where TensorRT-RTX is not installed. It is looked for, not imported: that is the child's business."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'fp8graph[rtx]'")


@pytest.fixture(scope="session")
def build(rtx: None, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds a model for sm89, or for the chips given, in a folder of its own."""

    def make(model: onnx.ModelProto, chips: tuple[str, ...] = ("sm89",), plan: str = "", **options: Any) -> Made:
        folder = tmp_path_factory.mktemp("engine")
        path = folder / "m.onnx"
        path.write_bytes(model.SerializeToString())
        job = BuildJob(model=str(path), builder="tensorrt-rtx", chips=chips, **options)
        return Made(path, folder / "m.engine", build_engine(job, folder / "m.engine", plan=plan))

    return make


@pytest.fixture(scope="session")
def sound(build: Build) -> Made:
    """The sound little network, built."""
    return build(engine_models.network(), plan="ab" * 32)


@pytest.fixture(scope="session")
def plan() -> Plan:
    """What was decided about the sound little network."""
    return engine_models.plan_of(engine_models.network())
