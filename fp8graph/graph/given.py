"""Weights that came quantized: a float constant that is computed from codes and scales, and knows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fp8graph.formats.spec import Format, Granularity, PerAxis, PerBlock, PerTensor
from fp8graph.graph import edit, tensors, walk
from fp8graph.numerics import cast
from fp8graph.numerics.blocks import expand


@dataclass(frozen=True)
class Given:
    """A weight as a DequantizeLinear without a zero point reads it.

    codes   of a low-precision type, in the weight's shape
    scale   positive; of rank 0, one for each index of `axis`, or one for each block of `block` along `axis`
    block   0 where scales run per tensor or per index
    node    name of the DequantizeLinear
    """

    codes: ir.Value
    scale: ir.Value
    axis: int
    block: int
    node: str

    @property
    def format(self) -> str:
        """The format of the codes as recipes spell it."""
        return tensors.word(self.codes.dtype)

    @property
    def scales(self) -> tensors.Array:
        """The scales in float32, in the shape that ONNX wants for the granularity."""
        return tensors.read(self.scale).astype(np.float32).reshape(self.granularity.scale_shape(_shape(self.codes)))

    def attributes(self, dtype: ir.DataType | None) -> dict[str, int]:
        """Those of the DequantizeLinear that makes floats of this type of it."""
        told = {"axis": self.axis} if self.granularity.blocks else {}
        told |= {"block_size": self.block} if self.block else {}
        return told | ({"output_dtype": int(dtype)} if dtype is not None and dtype != self.scale.dtype else {})

    @property
    def granularity(self) -> Granularity:
        """The blocks that a scale runs over."""
        rank = len(_shape(self.codes))
        if self.block:
            return PerBlock(self.axis, self.block, rank)
        return PerTensor() if np.prod(_shape(self.scale)) == 1 else PerAxis(self.axis)

    def array(self, dtype: ir.DataType) -> tensors.Array:
        """Codes times scales, rounded once: the product of two such numbers is exact in float32 but for a scale of
        more than 20 bits, which ONNX Runtime rounds there, too."""
        made = tensors.read(self.codes).astype(np.float32)
        tensors.release(self.codes)
        made *= expand(self.scales, self.granularity, made.shape)
        return made.astype(tensors.NUMPY[tensors.FLOATS[dtype]], copy=False)

    def shift(self, form: Format) -> int:
        """The least power of two by which codes have to be divided so that a format holds the largest of them."""
        codes = tensors.read(self.codes)
        largest = float(np.abs(codes.astype(np.float32)).max(initial=0.0))
        tensors.release(self.codes)
        if not largest:
            return 0
        digits, power = math.frexp(largest / float(form.max))
        return power - 1 if digits == 0.5 else power

    def codes_in(self, form: Format) -> tensors.Array:
        """The codes in another float format, under `scales_in`: uint8. Exact but for what is far below the largest: of
        E5M2 in E4M3FN what is smaller than 2^-15 of it."""
        made = tensors.read(self.codes).astype(np.float32)
        tensors.release(self.codes)
        return cast.encode(np.ldexp(made, -self.shift(form)), form)

    def scales_in(self, form: Format) -> tensors.Array:
        """The scales times the power of two that `codes_in` divides by, as `scales`."""
        return np.ldexp(self.scales, self.shift(form))

    def transposed(self, perm: Sequence[int]) -> Given:
        """The same weight with its axes in another order."""
        codes = tensors.moved(self.codes, perm)
        scale = tensors.moved(self.scale, perm) if self.block else self.scale
        return replace(self, codes=codes, scale=scale, axis=list(perm).index(self.axis))


class _GivenTensor(ir.LazyTensor):
    """The float weight; what it was made of stays with it."""

    def __init__(self, given: Given, name: str, dtype: ir.DataType) -> None:
        super().__init__(
            lambda: ir.Tensor(given.array(dtype), dtype=dtype, name=name),
            dtype,
            ir.Shape(_shape(given.codes)),
            name=name,
        )
        self.given = given


@dataclass(frozen=True)
class Pair:
    """The Q/DQ pair that an activation came with: one constant scale, no zero point but 0.

    `scale` is that of DequantizeLinear, and `factor` times that of QuantizeLinear, a power of two: the pair is one on
    `factor` times what it reads (`fold-constant-scale` writes it so).
    """

    format: str
    scale: float
    factor: float = 1.0


# Where a product keeps the pairs that its operands were taken off, by slot.
_HELD = "fp8graph.given"


def hold(node: ir.Node, slot: int, found: Pair) -> None:
    """Notes that an operand came behind a pair, which is off the graph."""
    node.meta[_HELD] = {**node.meta.get(_HELD, {}), slot: found}


def held(node: ir.Node, slot: int) -> Pair | None:
    """The pair that an operand was taken off; None for any other operand."""
    found = node.meta.get(_HELD, {}).get(slot)
    return found if isinstance(found, Pair) else None


def stand(cast: ir.Node) -> None:
    """Notes that a Cast stands where a pair yielded another type than it read."""
    cast.meta[_HELD] = {}


def unlifted(value: ir.Value) -> ir.Value:
    """What the pair of an operand had read: in front of the Cast that stands for it, and of one put there since."""
    maker = value.producer()
    if maker is None or maker.op_type != "Cast" or _HELD not in maker.meta:
        return value
    source = maker.inputs[0]
    above = source.producer() if source is not None else None
    if above is not None and above.op_type == "Cast" and not walk.node_key(above):
        source = above.inputs[0]
    return source if source is not None and source.dtype in tensors.PLAIN else value


# Between a DequantizeLinear and what computes with the values that it yields.
MOVES = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Identity", "Cast", "MaxPool"}
)

_DEQUANTIZE = frozenset({"DequantizeLinear", "TRT_MXFP8DequantizeLinear"})


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a value comes from, directly or through data movement; None for any other value."""
    node = walk.origin(value, MOVES)
    return node if node is not None and node.op_type in _DEQUANTIZE else None


