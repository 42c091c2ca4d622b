"""Looking at things without changing them: check, compare, doctor. Each imports only what it needs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp8graph.base.errors import UsageError
from fp8graph.base.files import sha256_of
from fp8graph.base.findings import Notes
from fp8graph.base.progress import SILENT, Progress
from fp8graph.data import target as targets

if TYPE_CHECKING:
    from fp8graph.data.comparison import Comparison
    from fp8graph.runners.base import Runner

PACKAGES = (
    "numpy",
    "ml_dtypes",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnx-graphsurgeon",
    "safetensors",
    "rich",
    "cuda-python",
)


def compare(
    a: Any,
    b: Any,
    *,
    data: Any,
    samples: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    custom_ops: Sequence[str | Path] | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """How far B's outputs lie from A's on the same samples, in the exact reference.

    A side may name a runner: `m.onnx@onnxruntime` is ONNX Runtime as users run it, `m.onnx@reference` the default.
    An engine of OpenVINO runs in OpenVINO, with the settings that it was built with; one of TensorRT or TensorRT-RTX on
    the GPU. The data is for the first side that is a model.
    """
    from fp8graph.calibrate.samples import check_alike, open_samples
    from fp8graph.compare.outputs import compare_outputs
    from fp8graph.graph.load import load

    (left, left_runner), (right, right_runner) = _side(a), _side(b)
    fed = right if _is_engine(left) else left
    if _is_engine(fed):
        raise UsageError(
            "both sides are engines, and data is read for a model",
            where=f"{left} and {right}",
            do="compare each of them with the model that it was built from",
            code="FG100",
        )
    if not _is_engine(left) and not _is_engine(right):
        names = " and ".join(str(side) if isinstance(side, (str, Path)) else "a model" for side in (left, right))
        check_alike(load(left).model, load(right).model, names)
    feeds = open_samples(data, load(fed).model, Notes(), samples=samples, batch=batch, seed=seed)
    libraries = [str(Path(item).absolute()) for item in custom_ops or ()]
    runners = [_runner(left, left_runner, libraries), _runner(right, right_runner, libraries)]
    return compare_outputs(runners[0], runners[1], feeds, count=feeds.count, progress=progress)


def _side(given: Any) -> tuple[Any, str]:
    if isinstance(given, (str, Path)) and not Path(given).exists() and "@" in str(given):
        path, _, runner = str(given).rpartition("@")
        return path, runner
    return given, ""


def _is_engine(model: Any) -> bool:
    from fp8graph.engines import reading
    from fp8graph.runners.engine import runtime_of

    path = Path(model) if isinstance(model, (str, Path)) else None
    return path is not None and path.is_file() and bool(reading.owner(path) or runtime_of(path))


def _runner(model: Any, name: str, libraries: Sequence[str]) -> Runner:
    """The runner that a side names; else that of the builder whose engine it is, else the reference."""
    from fp8graph.engines import manifest, reading
    from fp8graph.graph.load import load
    from fp8graph.runners.engine import runtime_of
    from fp8graph.runners.opening import RUNNERS, open_runner

    path = Path(model) if isinstance(model, (str, Path)) else None
    owner = reading.owner(path) or runtime_of(path) if path is not None and path.is_file() else ""
    if path is None or not owner:
        name = name or "reference"
        if name not in RUNNERS:
            return open_runner(name, Path())  # which says what there is
        source = load(model)
        return open_runner(name, source.path or source.model, libraries)
    if name not in ("", owner):
        raise UsageError(
            f"the runner '{name}' takes no engine of {owner}",
            where=f"{path.name}@{name}",
            do=f"name the one that does: {path.name}@{owner}",
            code="FG101",
        )
    document, _, _ = manifest.find(path, sha256_of(path))
    options = (document or {}).get("options", {})
    return open_runner(owner, path, libraries, options.get("builder_args", {}))


def doctor() -> dict[str, Any]:
    """Versions, devices, and what each target can do here; builders are asked in a child process."""
    from fp8graph.engines.job import EXTRAS
    from fp8graph.engines.probe import devices, installed

    rows = []
    for name in targets.names():
        aim = targets.load(name)
        if not aim.builder:
            have = _version("onnxruntime")
            why_not = None if have else "onnxruntime is not installed"
            rows.append(
                _target_row(
                    name, have is not None, have, ["optimize", "check", "compare"], why_not, "pip install onnxruntime"
                )
            )
            continue
        state = installed(aim.builder)
        able = bool(state["can_build_here"])
        can = ["optimize", "check", "compare", "attest", *(["build"] if able else [])]
        rows.append(
            _target_row(
                name,
                able,
                state["version"] or None,
                can,
                state["why_not"] or None,
                f"pip install 'fp8graph[{EXTRAS[aim.builder]}]'",
            )
        )
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "executable": sys.executable,
        "packages": {name: _version(name) for name in ("fp8graph", *PACKAGES)},
        "targets": rows,
        "devices": devices(),
    }


def _target_row(
    name: str, usable: bool, version: str | None, can: list[str], why_not: str | None, install: str
) -> dict[str, Any]:
    row = {"name": name, "usable": usable, "version": version, "can": can, "why_not": why_not}
    return {**row, "install": None if usable else install}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
