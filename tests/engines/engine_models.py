"""Small quantized models, built node by node, and plans that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fp8graph.data.plan import Decision, Plan, Profile, Quant, Reason, Scale
from fp8graph.formats.spec import PerAxis, PerTensor
from fp8graph.graph.load import load
from fp8graph.graph.walk import walk

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
ARRAYS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
E4M3FN, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
_FP8 = {np.dtype(E4M3FN): TensorProto.FLOAT8E4M3FN, np.dtype(E5M2): TensorProto.FLOAT8E5M2}
KEY = "fp8graph.key"


class Graph:
    """A graph under construction, in one type, its scales in another. Every op is named, and its output after it."""

    def __init__(self, kind: str = "fp16", prefix: str = "", scales: str = "fp32") -> None:
        self.kind, self.prefix, self.scales = kind, prefix, scales
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []

    def input(self, name: str, shape: Sequence[int | str], type_: int | None = None) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, type_ or TYPES[self.kind], shape))
        return name

    def output(self, name: str, shape: Sequence[int | str] | None = None, type_: int | None = None) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, type_ or TYPES[self.kind], shape))
        return name

    def constant(self, array: Any, name: str) -> str:
        array, name = np.asarray(array), self.prefix + name
        if array.dtype in _FP8:
            tensor = helper.make_tensor(name, _FP8[array.dtype], array.shape, array.tobytes(), raw=True)
        else:
            tensor = numpy_helper.from_array(array, name)
        self.constants.append(tensor)
        return name

    def op(self, op_type: str, inputs: Sequence[str], name: str, outputs: int = 1, **attributes: Any) -> str:
        name = self.prefix + name
        names = [f"{name}_o" + (str(i) if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, **attributes))
        return names[0]

    def weight(self, shape: Sequence[int], name: str, seed: int = 0) -> str:
        values = np.random.default_rng(seed).standard_normal(shape) * 0.1
        return self.constant(values.astype(ARRAYS[self.kind]), name)

    def qdq(self, value: str, name: str, scale: float = 0.02, format_: type = E4M3FN) -> str:
        """An activation through Q and DQ: one scale of rank 0, the format by `output_dtype`."""
        s = self.constant(np.asarray(scale, ARRAYS[self.scales]), f"{name}_scale")
        stored = self.op("QuantizeLinear", [value, s], f"{name}_q", output_dtype=int(_FP8[np.dtype(format_)]))
        return self._down(self.op("DequantizeLinear", [stored, s], f"{name}_dq"), name)

    def _down(self, value: str, name: str) -> str:
        """From the scale's type down to the graph's: engines take such a Cast up."""
        return value if self.kind == self.scales else self.op("Cast", [value], f"{name}_c", to=TYPES[self.kind])

    def weight8(self, shape: Sequence[int], name: str, axis: int | None = None, seed: int = 0) -> str:
        """An FP8 weight behind DQ, with a scale for each index of `axis`, or one."""
        values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(E4M3FN)
        scale = np.full(() if axis is None else shape[axis], 0.02, ARRAYS[self.scales])
        stored, s = self.constant(values, name), self.constant(scale, f"{name}_scale")
        attributes = {} if axis is None else {"axis": axis}
        return self._down(self.op("DequantizeLinear", [stored, s], f"{name}_dq", **attributes), name)

    def proto(self, name: str = "g") -> onnx.GraphProto:
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.constants)

    def model(self, functions: Sequence[onnx.FunctionProto] = (), keys: bool = True) -> onnx.ModelProto:
        """The model, with op keys in the metadata of every node as `optimize` leaves them."""
        opsets = [helper.make_opsetid("", 21)] + ([helper.make_opsetid("local", 1)] if functions else [])
        model = helper.make_model(self.proto(), opset_imports=opsets, functions=list(functions), ir_version=10)
        if keys:
            _write_keys(model.graph, "")
        return model


def _write_keys(graph: onnx.GraphProto, scope: str) -> None:
    for node in graph.node:
        node.metadata_props.add(key=KEY, value=scope + node.output[0])
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _write_keys(attribute.g, f"{scope}{node.output[0]}.{attribute.name}/")


def network(drop: str = "", early: bool = False, high: str = "", kernel: int = 3) -> onnx.ModelProto:
    """Conv, MaxPool, Conv, Gemm and MatMul, all quantized, in fp16.

    drop    name of an activation whose Q/DQ pair is left out: the op that reads it breaks
    early   the pair before the second Conv stands in front of the MaxPool
    high    name of a weight that stays in fp16
    """
    g = Graph()
    x = g.input("x", [1, 16, 16, 16])

    def pair(value: str, name: str) -> str:
        return value if name == drop else g.qdq(value, name)

    def weight(shape: Sequence[int], name: str, axis: int | None) -> str:
        return g.weight(shape, name) if name == high else g.weight8(shape, name, axis)

    y = g.op("Conv", [pair(x, "a1"), weight([32, 16, kernel, kernel], "w1", None)], "conv1", pads=[kernel // 2] * 4)
    y = g.op("Relu", [y], "relu1")
    y = pair(y, "a2") if early else y
    y = g.op("MaxPool", [y], "pool", kernel_shape=[2, 2], strides=[2, 2])
    y = y if early else pair(y, "a2")
    y = g.op("Conv", [y, weight([32, 32, 3, 3], "w2", 0)], "conv2", strides=[2, 2], pads=[1] * 4)
    y = g.op("Flatten", [y], "flat")
    y = g.op("Gemm", [pair(y, "a3"), weight([64, 512], "w3", 0)], "gemm", transB=1)
    y = g.op("MatMul", [pair(y, "a4"), weight([64, 48], "w4", 1)], "mm")
    g.output(y)
    return g.model()


def matmul(rows: int | str = 32, weight_only: bool = False, scale: float = 0.02, **options: Any) -> onnx.ModelProto:
    """One MatMul [rows, 64] x [64, 128], quantized."""
    g = Graph()
    x = g.input("x", [rows, 64])
    a = x if weight_only else g.qdq(x, "a", scale, **options)
    g.output(g.op("MatMul", [a, g.weight8([64, 128], "w")], "mm"))
    return g.model()


def blocked() -> onnx.ModelProto:
    """One MatMul with a scale for every 32 rows of its weight, and a quantized activation."""
    g = Graph(scales="fp16")
    a = g.qdq(g.input("x", [32, 64]), "a")
    w, s = g.constant(np.ones((64, 128), E4M3FN), "w"), g.constant(np.full((2, 128), 0.02, np.float16), "s")
    g.output(g.op("MatMul", [a, g.op("DequantizeLinear", [w, s], "w_dq", axis=0, block_size=32)], "mm"))
    return g.model()


def attention(quantized: bool = True, queries: int = 64, softmax: bool = True) -> onnx.ModelProto:
    """One attention of four heads in fp16, in the form that TensorRT-RTX fuses."""
    g = Graph()
    q, k, v = (g.input(n, [1, 4, queries if n == "q" else 64, 64]) for n in "qkv")
    if quantized:
        q, k, v = (g.qdq(value, name) for value, name in zip((q, k, v), "qkv", strict=True))
    k = g.op("Transpose", [k], "kt", perm=[0, 1, 3, 2])
    s = g.op("MatMul", [q, k], "scores")
    s = g.op("Mul", [s, g.constant(np.float16(0.125), "root")], "scaled")
    p = g.op("Softmax", [s], "softmax", axis=-1)
    if quantized and softmax:
        p = g.qdq(p, "p", 1 / 448)
    g.output(g.op("MatMul", [p, v], "mixed"))
    return g.model()


def merged() -> onnx.ModelProto:
    """Two MatMuls of one input and equal scales, as in a gated MLP: sm89 merges them into one product."""
    g = Graph()
    a = g.qdq(g.input("x", [32, 64]), "a")
    up = g.op("MatMul", [a, g.weight8([64, 128], "w_up", seed=1)], "up")
    gate = g.op("MatMul", [a, g.weight8([64, 128], "w_gate", seed=2)], "gate")
    g.output(g.op("Mul", [up, gate], "both"))
    return g.model()


def branches(same_names: bool = False, broken: str = "", scales: str = "fp16") -> onnx.ModelProto:
    """A MatMul in each branch of an If; `broken`: the branch whose activation is not quantized.

    With scales in fp32 it does not build: both branches then quantize one tensor through a conversion of one name.
    """
    bodies = {}
    for branch in ("then", "else"):
        b = Graph(prefix=f"{branch}_", scales=scales)
        a = "x" if branch == broken else b.qdq("x", "a")
        b.output(b.op("MatMul", [a, b.weight8([64, 128], "w")], "mm"), [32, 128])
        if same_names:
            b.nodes[-1].name = "mm"
        bodies[f"{branch}_branch"] = b.proto(branch)
    g = Graph()
    g.input("x", [32, 64])
    g.input("c", [], TensorProto.BOOL)
    g.output(g.op("If", ["c"], "if", **bodies))
    return g.model()


def loop() -> onnx.ModelProto:
    """A MatMul in the body of a Loop that runs three times."""
    b = Graph(prefix="in_")
    b.input("i", [], TensorProto.INT64)
    b.input("go", [], TensorProto.BOOL)
    b.input("h", [32, 64])
    b.output(b.op("Identity", ["go"], "on"), [], TensorProto.BOOL)
    b.output(b.op("MatMul", [b.qdq("h", "a"), b.weight8([64, 64], "w")], "mm"), [32, 64])
    g = Graph()
    g.input("x", [32, 64])
    start = [g.constant(np.int64(3), "trips"), g.constant(np.bool_(True), "true"), "x"]
    g.output(g.op("Loop", start, "loop", body=b.proto("body")), [32, 64])
    return g.model()


def function() -> onnx.ModelProto:
    """Q and DQ of the activation lie in a local function."""
    g = Graph()
    g.input("x", [32, 64])
    s, z = g.constant(np.float16(0.02), "s"), g.constant(np.zeros((), E4M3FN), "z")
    a = g.op("Fake", ["x", s, z], "fake", domain="local")
    g.output(g.op("MatMul", [a, g.weight8([64, 128], "w")], "mm"))
    nodes = [
        helper.make_node("QuantizeLinear", ["X", "S", "Z"], ["q"], name="inner_q"),
        helper.make_node("DequantizeLinear", ["q", "S", "Z"], ["Y"], name="inner_dq"),
    ]
    return g.model(
        [helper.make_function("local", "Fake", ["X", "S", "Z"], ["Y"], nodes, [helper.make_opsetid("", 21)])]
    )


def plan_of(
    model: onnx.ModelProto, shapes: Mapping[str, Profile] | None = None, weight_only: Sequence[str] = ()
) -> Plan:
    """A plan that quantizes every product of the model, in FP8 on both sides; `weight_only`: keys of exceptions."""
    ops = {}
    reason = Reason("FG201", "test", "quantized")
    for place in walk(load(model).model):
        if place.node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        values = [value.name or "" for value in place.node.inputs[:2] if value is not None]
        activation = Quant(values[0], "e4m3fn", PerTensor(), Scale("given", "amax", 0.02))
        weight = Quant(values[1], "e4m3fn", PerAxis(0), Scale("computed", "amax"))
        inputs = {1: weight} if place.key in weight_only else {0: activation, 1: weight}
        ops[place.key] = Decision(
            place.node.op_type, place.node.name or "", "quantize", reason, high="fp16", inputs=inputs
        )
    return Plan(structure="", target="tensorrt-rtx:sm89", recipe={}, ops=ops, shapes=dict(shapes or {}))
