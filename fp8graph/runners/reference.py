"""The exact reference: ONNX Runtime under settings that compute FP8 graphs as written, other forms expanded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from fp8graph.base.errors import BackendError
from fp8graph.graph import keys
from fp8graph.graph.load import load
from fp8graph.runners.expand import attention, bfloat16
from fp8graph.runners.onnxruntime import OnnxRuntime


def reference(model: Path | str | ir.Model, libraries: Sequence[str] = ()) -> OnnxRuntime:
    """A runner for a model file or a model of ours; `libraries` hold its own operators.

    A file that needs no expanding is loaded by the runtime itself.
    """
    if isinstance(model, ir.Model):
        return OnnxRuntime(attention.expand(model), libraries=libraries)
    source = load(model)
    expanded = bfloat16.expand(attention.expand(source.model))
    if expanded is not source.model:
        return OnnxRuntime(expanded, libraries=libraries)
    try:
        return OnnxRuntime(Path(model), libraries=libraries)
    except BackendError as refused:
        # ONNX Runtime refuses some valid files, such as those with two nodes of one name; the model itself may do.
        TopologicalSortPass()(expanded)
        keys.name_everything(expanded)
        try:
            return OnnxRuntime(expanded, libraries=libraries)
        except BackendError:
            raise refused from None
