"""What is asked of a result, counted and computed without our own code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

PRODUCTS = ("Conv", "Gemm", "MatMul")
_FP8 = (onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2)
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast")
# Written by ONNX Runtime itself where it is imported: no leftover of ours.
_SESSIONS = ".ses"


def session(model: str | bytes, *, plain: bool = False) -> onnxruntime.InferenceSession:
    """ONNX Runtime with the settings under which it computes FP8 graphs as they are written, or as it comes."""
    options = onnxruntime.SessionOptions()
    if not plain:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=[] if plain else ["ReluQuantRewrite"]
    )


def outputs(model: onnxruntime.InferenceSession, feeds: list[dict[str, Any]]) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Every array of every output over all feeds, by the output's name."""
    found: dict[str, list[np.ndarray[Any, Any]]] = {item.name: [] for item in model.get_outputs()}
    for feed in feeds:
        for name, value in zip(found, model.run(None, feed), strict=True):
            found[name].extend(_arrays(value))
    return found


def _arrays(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, Mapping):
        yield np.asarray([value[key] for key in sorted(value)])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _arrays(item)
    elif value is not None:
        yield np.asarray(value)


def sqnr(before: list[np.ndarray[Any, Any]], after: list[np.ndarray[Any, Any]]) -> float:
    """Signal to quantization noise in dB over all arrays of an output; infinite for equal ones."""
    assert [array.shape for array in before] == [array.shape for array in after]
    assert [array.dtype for array in before] == [array.dtype for array in after]
    signal, noise = 0.0, 0.0
    largest = max((float(np.abs(array).max()) for array in before if array.size), default=0.0) or 1.0
    for left, right in zip(before, after, strict=True):
        assert np.isfinite(right).all() or not np.isfinite(left).all()
        left, right = left.astype(np.float64) / largest, right.astype(np.float64) / largest
        signal, noise = signal + float((left**2).sum()), noise + float(((left - right) ** 2).sum())
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def interface(proto: onnx.ModelProto) -> list[bytes]:
    """Everything that the model says of its inputs and outputs; initialisers that are inputs, too, are left out."""
    held = {tensor.name for tensor in proto.graph.initializer}
    values = [*(value for value in proto.graph.input if value.name not in held), b"", *proto.graph.output]
    return [item if isinstance(item, bytes) else item.SerializeToString(deterministic=True) for item in values]


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The main graph, every body and every function."""

    def inside(graph: Any) -> Iterator[Any]:
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    yield from inside(body)

    for graph in (proto.graph, *proto.functions):
        yield from inside(graph)


def products(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Conv, Gemm and MatMul nodes wherever they lie."""
    return [n for g in graphs(proto) for n in g.node if n.op_type in PRODUCTS and n.domain in ("", "ai.onnx")]


def fp8_products(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Those of them whose operands both come from an FP8 DequantizeLinear, directly or through data movement."""
    everywhere = list(graphs(proto))
    makers = {name: node for graph in everywhere for node in graph.node for name in node.output if name}
    types = {t.name: t.data_type for graph in everywhere for t in getattr(graph, "initializer", ())}

    def stored(name: str) -> bool:
        """Whether these are FP8 codes."""
        node = makers.get(name)
        if node is None:
            return types.get(name) in _FP8
        if node.op_type in _MOVES:
            return stored(node.input[0])
        asked = [attribute.i for attribute in node.attribute if attribute.name == "output_dtype"]
        zero = types.get(node.input[2]) if len(node.input) > 2 else None
        return node.op_type == "QuantizeLinear" and (zero if zero is not None else next(iter(asked), 0)) in _FP8

    def from_fp8(name: str) -> bool:
        node = makers.get(name)
        while node is not None and node.op_type in _MOVES:
            node = makers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear" and stored(node.input[0])

    return [node for node in products(proto) if all(map(from_fp8, node.input[:2]))]


def scales(proto: onnx.ModelProto) -> list[np.ndarray[Any, Any]]:
    """Every constant scale of a Q or DQ."""
    held = {t.name: t for graph in graphs(proto) for t in getattr(graph, "initializer", ())}
    names = {n.input[1] for g in graphs(proto) for n in g.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    return [onnx.numpy_helper.to_array(held[name]).astype(np.float64) for name in sorted(names & held.keys())]


def left_behind(folder: Path) -> list[str]:
    """Everything below a folder, folders included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != _SESSIONS)
