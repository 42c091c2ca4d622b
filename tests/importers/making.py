"""Small checkpoints, good and bad, and the graphs that they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from tests.small import model

Array = np.ndarray[Any, np.dtype[Any]]
NUMPY = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "U8": np.uint8,
    "I8": np.int8,
    "F4": np.uint8,
}


def file_of(header: Any, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, tensors: Mapping[str, tuple[str, Array]]) -> Path:
    """A safetensors file of our own making: the library that the product could use writes no FNUZ."""
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).astype(NUMPY[dtype]).tobytes()
        header[name] = entry(dtype, list(array.shape), len(data), len(data) + len(raw))
        data += raw
    path.write_bytes(file_of(header, data))
    return path


def config(folder: Path, **quantization: Any) -> None:
    """A config.json with a section on quantization."""
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))


def codes(shape: tuple[int, ...], dtype: str = "F8_E4M3", *, seed: int = 0) -> Array:
    """Random finite values that the type holds exactly, as float32."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 16
    return values.astype(NUMPY[dtype]).astype(np.float32)


def linear(shape: tuple[int, int], *, weight: Array | None = None, name: str = "l.weight") -> onnx.ModelProto:
    """y = x W^T with a weight [out, in] under its own name."""
    out, inner = shape
    return renamed(
        model(
            f"(float[n,{inner}] x, float[{out},{inner}] w) => (float[n,{out}] y) {{ y = Gemm<transB=1>(x, w) }}",
            w=np.zeros(shape) if weight is None else weight,
        ),
        w=name,
    )


def renamed(proto: onnx.ModelProto, **names: str) -> onnx.ModelProto:
    """The model with other names of weights, which the parser of ONNX's text does not take."""
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        node.input[:] = [names.get(item, item) for item in node.input]
    return proto


def run(proto: onnx.ModelProto, **feeds: Array) -> Array:
    """The first output in ONNX Runtime, nothing optimized."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, feeds)[0]
    return found


def weight_in(proto: onnx.ModelProto) -> Array:
    """What ONNX Runtime takes the weight of `linear` for: the identity goes in."""
    size = proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    return run(proto, x=np.eye(size, dtype=np.float32)).T


def held(proto: onnx.ModelProto) -> dict[str, Array]:
    """Float initializers by name."""
    return {
        item.name: numpy_helper.to_array(item)
        for item in proto.graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT
    }
