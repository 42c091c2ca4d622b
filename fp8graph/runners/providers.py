"""ONNX Runtime's execution providers by the short names that people type: `cpu`, `cuda:0`, `trt`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fp8graph.base.errors import BackendError, UsageError
from fp8graph.base.names import did_you_mean

CPU = "CPUExecutionProvider"
SHORT = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "trt": "TensorrtExecutionProvider",
    "dml": "DmlExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}


def resolved(names: Sequence[str]) -> list[Any]:
    """The providers as a session takes them, in the order given; the CPU alone where none was asked for.

    `NAME:N` is the device N; ONNX Runtime's own names are taken, too. Raises UsageError FG101 for a name that there is
    not, BackendError FG505 for one that the installed ONNX Runtime lacks, with those that it has.
    """
    if not names:
        return [CPU]
    import onnxruntime

    here = list(onnxruntime.get_available_providers())
    return [_one(name, here) for name in names]


def _one(text: str, here: Sequence[str]) -> Any:
    name, _, device = text.partition(":")
    full = SHORT.get(name.lower(), name)
    if full not in (*SHORT.values(), *here) or not (device.isdigit() or ":" not in text):
        raise UsageError(
            f"there is no provider '{text}'",
            where="--providers",
            why=f"known: {', '.join(SHORT)}, each with :N for its device N",
            do=did_you_mean(name, SHORT),
            code="FG101",
        )
    if full not in here:
        raise missing(text, "it is not part of the ONNX Runtime that is installed", here)
    return (full, {"device_id": device}) if device else full


def check_used(asked: Sequence[Any], used: Sequence[str]) -> None:
    """Raises BackendError FG505 where a session has silently left out a provider, lacking its libraries or device."""
    for item in asked:
        name = item if isinstance(item, str) else item[0]
        if name not in used:
            raise missing(name, "ONNX Runtime could not load it: its libraries or its device are missing", used)


def missing(name: str, why: str, here: Sequence[str]) -> BackendError:
    """The error for a provider that cannot be had here."""
    short = {full: short for short, full in SHORT.items()}
    listed = ", ".join(short.get(item, item) for item in here)
    return BackendError(
        f"the provider '{name}' is not to be had on this machine",
        where="--providers",
        why=f"{why}; there is {listed}",
        do="leave --providers out, or: pip install onnxruntime-gpu",
        code="FG505",
    )
