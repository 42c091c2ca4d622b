"""OpenVINO on the CPU: ONNX files and models, and the blobs that its CPU plug-in exports.

As users run it: its own precision, which is bf16 where the CPU has bf16 and f32 elsewhere, unless a property says
otherwise. FP8 is emulated, and not bit by bit: openvino 2026.4.1 rounds to FP8 by way of fp16, so one E4M3 code in 250
is the neighbour of the right one (docs/openvino.md).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.base.errors import BackendError, InputError
from fp8graph.graph import tensors
from fp8graph.graph.save import to_proto
from fp8graph.runners.base import Feeds, Outputs, unusable

# How a blob of the CPU plug-in begins, from 2026.4 on.
MAGIC = b"RR_UPCVO"
# Where in OpenVINO's source it happened, and what was being checked.
_NOISE = re.compile(r"^(Exception from .*|Check '.*' failed at .*|FrontEnd API failed with .*)$")
_QUOTED = 300
# One at a time: with a request for each of several threads they once waited for each other for good (2026.4.1), and the
# plug-in takes all cores for one request anyway.
_TURN = threading.Lock()


class OpenVino:
    """One compiled model. `model` is the path of an ONNX file or of a blob, or a model of ours.

    properties   of the CPU plug-in by their own names, such as INFERENCE_PRECISION_HINT; a blob keeps none of those it
                 was compiled with (measured: a blob of f32 runs in bf16)
    libraries    shared libraries with the model's own operators

    Raises BackendError FG133 where OpenVINO is missing or refuses, InputError FG133 for a library.
    """

    def __init__(
        self, model: Path | ir.Model, *, properties: Mapping[str, str] | None = None, libraries: Sequence[str] = ()
    ) -> None:
        try:
            import openvino
        except Exception as error:  # a package that is half there raises whatever it likes
            raise unusable("openvino", "openvino", error) from error
        self._ov, settings = openvino, dict(properties or {})
        core = openvino.Core()
        for library in libraries:
            try:
                core.add_extension(library)
            except Exception as error:  # OpenVINO raises RuntimeError for everything, sometimes others
                raise InputError(
                    "a library of custom operators cannot be loaded",
                    where=library,
                    why=telling(error),
                    do="give the library that OpenVINO loads for this model",
                    code="FG133",
                ) from error
        try:
            if isinstance(model, Path) and _begins(model, MAGIC):
                self._compiled = core.import_model(model.read_bytes(), "CPU", settings)
            else:
                given = str(model) if isinstance(model, Path) else to_proto(model).SerializeToString()
                self._compiled = core.compile_model(core.read_model(given), "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError for everything, sometimes others
            raise _failed("OpenVINO cannot load the model", error) from error
        self._names = [_name(port) for port in self._compiled.outputs]
        self._inputs = [str(port.any_name) for port in self._compiled.inputs]
        self._request = self._compiled.create_infer_request()

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""
        return self._names

    def run(self, feeds: Feeds) -> Outputs:
        """Arrays by output name, bf16 as float32. Raises BackendError FG133 with OpenVINO's reason."""
        if missing := [name for name in self._inputs if name not in feeds]:
            why = f"no array was given for input '{missing[0]}'"  # a request would take that of the run before
            do = f"add an array called '{missing[0]}' to the data"
            raise BackendError("OpenVINO cannot run the model", why=why, do=do, code="FG133")
        try:
            with _TURN:
                given = {name: self._tensor(array) for name, array in feeds.items()}
                found = self._request.infer(given, share_outputs=False)
                arrays = [self._array(port, found[port]) for port in self._compiled.outputs]
        except Exception as error:  # OpenVINO raises RuntimeError for everything, sometimes others
            raise _failed("OpenVINO cannot run the model", error) from error
        return dict(zip(self._names, arrays, strict=True))

    def _array(self, port: Any, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A copy of an output; bf16, which comes under the name of float16, as float32."""
        if port.element_type != self._ov.Type.bf16:
            return np.array(array)
        return array.view(tensors.NUMPY["bf16"]).astype(np.float32)

    def _tensor(self, array: np.ndarray[Any, Any]) -> Any:
        if array.dtype != tensors.NUMPY["bf16"]:
            return array
        kind = self._ov.Type.bf16  # numpy's own bf16 is unknown to it: the bytes are handed over with their type
        return self._ov.Tensor(np.ascontiguousarray(array).view(np.uint16), self._ov.Shape(array.shape), kind)


def telling(error: Exception) -> str:
    """What OpenVINO said, on one line, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not _NOISE.match(line)] or [line for line in lines if line]
    text = " / ".join(said) or type(error).__name__
    return text if len(text) <= _QUOTED else text[:_QUOTED] + " ..."


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _name(port: Any) -> str:
    """The name of an output; of several, where ops were folded away, the one that the output itself goes by."""
    own = str(port.node.friendly_name).partition("/sink_port_")[0]
    return own if own in port.names else str(port.any_name)


def _failed(what: str, error: Exception) -> BackendError:
    return BackendError(what, why=telling(error), do="run the original model in OpenVINO first", code="FG133")
