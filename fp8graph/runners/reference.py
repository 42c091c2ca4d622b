"""The exact reference: ONNX Runtime under settings that compute FP8 graphs as written, other forms expanded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from fp8graph.base.errors import BackendError, InputError
from fp8graph.graph import keys, opset
from fp8graph.graph.inlining import inline
from fp8graph.graph.load import load
from fp8graph.runners.base import Runner
from fp8graph.runners.coded import around
from fp8graph.runners.expand import everything
from fp8graph.runners.onnxruntime import OnnxRuntime

# ONNX Runtime 1.31 loads IR versions up to 13, 1.32 up to 14; both promise opset 7 and above.
_IR_VERSION, _OLDEST, _RAISED = 10, 7, 13


def reference(model: Path | str | ir.Model, libraries: Sequence[str] = (), providers: Sequence[str] = ()) -> Runner:
    """A runner for a model file or a model of ours; `libraries` hold its own operators, `providers` run it.

    Where inputs or outputs are codes that say what they stand for (a cache in FP8), it is fed floats, and gives floats.

    A file that needs no expanding is loaded by the runtime itself.
    """
    held = model if isinstance(model, ir.Model) else load(model).model
    expanded = everything.operators_of(held)
    file = None if isinstance(model, ir.Model) else Path(model)
    if file is not None:
        expanded = everything.numbers(expanded)  # a model of ours is expanded by the runner itself
    given = file if file is not None and expanded is held else expanded
    try:
        return around(OnnxRuntime(given, libraries=libraries, providers=providers), held)
    except BackendError as refused:
        if refused.code != "FG133":  # a provider is missing
            raise
        # ONNX Runtime refuses some valid models, such as those with two nodes of one name; a tidy copy may do.
        tidy = expanded.clone(deep_copy=True) if expanded is model else expanded
        try:
            return around(OnnxRuntime(_tidied(tidy), libraries=libraries, providers=providers), held)
        except (BackendError, InputError):
            raise refused from None


def _tidied(model: ir.Model) -> ir.Model:
    """The model, changed in place: functions inlined, nodes sorted and named, versions that the runtime knows."""
    inline(model, lambda function: True)
    TopologicalSortPass()(model)
    keys.name_everything(model)
    model.ir_version = _IR_VERSION
    if opset.opset_of(model) < _OLDEST:
        opset.raise_opset(model, _RAISED)
    return model
