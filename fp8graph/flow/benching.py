"""How fast engines are on the GPU of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.progress import SILENT, Progress
from fp8graph.data.plan import Shapes
from fp8graph.engines import bench as benches
from fp8graph.engines.bench import Benchmark
from fp8graph.flow import asked
from fp8graph.runners.engine import Engine, runtime_of


@dataclass(frozen=True)
class Benched:
    """What was measured, on which GPU, by which runtime, with which shapes."""

    benchmark: Benchmark
    device: str
    runtimes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def to_json(self) -> dict[str, Any]:
        """The benchmark as a result."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {**self.benchmark.to_json(), "device": self.device, "runtimes": list(self.runtimes), "shapes": shapes}


def bench(
    a: str | Path,
    b: str | Path | None = None,
    *,
    shapes: Shapes | None = None,
    rounds: int = 11,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Benched:
    """Latency and throughput of an engine on the GPU; with B its speedup over A, with a bound on the noise.

    shapes   the most usual ones count; None: those of the engine's first profile
    rounds   how often A and B are measured in turn, at least 6

    Raises InputError for a file that is no engine, UsageError, BackendError FG505 where package or GPU are missing.
    """
    if (asked.whole(rounds, "rounds") or 0) < benches.LEAST_ROUNDS:
        why = f"{benches.LEAST_ROUNDS} rounds bound the noise with 95 % confidence, {rounds} do not"
        do = f"give {benches.LEAST_ROUNDS} or more"
        raise UsageError("too few rounds", where="--rounds", why=why, do=do, code="FG100")
    usual = {name: profile.opt for name, profile in (asked.shapes(shapes) or {}).items()}
    paths = [asked.needed_path(a, "a"), *([asked.needed_path(b, "b")] if b is not None else [])]
    engines = [_open(path) for path in paths]
    unknown = [name for name in usual if any(name not in engine.inputs for engine in engines)]
    if unknown:
        do = f"it has {', '.join(engines[0].inputs)}"
        raise UsageError(f"an engine has no input '{unknown[0]}'", where="--shapes", do=do, code="FG101")
    sizes = [{**engine.shapes(), **usual} for engine in engines]
    if b is not None and sizes[0] != sizes[1]:
        raise UsageError(
            "the engines' usual shapes differ",
            where=f"{a} and {b}",
            why=f"{sizes[0]} and {sizes[1]}",
            do="give --shapes that both take",
            code="FG100",
        )
    feeds = [
        benches.random_feeds(size, {name: engine.dtype(name) for name in size}, seed)
        for engine, size in zip(engines, sizes, strict=True)
    ]
    found = benches.bench(engines[0], engines[1] if b is not None else None, feeds, rounds=rounds, progress=progress)
    runtimes = tuple(f"{engine.runtime} {engine.version}" for engine in engines)
    return Benched(found, engines[0].device.name, runtimes, sizes[0])


def _open(given: Path) -> Engine:
    found, named = asked.side(given)
    path = Path(found)
    if not path.is_file():
        raise InputError("the engine does not exist", where=str(given), do="check the path", code="FG508")
    runtime = runtime_of(path)
    if not runtime:
        raise InputError(
            "the file is no engine of TensorRT or TensorRT-RTX",
            where=str(path),
            why="only engines have a speed: a model is built first",
            do="python -m fp8graph build MODEL -o ENGINE",
            code="FG508",
        )
    if named not in ("", runtime):
        do = f"{path.name}@{runtime}"
        raise UsageError(f"the runner '{named}' takes no engine of {runtime}", where=str(given), do=do, code="FG101")
    return Engine(path, runtime)
