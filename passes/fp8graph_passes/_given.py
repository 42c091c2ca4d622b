"""Weights that came as codes and scales, as passes read them in a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from fp8graph.core.reading import ONNX, attribute, given
from fp8graph.data.recipe import Recipe
from fp8graph.formats import family
from fp8graph.graph import tensors
from fp8graph.graph.given import Given

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


def codes(node: ir.Node) -> Given | None:
    """What a DequantizeLinear reads, where that are stored codes under scales that are constants."""
    stored, scale, zero = (given(node, slot) for slot in range(3))
    if node.op_type != "DequantizeLinear" or node.domain not in ONNX or stored is None or scale is None:
        return None
    constants = tensors.is_constant(stored) and tensors.is_constant(scale) and scale.dtype in tensors.PLAIN
    if not constants or not tensors.word(stored.dtype) or node.outputs[0].dtype not in tensors.PLAIN:
        return None
    if zero is not None and not (tensors.is_constant(zero) and not tensors.read(zero).astype(np.float32).any()):
        return None
    rank = len(stored.shape or ())
    block = attribute(node, "block_size")
    axis = attribute(node, "axis", 1)
    if rank < 2 or not -rank <= axis < rank:
        return None
    return Given(stored, scale, axis % rank, block, node.name or "")


def alike(found: Given, recipe: Recipe) -> bool:
    """Whether a recipe that quantizes activations has weights in the format of one that came, or both are FP8."""
    moving = [way.weights.format for way in recipe.ways if way.activations.format != "none"]
    return found.format in moving or any({family(found.format), family(format)} == {"fp8"} for format in moving)


def readers(value: ir.Value) -> Iterator[tuple[ir.Node | None, int]]:
    """The readers behind Transposes and Casts between floats; None for one that is no node."""
    if value.is_graph_output():
        yield None, 0
    for node, slot in value.uses():
        if turned(node) is not None:
            yield from readers(node.outputs[0])
        else:
            yield node, slot


def turned(node: ir.Node) -> list[int] | None:
    """The order of axes that a Transpose makes, an empty one for a Cast between floats; None for any other node."""
    if node.domain in ONNX and node.op_type == "Transpose" and "perm" in node.attributes:
        return list(node.attributes["perm"].as_ints())
    return [] if node.domain in ONNX and node.op_type == "Cast" and node.outputs[0].dtype in tensors.PLAIN else None


def of_products(value: ir.Value, other: Callable[[ir.Node, int], bool]) -> bool:
    """Whether all that reads a value is a product whose other operand is computed, and as `other` asks of its slot."""
    uses = list(readers(value))
    return bool(uses) and all(node is not None and _takes(node, slot) and other(node, 1 - slot) for node, slot in uses)


def _takes(node: ir.Node, slot: int) -> bool:
    if node.op_type not in PRODUCTS or node.domain not in ONNX or slot > 1:
        return False
    other = given(node, 1 - slot)
    return not (slot == 0 and node.op_type == "Conv") and other is not None and not tensors.is_constant(other)
