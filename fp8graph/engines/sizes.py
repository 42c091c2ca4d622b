"""How large an op is: multiply-accumulates and weight, where shapes are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from fp8graph.data.plan import Shapes
from fp8graph.engines.sites import constants
from fp8graph.graph import protos, walk

_Shape = tuple[int, ...]


def op_sizes(model: ir.Model, shapes: Shapes) -> dict[str, tuple[int | None, int | None]]:
    """Multiply-accumulates and weight bytes of every MatMul, Gemm and Conv by op key; None where they are not known.

    Shapes are those at the optimum of `shapes`, where the model leaves them open. The weight counts one byte for each
    element, whatever it is stored in: so shares compare what FP8 makes of it. A product of two activations has none.
    A body counts once, however often it runs; bodies of functions are not inferred.
    """
    wanted = {name: profile.opt for name, profile in shapes.items()}
    fitting = {
        value.name: wanted[value.name]
        for value in model.graph.inputs
        if value.name in wanted and (value.shape is None or len(value.shape) == len(wanted[value.name]))
    }
    try:
        inferred = protos.concrete_shapes(model, fitting)
    except Exception:  # onnx raises many types; a size is no reason to fail
        inferred = {}
    scopes = walk.scope_table(model)
    known = constants(model)

    def shape(value: ir.Value | None) -> _Shape | None:
        if value is None:
            return None
        dims: Sequence[object] | None = inferred.get(walk.qualified(value, scopes))
        if dims is None and value.shape is not None:
            dims = list(value.shape)
        if dims is None or not all(isinstance(size, int) for size in dims):
            return None
        return tuple(int(str(size)) for size in dims)

    sizes = {}
    for place in walk.walk(model):
        node = place.node
        if node.op_type in ("MatMul", "Gemm", "Conv") and len(node.inputs) >= 2:
            a, b, y = shape(node.inputs[0]), shape(node.inputs[1]), shape(node.outputs[0])
            weights = [
                dims
                for value, dims in zip(node.inputs[:2], (a, b), strict=True)
                if value is not None and id(value) in known
            ]
            known_weights = [dims for dims in weights if dims is not None]
            held = sum(math.prod(dims) for dims in known_weights) if len(known_weights) == len(weights) else None
            sizes[place.key] = (_macs(node, a, b, y), held)
    return sizes


def _macs(node: ir.Node, a: _Shape | None, b: _Shape | None, y: _Shape | None) -> int | None:
    """Multiply-accumulates of one product.

    MatMul  [.., M, K] x [.., K, N] -> batch * M * N * K
    Gemm    M * N * K
    Conv    [N, C, ..] x [O, C/g, k..] -> elements of the output * C/g * k..
    """
    if node.op_type == "Conv":
        return math.prod(y) * math.prod(b[1:]) if y is not None and b is not None else None
    if a is None or b is None or not a or not b:
        return None
    if node.op_type == "Gemm":
        return _gemm_macs(node.attributes, a, b)
    if len(a) == 1 or len(b) == 1:
        return max(math.prod(a), math.prod(b))
    batch = y[:-2] if y is not None else a[:-2] if len(b) == 2 else None
    return math.prod(batch) * a[-2] * a[-1] * b[-1] if batch is not None else None


def _gemm_macs(attributes: Mapping[str, ir.Attr], a: _Shape, b: _Shape) -> int | None:
    if len(a) != 2 or len(b) != 2:
        return None
    turned = [bool(name in attributes and attributes[name].as_int()) for name in ("transA", "transB")]
    m, k = reversed(a) if turned[0] else a
    return m * k * (b[0] if turned[1] else b[1])
