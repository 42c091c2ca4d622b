"""Runners by name, as `m.onnx@onnxruntime` spells them. Each imports its runtime only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.runners.base import Runner

Open = Callable[[Path | ir.Model, Sequence[str], Mapping[str, str], Sequence[str]], Runner]


def _reference(
    model: Path | ir.Model, libraries: Sequence[str], settings: Mapping[str, str], providers: Sequence[str]
) -> Runner:
    from fp8graph.runners.reference import reference

    return reference(model, libraries, providers)


def _onnxruntime(
    model: Path | ir.Model, libraries: Sequence[str], settings: Mapping[str, str], providers: Sequence[str]
) -> Runner:
    from fp8graph.runners.onnxruntime import OnnxRuntime

    return OnnxRuntime(model, exact=False, libraries=libraries, providers=providers)


def _openvino(
    model: Path | ir.Model, libraries: Sequence[str], settings: Mapping[str, str], providers: Sequence[str]
) -> Runner:
    from fp8graph.runners.openvino import OpenVino

    return OpenVino(model, properties=settings, libraries=libraries)


def _engine_of(runtime: str) -> Open:
    def open_engine(
        model: Path | ir.Model, libraries: Sequence[str], settings: Mapping[str, str], providers: Sequence[str]
    ) -> Runner:
        from fp8graph.runners.engine import Engine

        if not isinstance(model, Path):
            do = f"build an engine of it: python -m fp8graph build MODEL -o ENGINE --target {runtime}"
            raise UsageError(f"{runtime} runs engines, no models", where=f"@{runtime}", do=do, code="FG101")
        return Engine(model, runtime, libraries=libraries)

    return open_engine


RUNNERS: Mapping[str, Open] = {
    "reference": _reference,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt-rtx": _engine_of("tensorrt-rtx"),
    "tensorrt": _engine_of("tensorrt"),
}


def open_runner(
    name: str,
    model: Path | ir.Model,
    libraries: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    providers: Sequence[str] = (),
) -> Runner:
    """A runner for a model, or for an engine where the runtime takes engines.

    settings   of the runtime by its own names: those that an engine was built with
    providers  of ONNX Runtime; other runtimes have none

    Raises UsageError FG101 for an unknown name, and what the runner raises.
    """
    if name not in RUNNERS:
        do = did_you_mean(name, RUNNERS)
        raise UsageError(f"there is no runner '{name}'", where=f"@{name}", do=do, code="FG101")
    return RUNNERS[name](model, libraries, settings or {}, providers)
