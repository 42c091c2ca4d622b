"""Why an op fell back, where the model shows it. Each rule was measured on engines of tensorrt_rtx 1.7.1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from fp8graph.core.reading import attribute, given
from fp8graph.engines.sites import Operand, Site
from fp8graph.engines.witness import Word

_MOST_KERNEL_ELEMENTS = 32
# A Cast on the way from DQ to op that engines take up.
_CASTS = {("FLOAT", "FLOAT16"), ("FLOAT", "BFLOAT16")}


def likely_cause(site: Site, pair: Sequence[Operand], known: set[int], planned: str, word: Word) -> str:
    """The first cause that applies to an op planned as `planned`, as a sentence; empty where the model shows none.

    `pair`: its operands, followed upwards; `known`: what `sites.constants` gave; `word`: what the engine says.
    """
    return next(_causes(site.node, pair, known, planned, word), "")


def caution(pair: Sequence[Operand]) -> str:
    """What is wrong with an op although it runs in FP8; empty where nothing is known to be.

    Measured with tensorrt_rtx 1.7.1, in the kernel's source: of block scales only the first row is read.
    """
    scales = [given(each.dequantize, 1) for each in pair if each.dequantize is not None]
    shapes = [_shape(scale) for scale in scales if scale is not None]
    blocked = any(shape is not None and len(shape) > 1 and min(shape) > 1 for shape in shapes)
    return "it runs in FP8 with wrong numbers: of scales in blocks only the first are applied" if blocked else ""


def _causes(node: ir.Node, pair: Sequence[Operand], known: set[int], planned: str, word: Word) -> Iterator[str]:
    for slot, each in enumerate(pair):
        if each.constant or planned != "storage":
            yield from _operand_causes(node, slot, each, known)
    if node.op_type in ("Conv", "ConvTranspose"):
        yield from _conv_causes(node, pair)
    elif node.op_type == "Attention":
        yield "the operator Attention is computed in high precision; taken apart, its products can run in FP8"
    elif word == "generated" and _is_vector(pair):
        yield "an operand is a vector: the product becomes multiply and sum in a generated kernel"
    elif _is_packed(node) and any(each.constant and _scale_size(each) > 1 for each in pair):
        yield "a packed product (its result is split) runs in FP8 only with one weight scale for the tensor"


def _operand_causes(node: ir.Node, slot: int, each: Operand, known: set[int]) -> Iterator[str]:
    name = each.value.name
    if not each.format:
        if each.constant:
            kept = f" (kept as {each.value.dtype})" if each.value.dtype is not None else ""
            yield f"the weight '{name}', operand {slot}, has no Q/DQ{kept}: both operands must be quantized"
        else:
            yield f"operand {slot}, '{name}', has no Q/DQ: both operands must be quantized"
        return
    if each.breaker is not None:
        yield (
            f"{each.breaker.op_type} '{each.breaker.name}' stands between DequantizeLinear and operand {slot}: "
            "the Q/DQ pair belongs behind it"
        )
    for step in each.through:
        if step.op_type == "Cast" and (types := _cast(step)) and types not in _CASTS:
            yield f"Cast '{step.name}' from {types[0]} to {types[1]} stands between DequantizeLinear and operand {slot}"
        elif step.op_type == "Concat" and not _same_scales(step):
            yield f"Concat '{step.name}' joins tensors of different scales before operand {slot}: quantize behind it"
    yield from _scale_causes(node, slot, each, known)


def _same_scales(concat: ir.Node) -> bool:
    """Whether every input of a Concat comes straight from a DequantizeLinear with one and the same scale."""
    scales = set()
    for value in concat.inputs:
        maker = value.producer() if value is not None else None
        scale = maker.inputs[1] if maker is not None and maker.op_type == "DequantizeLinear" else None
        if scale is None or scale.const_value is None:
            return False
        scales.add(scale.const_value.tobytes())
    return len(scales) == 1


def _scale_causes(node: ir.Node, slot: int, each: Operand, known: set[int]) -> Iterator[str]:
    assert each.dequantize is not None
    scale = given(each.dequantize, 1)
    if scale is None:
        return
    if id(scale) not in known:
        yield f"the scale of operand {slot}, '{scale.name}', is computed: FP8 is only simulated"
        return
    shape = _shape(scale)
    if shape is None or any(step.op_type != "Identity" for step in each.through):
        return
    if shape == (1,) and node.op_type == "Conv" and not each.constant:
        yield f"the scale of operand {slot}, '{scale.name}', has shape [1]: on a Conv it has to be a scalar"
    rank = len(each.value.shape) if each.value.shape is not None else None
    if rank is not None and math.prod(shape) > 1 and len(shape) == 1:
        axis = _axis(each.dequantize, rank)
        if node.op_type == "Conv" and (not each.constant or axis != 0):
            yield f"operand {slot} has a scale for each index of axis {axis}, which a Conv does not take"
        elif node.op_type in ("MatMul", "Gemm") and axis == _summed(node, slot, rank):
            yield f"the scales of operand {slot} lie along axis {axis}, which the product sums over"


def _conv_causes(node: ir.Node, pair: Sequence[Operand]) -> Iterator[str]:
    if node.op_type == "ConvTranspose":
        yield "transposed convolutions are computed in high precision"
    shape = _shape(pair[1].value) if len(pair) > 1 else None
    if shape is not None and len(shape) > 2 and math.prod(shape[2:]) > _MOST_KERNEL_ELEMENTS:
        size = "x".join(map(str, shape[2:]))
        yield f"the kernel {size} has {math.prod(shape[2:])} elements, FP8 kernels have at most {_MOST_KERNEL_ELEMENTS}"


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    dims = (
        value.shape if value.shape is not None else value.const_value.shape if value.const_value is not None else None
    )
    if dims is None or not all(isinstance(size, int) for size in dims):
        return None
    return tuple(int(str(size)) for size in dims)


def _axis(dequantize: ir.Node, rank: int) -> int:
    return attribute(dequantize, "axis", 1) % rank


def _summed(node: ir.Node, slot: int, rank: int) -> int:
    """The axis of an operand that a MatMul or Gemm sums over."""
    turned = node.op_type == "Gemm" and attribute(node, "transB" if slot else "transA")
    last = (slot == 0) != bool(turned)
    return rank - 1 if last else max(rank - 2, 0)


def _cast(node: ir.Node) -> tuple[str, str] | None:
    source, target = node.inputs[0], node.attributes.get("to")
    if source is None or source.dtype is None or target is None or target.is_ref():
        return None
    return source.dtype.name, ir.DataType(target.as_int()).name


def _is_vector(pair: Sequence[Operand]) -> bool:
    shapes = [_shape(each.value) for each in pair]
    return any(shape is not None and (len(shape) == 1 or (len(shape) > 1 and shape[-2] == 1)) for shape in shapes)


def _is_packed(node: ir.Node) -> bool:
    """Whether the result of a product goes, moved at most, into a Split or into several Gathers or Slices."""
    values, cuts = list(node.outputs), 0
    for _ in range(4):
        users = [user for value in values for user in value.consumers()]
        cuts += sum(3 if user.op_type == "Split" else user.op_type in ("Gather", "Slice") for user in users)
        values = [
            output for user in users if user.op_type in ("Add", "Reshape", "Transpose") for output in user.outputs
        ]
    return cuts >= 2


def _scale_size(each: Operand) -> int:
    scale = given(each.dequantize, 1) if each.dequantize is not None else None
    shape = _shape(scale) if scale is not None else None
    return math.prod(shape) if shape is not None else 1
