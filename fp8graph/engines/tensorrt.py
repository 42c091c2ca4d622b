"""TensorRT 10.x and 11.x for the GPU in the machine: what differs from the common way of building.

The names used here are those of the Python packages 10.16.1 and 11.4.0; no engine of them has been built here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fp8graph.base.errors import BackendError, InputError, UsageError
from fp8graph.engines.job import BuildJob

NAME = "tensorrt"


def load() -> Any:
    """The builder's module. Raises ImportError where it is not installed or not usable."""
    import tensorrt

    return tensorrt


def refuse(job: BuildJob, devices: Sequence[str]) -> list[str]:
    """No warnings. Raises UsageError FG100 for more than one chip: an engine serves the GPU it was built on."""
    if len(job.chips) > 1:
        raise UsageError(
            "tensorrt builds for one chip, the one in the machine",
            where="--target",
            why=f"asked: {', '.join(job.chips)}",
            do="build once on each machine, or with --hardware-compatibility-level ampere_plus; "
            "tensorrt-rtx builds one engine for several chips",
            code="FG100",
        )
    return []


def why_not_here(version: str, devices: Sequence[str]) -> str:
    """Why this version cannot build on this machine; empty where it can. `devices`: chips of the GPUs in it."""
    return "" if devices else "TensorRT chooses kernels by timing them: it needs a GPU, and this machine has none"


def chips(trt: Any, job: BuildJob, devices: Sequence[str]) -> tuple[str, ...]:
    """The chip of the first GPU. Raises BackendError where there is none, UsageError where another one was named."""
    if not devices:
        raise BackendError(
            "tensorrt builds on a GPU only, and this machine has none",
            where="--target",
            do="build on a machine with the GPU that the engine is for; tensorrt-rtx builds without one",
            code="FG505",
        )
    if job.chips and job.chips[0] != devices[0]:
        raise UsageError(
            f"tensorrt builds for the GPU in the machine, which is {devices[0]}",
            where="--target",
            why=f"asked: {job.chips[0]}",
            do=f"leave the chip out, or build on a machine with {job.chips[0]}",
            code="FG100",
        )
    return (devices[0],)


def configure(trt: Any, config: Any, job: BuildJob, asked: Sequence[str]) -> None:
    """Sets what only this builder has: version and hardware compatibility. The chip is that of the machine."""
    if job.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if job.hardware_compatibility_level:
        levels = trt.HardwareCompatibilityLevel.__members__
        name = job.hardware_compatibility_level.upper()
        if name not in levels:
            raise UsageError(
                f"tensorrt {trt.__version__} has no hardware compatibility level '{job.hardware_compatibility_level}'",
                where="--hardware-compatibility-level",
                do=f"give one of {', '.join(level.lower() for level in levels)}",
                code="FG100",
            )
        config.hardware_compatibility_level = levels[name]


def timing_cache(trt: Any, config: Any, job: BuildJob) -> Any:
    """The timing cache of the build, filled from a file where one is given; None where none is wanted."""
    if not (job.load_timing_cache or job.save_timing_cache):
        return None
    held = b""
    if job.load_timing_cache:
        try:
            held = Path(job.load_timing_cache).read_bytes()
        except OSError as error:
            raise InputError(
                "the timing cache cannot be read", where=job.load_timing_cache, why=str(error), code="FG111"
            ) from error
    cache = config.create_timing_cache(held)
    if cache is None or not config.set_timing_cache(cache, False):
        raise InputError(
            "the timing cache is refused",
            where=job.load_timing_cache,
            why="it was written by another version of TensorRT or on another GPU",
            do="leave --load-timing-cache out, and write a new one with --save-timing-cache",
            code="FG111",
        )
    return cache
