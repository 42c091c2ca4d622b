"""Looking at things without changing them: check, compare, doctor. Each imports only what it needs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.files import check_writable, sha256_of, staged
from fp8graph.base.findings import Notes
from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.data import target as targets

if TYPE_CHECKING:
    from fp8graph.calibrate.samples import Samples
    from fp8graph.compare.tolerance import Tolerance
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
    b: Any = None,
    *,
    data: Any,
    samples: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    val_range: Any = None,
    input_shapes: Any = None,
    providers: Sequence[str] | None = None,
    custom_ops: Sequence[str | Path] | None = None,
    min_sqnr: Any = None,
    rtol: Any = None,
    atol: Any = None,
    check_error_stat: Any = None,
    error_quantile: Any = None,
    save_outputs: str | Path | None = None,
    load_outputs: str | Path | None = None,
    layers: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> Comparison:
    """How far B's outputs lie from A's on the same samples, in the exact reference.

    A side may name a runner: `m.onnx@onnxruntime` is ONNX Runtime as users run it, `m.onnx@reference` the default.
    An engine of OpenVINO runs in OpenVINO, with the settings that it was built with; one of TensorRT or TensorRT-RTX on
    the GPU. The data is for the first side that is a model.

    min_sqnr, rtol, atol   bounds, one for all outputs or a mapping by output, as `compare.tolerance` reads them: what
                           does not hold is in `missed` of the result
    check_error_stat       what rtol and atol bound: elemwise (the default), max, mean, median or quantile
    error_quantile         the share of elements for `quantile` (0.99)
    save_outputs           an .npz file for what A gives; without B nothing is compared
    load_outputs           such a file in place of A, which is not run; without B, A is compared with it
    layers                 also the error of each op that both models have, local and accumulated, in the reference
    """
    from fp8graph.calibrate.samples import check_alike
    from fp8graph.compare.outputs import compare_outputs
    from fp8graph.compare.tolerance import Tolerance
    from fp8graph.flow import asked, layering
    from fp8graph.flow.feeding import Reading
    from fp8graph.graph.load import load

    how = Reading.of(samples, batch, seed, custom_ops, val_range, input_shapes, providers)
    tolerance = Tolerance(
        asked.numbers(rtol, "rtol"),
        asked.numbers(atol, "atol"),
        asked.words(check_error_stat, "check_error_stat"),
        asked.numbers(error_quantile, "error_quantile"),
        asked.numbers(min_sqnr, "min_sqnr"),
    )
    saved, stored = asked.path(save_outputs, "save_outputs"), asked.path(load_outputs, "load_outputs")
    sides = [asked.side(side) for side in (a, b) if side is not None]
    _check_sides(sides, saved, stored, bounded=tolerance != Tolerance())
    models = [model for model, _ in sides if not _is_engine(model)]
    if not models:
        raise UsageError(
            "both sides are engines, and data is read for a model" if len(sides) > 1 else "data is read for a model",
            where=" and ".join(str(model) for model, _ in sides),
            why="an engine does not say what its inputs are",
            do="compare each of them with the model that it was built from",
            code="FG100",
        )
    _check_saved(saved, sides, how.libraries, data, force=force)
    if layers:
        layering.check(sides, stored, engines=[model for model, _ in sides if _is_engine(model)])
    if len(models) > 1:
        names = " and ".join(str(side) if isinstance(side, (str, Path)) else "a model" for side in models)
        check_alike(load(models[0]).model, load(models[1]).model, names)
    feeds = how.open(data, load(models[0]).model, Notes())
    runners = [] if stored is None else [_stored(stored)]
    run = sides if stored is None else sides[-1:]
    runners += [_runner(model, name, how.libraries, how.providers) for model, name in run]
    if saved is not None:
        done = _saving(saved, runners, feeds, tolerance, progress)
    else:
        done = compare_outputs(runners[0], runners[1], feeds, count=feeds.count, progress=progress, tolerance=tolerance)
    return replace(done, layers=layering.measured(models, how, feeds, progress)) if layers else done


def _check_sides(sides: Sequence[Any], saved: Path | None, stored: Path | None, *, bounded: bool) -> None:
    """Raises UsageError FG100 where there are too few sides for what is to be done, or bounds and nothing to bound."""
    why = ""
    if saved is not None and stored is not None:
        why = "--save-outputs saves what A gives, and --load-outputs takes A's place"
    elif len(sides) < 2 and saved is None and stored is None:
        why = "there is nothing to compare it with"
    elif len(sides) < 2 and saved is not None and bounded:
        why = "with --save-outputs and one model nothing is compared, and bounds were given"
    if why:
        raise UsageError(
            "'compare' needs two sides: models, engines, or saved outputs",
            where="python -m fp8graph compare",
            why=why,
            do="python -m fp8graph compare A B --data FILE",
            code="FG100",
        )


def _check_saved(saved: Path | None, sides: Sequence[Any], libraries: Sequence[str], data: Any, *, force: bool) -> None:
    """Refuses a file for outputs that exists, or that is one of the inputs."""
    from fp8graph.calibrate.samples import files_of

    if saved is None:
        return
    inputs = [Path(item) for item in (*(side for side, _ in sides), *libraries) if isinstance(item, (str, Path))]
    check_writable(saved, force=force, inputs=[*inputs, *files_of(data)])


def _stored(path: Path) -> Runner:
    """A runner that gives the outputs of a file. Raises InputError FG108 or FG111."""
    from fp8graph.calibrate.readers import npz
    from fp8graph.compare.saved import Saved

    if not path.is_file():
        raise InputError("the saved outputs do not exist", where=str(path), do="check the path", code="FG108")
    return Saved(npz.load(path), str(path))


def _saving(
    saved: Path, runners: Sequence[Runner], feeds: Samples, tolerance: Tolerance, progress: Progress
) -> Comparison:
    """Runs A, and B where there is one, and writes what A gives."""
    from fp8graph.compare.outputs import compare_outputs
    from fp8graph.compare.saved import Writer
    from fp8graph.data.comparison import Comparison

    with staged(saved) as folder:
        writer = Writer(folder / saved.name, runners[0].outputs)
        if len(runners) > 1:
            a, b, keep = runners[0], runners[1], writer.add
            done = compare_outputs(a, b, feeds, count=feeds.count, progress=progress, tolerance=tolerance, keep=keep)
        else:
            count = 0
            with stage(progress, "running", feeds.count, "samples"):
                for feed in feeds:
                    writer.add(feed, runners[0].run(feed))
                    count += 1
                    progress.step()
            done = Comparison({}, count)
        writer.close()
    return done


def _is_engine(model: Any) -> bool:
    from fp8graph.engines import reading
    from fp8graph.runners.engine import runtime_of

    path = Path(model) if isinstance(model, (str, Path)) else None
    return path is not None and path.is_file() and bool(reading.owner(path) or runtime_of(path))


def _runner(model: Any, name: str, libraries: Sequence[str], providers: Sequence[str]) -> Runner:
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
        return open_runner(name, source.path or source.model, libraries, providers=providers)
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
