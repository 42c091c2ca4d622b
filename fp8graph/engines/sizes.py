"""How large things are: an op's multiply-accumulates and weight, where shapes are known; the constants of a model."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Container, Mapping, Sequence

import onnx_ir as ir

from fp8graph.base.errors import InputError
from fp8graph.data.plan import Shapes
from fp8graph.engines.sites import constants, operand
from fp8graph.graph import protos, walk
from fp8graph.runners.expand import quantized_attention, vendor_quantization

_Shape = tuple[int, ...]


def op_sizes(model: ir.Model, shapes: Shapes) -> dict[str, tuple[int | None, int | None]]:
    """Multiply-accumulates and weight bytes of every MatMul, Gemm and Conv by op key; None where they are not known.

    Shapes are those at the optimum of `shapes`, where the model leaves them open. The weight counts one byte for each
    element, whatever it is stored in: so shares compare what FP8 makes of it. A product of two activations has none.
    A body counts once, however often it runs; bodies of functions are not inferred.
    """
    model = quantized_attention.expand(model)
    with contextlib.suppress(InputError):  # an opset that cannot be raised: sizes behind such operators are not known
        model = vendor_quantization.expand(model)
    shape = _shapes_under(model, shapes)
    known = constants(model)
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


def _shapes_under(model: ir.Model, shapes: Shapes) -> Callable[[ir.Value | None], _Shape | None]:
    """A function that gives the shape of a value at the optimum of `shapes`, or None."""
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

    def shape(value: ir.Value | None) -> _Shape | None:
        if value is None:
            return None
        dims: Sequence[object] | None = inferred.get(walk.qualified(value, scopes))
        if dims is None and value.shape is not None:
            dims = list(value.shape)
        if dims is None or not all(isinstance(size, int) for size in dims):
            return None
        return tuple(int(str(size)) for size in dims)

    return shape


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
        return _gemm_macs(node, a, b)
    if len(a) == 1 or len(b) == 1:
        return max(math.prod(a), math.prod(b))
    batch = y[:-2] if y is not None else a[:-2] if len(b) == 2 else None
    return math.prod(batch) * a[-2] * a[-1] * b[-1] if batch is not None else None


def _gemm_macs(node: ir.Node, a: _Shape, b: _Shape) -> int | None:
    if len(a) != 2 or len(b) != 2:
        return None
    (m, k), (_, n) = _matrices(node, a, b)
    return m * k * n


def constant_bytes(model: ir.Model, planned: Mapping[int, float]) -> int | None:
    """Bytes of the constants that an engine of this model has to hold: its floating and quantized initializers.

    Each in the type in which it is read: behind QuantizeLinear or Cast, in what these make of it; behind nothing, as it
    is stored. `planned` maps the id() of a value to bytes an element where a plan decided on another type. Equal byte
    strings count once, as engines store them once. Integers are shapes and indices: they become part of the program.
    None where an initializer holds no data.
    """
    total, seen = 0.0, set[tuple[bytes, float]]()
    for _, graph in walk.graphs(model):
        if isinstance(graph, ir.Function):
            continue
        constants = [*graph.initializers.values(), *(out for node in graph for out in _made(node))]
        for value in constants:
            tensor = value.const_value
            if tensor is None:
                return None
            if value.uses() and _is_weight(tensor.dtype, value):
                each = planned.get(id(value), _bytes_each(value, tensor))
                mark = (hashlib.sha256(tensor.tobytes()).digest(), each)
                total += 0 if mark in seen else tensor.size * each
                seen.add(mark)
    return math.ceil(total)


def added_bytes(model: ir.Model, shapes: Shapes, fp8: Container[int]) -> int:
    """Bytes that an engine holds beyond the model's constants, because its kernels want them.

    Measured with tensorrt_rtx 1.7.1, sm89 and sm120:
    1. Input channels of a Conv are padded with zeros: in fp16 and bf16 to an even number in each group, in FP8 to a
       multiple of four. Not for kernels of one element and, in half precision, not for a Conv of one channel in and one
       out for each group.
    2. K and N of a product [.., M, K] x [.., K, N] are padded to even numbers; other than in FP8 only where K is
       four or more and N more than one, as smaller ones become other kernels.
    3. By padding, a weight grows, and where the shapes are fixed, a block of zeros is kept to be appended to the
       activation: [N, missing, ..], [.., M, 1], [.., 1, N] or [.., K, 1]. Equal blocks are kept once. It is counted in
       the type of the product; of two activations that are quantized in place, it may be in float32.
    4. An FP8 Conv with a weight scale per channel has two float32 vectors of its output channels, which all such Conv
       of that many channels share.

    `fp8`: id() of the nodes that are to run in FP8.
    """
    shape, known = _shapes_under(model, shapes), constants(model)
    fixed = all(profile.min == profile.max for profile in shapes.values())
    total, scaled, blocks = 0, set[int](), set[int]()
    for place in walk.walk(model):
        node = place.node
        dims = [shape(value) for value in node.inputs[:2]] if node.op_type in ("Conv", "MatMul", "Gemm") else []
        first = node.inputs[0] if node.inputs else None
        if len(dims) < 2 or dims[0] is None or dims[1] is None or first is None or first.dtype is None:
            continue
        each = 1 if id(node) in fp8 else int(first.dtype.itemsize)
        if node.op_type == "Conv":
            grown, zeros = _conv_padding(dims[0], dims[1], each)
            if each == 1 and _has_scale_vector(node, model, known):
                scaled.add(dims[1][0])
        else:
            held = [id(value) in known for value in node.inputs[:2]]
            grown, zeros = _product_padding(*_matrices(node, dims[0], dims[1]), held, each)
        total += each * grown
        blocks |= {each * size for size in zeros}
    return total + (sum(blocks) if fixed else 0) + 2 * 4 * sum(scaled)


def _conv_padding(x: _Shape, w: _Shape, each: int) -> tuple[int, list[int]]:
    """Elements by which a Conv's weight grows, and those of each block of zeros. `each`: bytes an element."""
    if len(w) < 3 or not w[1] or math.prod(w[2:]) < 2 or each > 2:
        return 0, []
    group = x[1] // w[1]
    if each == 2 and w[1] == 1 < group == w[0]:
        return 0, []
    missing = -w[1] % (4 if each == 1 else 2)
    return w[0] * missing * math.prod(w[2:]), [x[0] * group * missing * math.prod(x[2:])]


