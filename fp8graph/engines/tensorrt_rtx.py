"""TensorRT-RTX: what differs from the common way of building. The package is imported in the child process only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fp8graph.base.errors import BackendError, UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.data import target as targets
from fp8graph.engines.job import BuildJob
from fp8graph.engines.settings import switched_on

NAME = "tensorrt-rtx"
# Measured: 1.4.0 asks the CUDA runtime for a device even where a chip is set; 1.5.0, 1.6.1 and 1.7.1 do not.
_FIRST_WITHOUT_GPU = (1, 5)


def load() -> Any:
    """The builder's module. Raises ImportError where it is not installed or not usable."""
    import tensorrt_rtx

    return tensorrt_rtx


def refuse(job: BuildJob, devices: Sequence[str]) -> list[str]:
    """Warnings about what this builder leaves out without changing the result.

    Raises UsageError FG100 for what it does not have: version-compatible engines (the lean runtime is not in the
    package) and hardware compatibility (`setHardwareCompatibilityLevel() is unsupported`), measured with 1.7.1;
    BackendError FG505 for weights that can be replaced or are left out, where there is no GPU.
    """
    if job.version_compatible or switched_on(job, "VERSION_COMPATIBLE"):
        raise _lacks("--version-compatible", "version-compatible engines", "leave it out, or build for target tensorrt")
    if job.hardware_compatibility_level not in ("", "none"):
        do = "name the chips instead: --target tensorrt-rtx:sm89+sm120 makes one engine for both"
        raise _lacks("--hardware-compatibility-level", "hardware compatibility levels", do)
    needy = next((flag for flag in ("REFIT", "REFIT_IDENTICAL", "STRIP_PLAN") if switched_on(job, flag)), "")
    needy = "--refit" if job.refit else "--strip-weights" if job.strip_weights else needy
    if needy and len(job.chips) > 1:
        do = f"name one chip, or leave {needy} out"
        raise _lacks(needy, f"refittable or stripped engines for several chips ({', '.join(job.chips)})", do)
    if needy and not devices:
        raise BackendError(
            "refittable and stripped engines are built on a GPU only, and this machine has none",
            where=needy,
            why="everything else tensorrt-rtx builds without one (measured with 1.7.1)",
            do=f"leave {needy} out, or build on a machine with a GPU",
            code="FG505",
        )
    if job.load_timing_cache or job.save_timing_cache:
        return ["tensorrt-rtx has no timing cache: tactics are chosen on the device, the option changes nothing"]
    return []


def why_not_here(version: str, devices: Sequence[str]) -> str:
    """Why this version cannot build on this machine; empty where it can. `devices`: chips of the GPUs in it."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _FIRST_WITHOUT_GPU and not devices:
        return f"version {version} needs a GPU to build; 1.5 and later do not: pip install -U tensorrt-rtx"
    return ""


def chips(trt: Any, job: BuildJob, devices: Sequence[str]) -> tuple[str, ...]:
    """The chips to build for: those of the job, else the first GPU of the machine. Raises UsageError."""
    known = [name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    asked = job.chips or tuple(devices[:1])
    if not asked:
        able = [chip for chip in targets.load("tensorrt-rtx").chips if chip in known]
        raise UsageError(
            "no chip was named, and this machine has no GPU to take it from",
            where="--target",
            why=f"of the chips that tensorrt-rtx builds for, {', '.join(able)} run FP8",
            do=f"name one or several: --target tensorrt-rtx:{'+'.join(able[:2])}",
            code="FG100",
        )
    for chip in asked:
        if chip not in known:
            raise UsageError(
                f"tensorrt-rtx {trt.__version__} does not build for the chip '{chip}'",
                where="--target",
                why=f"it builds for {', '.join(known)}",
                do=did_you_mean(chip, known),
                code="FG101",
            )
    return asked


def configure(trt: Any, config: Any, job: BuildJob, asked: Sequence[str]) -> None:
    """Sets the chips. Always: without them the engine's header promises chips that its programs cannot serve."""
    config.num_compute_capabilities = len(asked)
    for index, chip in enumerate(asked):
        config.set_compute_capability(trt.ComputeCapability.__members__[chip.upper()], index)


def timing_cache(trt: Any, config: Any, job: BuildJob) -> Any:
    """None: there is no timing cache here."""
    return None


def _lacks(option: str, what: str, do: str) -> UsageError:
    why = "measured with tensorrt_rtx 1.7.1"
    return UsageError(f"tensorrt-rtx has no {what}", where=option, why=why, do=do, code="FG100")
