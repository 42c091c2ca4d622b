"""Bridge to onnx-graphsurgeon for users' scripts; it is not our IR."""

from __future__ import annotations

import sys
from typing import Any

import onnx


def is_graph(model: Any) -> bool:
    """Whether `model` is an onnx_graphsurgeon.Graph; does not import the package to find out."""
    module = sys.modules.get("onnx_graphsurgeon")
    return module is not None and isinstance(model, module.Graph)


def to_proto(graph: Any) -> onnx.ModelProto:
    """Exports a Graph; the caller's object stays as it is."""
    import onnx_graphsurgeon

    proto: onnx.ModelProto = onnx_graphsurgeon.export_onnx(graph, do_type_check=False)
    return proto


def from_proto(proto: onnx.ModelProto) -> Any:
    """Imports a model as a Graph."""
    import onnx_graphsurgeon

    return onnx_graphsurgeon.import_onnx(proto)
