"""Small graphs with Q/DQ put here and there, right and wrong, always the same for one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import engine_models
import numpy as np
import onnx


class _Maker:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.g = engine_models.Graph(self.random.choice(["fp16", "fp32", "bf16"]))
        self.count = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def activation(self, value: str) -> str:
        """Mostly a pair, sometimes none, two, or one in front of something that FP8 does not pass."""
        chance = self.random.random()
        if chance < 0.2:
            return value
        pair = self.g.qdq(value, self.name("a"), self.random.choice([0.01, 0.02, 0.125]))
        if chance < 0.3:
            return self.g.op(self.random.choice(["Relu", "Neg", "Identity", "Abs"]), [pair], self.name("between"))
        return self.g.qdq(pair, self.name("b"), 0.02) if chance < 0.4 else pair

    def weight(self, shape: Sequence[int], out: int) -> str:
        """Mostly FP8 with one scale, or one for each index of `out`; sometimes along another axis, or high."""
        chance = self.random.random()
        name, seed = self.name("w"), self.random.randrange(99)
        if chance < 0.15:
            return self.g.weight(shape, name, seed)
        axis = None if chance < 0.5 else out if chance < 0.85 else (out + 1) % len(shape)
        return self.g.weight8(shape, name, axis, seed)


def products(seed: int) -> onnx.ModelProto:
    """Some MatMuls and Gemms behind one another, with what may lie in between."""
    make = _Maker(seed)
    g, width = make.g, make.random.choice([8, 20, 32])
    value = g.input("x", [make.random.choice([1, 4, 17]), width])
    for _ in range(make.random.randrange(3, 7)):
        kind, wide = (
            make.random.choice(["MatMul", "MatMul", "Gemm", "Turned", "Relu", "Add"]),
            make.random.choice([8, 24, 33]),
        )
        if kind == "MatMul":
            value = g.op("MatMul", [make.activation(value), make.weight([width, wide], 1)], make.name("mm"))
        elif kind == "Gemm":
            value = g.op("Gemm", [make.activation(value), make.weight([wide, width], 0)], make.name("gemm"), transB=1)
        elif kind == "Turned":
            turned = g.op("Transpose", [make.weight([wide, width], 0)], make.name("turned"), perm=[1, 0])
            value = g.op("MatMul", [make.activation(value), turned], make.name("mm"))
        else:
            inputs = [value] if kind == "Relu" else [value, g.constant(_like(g, 0.5), make.name("c"))]
            value = g.op(kind, inputs, make.name(kind.lower()))
            continue
        width = wide
    g.output(g.op("Softmax", [value], "end"))
    return g.model()


def convolutions(seed: int) -> onnx.ModelProto:
    """Some Convs behind one another, with kernels of all sizes, groups and pooling."""
    make = _Maker(seed)
    g, channels = make.g, make.random.choice([3, 8, 16])
    value = g.input("x", [1, channels, 16, 16])
    for _ in range(make.random.randrange(3, 6)):
        kind = make.random.choice(["Conv", "Conv", "depthwise", "Relu", "MaxPool"])
        if kind in ("Conv", "depthwise"):
            k, out = make.random.choice([1, 3, 5, 7]), make.random.choice([8, 12, 32])
            shape = [channels, 1, k, k] if kind == "depthwise" else [out, channels, k, k]
            group = {"group": channels} if kind == "depthwise" else {}
            pair = [make.activation(value), make.weight(shape, 0)]
            value = g.op("Conv", pair, make.name("conv"), pads=[k // 2] * 4, **group)
            channels = channels if kind == "depthwise" else out
        elif kind == "MaxPool":
            early = make.activation(value)
            value = g.op("MaxPool", [early], make.name("pool"), kernel_shape=[3, 3], pads=[1] * 4)
        else:
            value = g.op("Relu", [value], make.name("relu"))
    g.output(g.op("Softmax", [value], "end"))
    return g.model()


def _like(g: engine_models.Graph, value: float) -> np.ndarray:
    return np.asarray(value, engine_models.ARRAYS[g.kind])
