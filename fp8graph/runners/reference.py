"""The exact reference: ONNX Runtime under settings that compute FP8 graphs as written, other forms expanded."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from fp8graph.graph.load import load
from fp8graph.runners.expand.bfloat16 import expand
from fp8graph.runners.onnxruntime import OnnxRuntime


def reference(model: Path | str | ir.Model) -> OnnxRuntime:
    """A runner for a model file or a model of ours. A file that needs no expanding is loaded by the runtime itself."""
    if isinstance(model, ir.Model):
        return OnnxRuntime(model)
    source = load(model)
    expanded = expand(source.model)
    return OnnxRuntime(Path(model)) if expanded is source.model else OnnxRuntime(expanded)