def _matrices(node: ir.Node, a: _Shape, b: _Shape) -> tuple[_Shape, _Shape]:
    """The operands of a product as [.., M, K] and [.., K, N]."""
    turned = [name in node.attributes and bool(node.attributes[name].as_int()) for name in ("transA", "transB")]
    return (a[::-1] if turned[0] else a), (b[::-1] if turned[1] else b)


def _product_padding(a: _Shape, b: _Shape, held: Sequence[bool], each: int) -> tuple[int, list[int]]:
    """Elements by which a product's weights grow, and those of each block of zeros. `held`: is a weight, by operand."""
    if min(len(a), len(b)) < 2 or (each > 1 and (a[-1] < 4 or b[-1] == 1)):
        return 0, []
    grown, blocks = 0, []
    for (*batch, rows, columns), weight, padded in ((a, held[0], (0, 1)), (b, held[1], (1, 1))):
        more = [rows % 2 * padded[0], columns % 2 * padded[1]]
        if weight:
            grown += math.prod(batch) * ((rows + more[0]) * (columns + more[1]) - rows * columns)
        else:
            blocks += [math.prod(batch) * columns * more[0], math.prod(batch) * rows * more[1]]
    return grown, blocks


def _has_scale_vector(node: ir.Node, model: ir.Model, known: set[int]) -> bool:
    weight = node.inputs[1]
    dequantize = operand(weight, model, known).dequantize if weight is not None else None
    scale = dequantize.inputs[1] if dequantize is not None and len(dequantize.inputs) > 1 else None
    return scale is not None and scale.const_value is not None and scale.const_value.size > 1


def _made(node: ir.Node) -> Sequence[ir.Value]:
    return node.outputs if node.op_type == "Constant" and node.outputs[0].const_value is not None else ()


def _is_weight(dtype: ir.DataType, value: ir.Value) -> bool:
    """Whether a constant becomes one of the engine: floats, and integers that a DequantizeLinear reads."""
    if dtype.is_floating_point():
        return True
    return any(user.op_type == "DequantizeLinear" for user, _ in value.uses())


# What an engine pulls a quantization through, up to the constant that it moves: GatherND of experts, for one
# (tensorrt_rtx 1.7.1).
_PULLED = frozenset(
    {
        "Gather",
        "GatherND",
        "GatherElements",
        "Slice",
        "Split",
        "Transpose",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Identity",
    }
)


def _bytes_each(value: ir.Value, tensor: ir.TensorProtocol) -> float:
    """Bytes an element in the type that its readers have it in, behind data movement."""
    made = _read_as(value, 8)
    return max((float(dtype.itemsize) for dtype in made), default=float(tensor.dtype.itemsize))


def _read_as(value: ir.Value, steps: int) -> set[ir.DataType]:
    """The types that all readers turn the value into; empty where one reads it as it is."""
    found: set[ir.DataType] = set()
    for user, slot in value.uses():
        dtype = user.outputs[0].dtype if user.outputs else None
        made: set[ir.DataType] = set()
        if slot == 0 and user.op_type == "Cast" and dtype is not None:
            made = _read_as(user.outputs[0], steps - 1) if steps else set()
            made = made or {dtype}
        elif slot == 0 and user.op_type == "QuantizeLinear" and dtype is not None:
            made = {dtype}
        elif slot == 0 and user.op_type in _PULLED and steps:
            each = [_read_as(output, steps - 1) for output in user.outputs if output.uses()]
            made = set().union(*each) if all(each) else set()
        if not made:
            return set()
        found |= made
    return found
