"""Let data movement on a weight go into the weight: Transpose, Reshape, Cast and their like in front of a product.

What it does   Replaces the node by a constant that is moved lazily, as it is written.
               1. Transpose, Reshape, Flatten, Squeeze, Unsqueeze, Identity of a constant.
               2. Cast between float types of a constant.
               Only where everything that reads the result is a Conv, Gemm or MatMul, or such a movement again.
Why            Exporters leave a tied output head as Transpose(W): the quantized weight must be the one that the
               product reads, for its scales run along output channels.
Exactness      exact: values move, or are converted as the Cast would
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import edit, tensors, walk

_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast"})
_READERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
Move = Callable[[tensors.Array], tensors.Array]


@dataclass(frozen=True)
class FoldWeightLayout(RewritePass):
    """Movement of a constant in front of a product becomes part of the constant."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """In graph order, so that chains fold from their begin."""
        changed, stale = 0, []
        for place in list(walk.walk(model)):
            node, graph = place.node, place.graph
            if node.op_type not in _MOVES or node.domain not in ("", "ai.onnx") or isinstance(graph, ir.Function):
                continue
            source, output = node.inputs[0], node.outputs[0]
            if not self._movable(node) or source is None or output.is_graph_output():
                continue
            move = _movement(node)
            shape = _moved_shape(move, source)
            if move is None or shape is None:
                continue
            dtype = ir.DataType(node.attributes["to"].as_int()) if node.op_type == "Cast" else source.dtype
            if dtype not in tensors.FLOATS or source.dtype not in tensors.FLOATS:
                continue
            assert dtype is not None and output.name is not None
            value = tensors.lazy(output.name, shape, dtype, _mover(source, move, dtype))
            stale += [item for item in node.inputs if item is not None]
            name = output.name
            output.name = f"{name}_moved"
            value.name = name
            output.replace_all_uses_with(value)
            edit.remove([node])
            graph.register_initializer(value)
            changed += 1
        edit.drop_unused_initializers(stale)
        return changed

    @staticmethod
    def _movable(node: ir.Node) -> bool:
        if not all(value is None or tensors.is_constant(value) for value in node.inputs):
            return False
        users = node.outputs[0].uses()
        return bool(users) and all(
            (user.op_type in _READERS and slot < 2) or (user.op_type in _MOVES and slot == 0) for user, slot in users
        )


def _moved_shape(move: Move | None, source: ir.Value) -> tuple[int, ...] | None:
    """The result's shape by running the movement on an array without storage."""
    assert source.const_value is not None
    probe = np.broadcast_to(np.zeros((), np.int8), source.const_value.shape.numpy())
    try:
        return tuple(int(d) for d in move(probe).shape) if move is not None else None
    except (ValueError, IndexError):
        return None


def _mover(source: ir.Value, move: Move, dtype: ir.DataType) -> Callable[[], tensors.Array]:
    tensor = source.const_value
    assert tensor is not None
    kind = tensors.FLOATS[dtype]
    wanted = np.dtype(np.float64) if kind == "fp64" else tensors.NUMPY[kind]

    def compute() -> tensors.Array:
        moved = move(tensor.numpy())
        with np.errstate(over="ignore"):  # too large a number becomes an infinity, as by Cast
            return np.ascontiguousarray(moved if moved.dtype == wanted else moved.astype(wanted))

    return compute


def _movement(node: ir.Node) -> Move | None:
    """What the node does to its first input, with everything it says read now: the node itself goes."""
    kind = node.op_type
    if kind == "Transpose":
        perm = tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None
        return lambda array: array.transpose(perm)
    if kind in ("Identity", "Cast"):
        return lambda array: array
    if kind == "Flatten":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        return lambda array: _flattened(array, axis)
    numbers = _numbers(node)
    if kind == "Reshape" and numbers is not None:
        sizes = numbers
        keep_zero = "allowzero" in node.attributes and bool(node.attributes["allowzero"].as_int())
        return lambda array: array.reshape(
            [array.shape[i] if d == 0 and not keep_zero else d for i, d in enumerate(sizes)]
        )
    if kind == "Squeeze":
        return lambda array: np.squeeze(array, numbers)
    if kind == "Unsqueeze" and numbers is not None:
        axes = numbers
        return lambda array: np.expand_dims(array, axes)
    return None


def _numbers(node: ir.Node) -> tuple[int, ...] | None:
    """Axes or sizes: the second input, or, before opset 13, the attribute; None where they are left out."""
    second = node.inputs[1] if len(node.inputs) > 1 else None
    if second is not None:
        return tuple(int(d) for d in tensors.read(second).reshape(-1))
    return tuple(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None


def _flattened(array: tensors.Array, axis: int) -> tensors.Array:
    axis += array.ndim if axis < 0 else 0
    return array.reshape(int(np.prod(array.shape[:axis], dtype=np.int64)), -1)