def pair(value: ir.Value | None) -> Pair | None:
    """The pair that a value comes from; None for any other value."""
    dequantize = value.producer() if value is not None else None
    codes = dequantize.inputs[0] if dequantize is not None and dequantize.inputs else None
    quantize = codes.producer() if codes is not None else None
    for node, op_type in ((dequantize, "DequantizeLinear"), (quantize, "QuantizeLinear")):
        if node is None or node.op_type != op_type or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
            return None
    assert dequantize is not None and quantize is not None and codes is not None
    numbers = [_one(node.inputs[1]) for node in (quantize, dequantize)]
    zeros = [node.inputs[2] for node in (quantize, dequantize) if len(node.inputs) > 2 and node.inputs[2] is not None]
    nothing = all(tensors.is_constant(zero) and not tensors.read(zero).astype(np.float32).any() for zero in zeros)
    if numbers[0] is None or numbers[1] is None or not nothing or not tensors.word(codes.dtype):
        return None
    factor = numbers[1] / numbers[0]
    return Pair(tensors.word(codes.dtype), numbers[1], factor) if math.frexp(factor)[0] == 0.5 else None


def _one(scale: ir.Value | None) -> float | None:
    """The number of a constant scale that is one, as a plan can hold it: positive, and normal in float32."""
    if scale is None or scale.const_value is None or scale.is_graph_input() or scale.const_value.size != 1:
        return None
    number = float(tensors.read(scale).astype(np.float32).reshape(()))
    return number if float(np.finfo(np.float32).tiny) <= number < math.inf else None


def constant(given: Given, name: str, dtype: ir.DataType) -> ir.Value:
    """The weight as a constant that can be registered as an initializer."""
    tensor = _GivenTensor(given, name, dtype)
    return ir.Value(name=name, shape=ir.Shape(_shape(given.codes)), type=ir.TensorType(dtype), const_value=tensor)


def of(value: ir.Value | None) -> Given | None:
    """What a weight came as; None for any other value."""
    tensor = value.const_value if value is not None else None
    return tensor.given if isinstance(tensor, _GivenTensor) else None


def stored(source: ir.Value, graph: ir.Graph, names: edit.Names) -> ir.Value:
    """Codes or scales as an initializer of a graph: the one that holds them already, else one of the same name."""
    assert source.name is not None and source.const_value is not None
    held = graph.initializers.get(source.name)
    if held is not None and held.const_value is source.const_value:
        return held
    name = names.fresh(source.name)
    if name == source.name:
        again = ir.Value(name=name, shape=source.shape, type=source.type, const_value=source.const_value)
    else:
        again = tensors.lazy_from(source, name, lambda array: array)
    graph.register_initializer(again)
    return again


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())
