"""Take weights that came as codes behind DequantizeLinear for weights: they keep their codes and scales.

    DequantizeLinear(codes, scale) -> [Transpose] -> MatMul     becomes     MatMul with a weight

What it does   A DequantizeLinear of stored codes in the recipe's format becomes a constant that knows its codes, where
               all that reads it are products whose other operand is not quantized yet, or is, and the target cannot
               run the blocks of the weight. Transposes in between go into it. What the plan then keeps in high
               precision is put back (`restore-given-weights`).
Why            A checkpoint in FP8 brings weights alone. Only with the activation quantized, too, is the product one in
               FP8; the plan honours the scales that came, and says where the target cannot.
Limits         Not in functions, not with a zero point other than 0.
Exactness      exact: the constant is what DequantizeLinear makes of codes and scales
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.core.reading import ONNX, attribute, given
from fp8graph.data.target import Fact, Target
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.given import Given, constant, dequantizer, pair

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class LiftGivenWeights(RewritePass):
    """Stored codes that products read become weights that know them."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every such DequantizeLinear, in bodies, too; none where the recipe quantizes no activations."""
        if ctx.recipe.activations.format == "none":
            return 0
        changed, stale = 0, list[ir.Value]()
        for place in list(walk.walk(model)):
            found = _stored(place.node, ctx.recipe.weights.format)
            if found is None or not isinstance(place.graph, ir.Graph):
                continue
            if not _is_weight(place.node.outputs[0], _Other(found, ctx.target)):
                continue
            _lift(place.node, found, place.graph)
            stale += [found.codes, found.scale]
            changed += 1
        edit.drop_unused_initializers(stale)
        return changed


def _stored(node: ir.Node, wanted: str) -> Given | None:
    """What a DequantizeLinear reads, where it is stored in the format wanted, under scales that are constants."""
    codes, scale, zero = (given(node, slot) for slot in range(3))
    if node.op_type != "DequantizeLinear" or node.domain not in ONNX or codes is None or scale is None:
        return None
    constants = tensors.is_constant(codes) and tensors.is_constant(scale) and scale.dtype in tensors.PLAIN
    if not constants or tensors.word(codes.dtype) != wanted or node.outputs[0].dtype not in tensors.PLAIN:
        return None
    if zero is not None and not (tensors.is_constant(zero) and not tensors.read(zero).astype(np.float32).any()):
        return None
    rank = len(codes.shape or ())
    block = attribute(node, "block_size")
    axis = attribute(node, "axis", 1)
    if rank < 2 or not -rank <= axis < rank:
        return None
    return Given(codes, scale, axis % rank, block, node.name or "")


@dataclass(frozen=True)
class _Other:
    """What the other operand of a product has to be for its weight to be taken."""

    found: Given
    target: Target

    def fits(self, node: ir.Node, value: ir.Value) -> bool:
        """Not quantized yet; or behind one pair with one scale, where the target cannot run the weight's blocks."""
        if dequantizer(value) is None:
            return True
        asked: dict[str, Fact] = {"scales": "block", "activations": "static"}
        coarser = self.target.row(node.op_type, self.found.format, asked).weights != "any"
        return bool(self.found.block) and coarser and pair(value) is not None


def _is_weight(value: ir.Value, other: _Other) -> bool:
    """Whether all that reads a value is a product whose other operand is computed and fits."""
    uses = list(_uses(value))
    return bool(uses) and all(_takes(node, slot, other) for node, slot in uses)


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node | None, int]]:
    """The readers behind Transposes; None for one that is no node."""
    if value.is_graph_output():
        yield None, 0
    for node, slot in value.uses():
        if _turns(node):
            yield from _uses(node.outputs[0])
        else:
            yield node, slot


def _turns(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and node.domain in ONNX and "perm" in node.attributes


def _takes(node: ir.Node | None, slot: int, wanted: _Other) -> bool:
    if node is None or node.op_type not in _PRODUCTS or node.domain not in ONNX or slot > 1:
        return False
    other = given(node, 1 - slot)
    if (slot == 0 and node.op_type == "Conv") or other is None or tensors.is_constant(other):
        return False
    return wanted.fits(node, other)


def _lift(node: ir.Node, found: Given, graph: ir.Graph) -> None:
    output = node.outputs[0]
    for user, _ in list(output.uses()):
        if _turns(user) and isinstance(user.graph, ir.Graph):
            _lift(user, found.transposed(user.attributes["perm"].as_ints()), user.graph)
    if output.uses():
        assert output.name is not None and output.dtype is not None
        weight = constant(found, output.name, output.dtype)
        output.name = f"{output.name}_lifted"
        output.replace_all_uses_with(weight)
        graph.register_initializer(weight)
    edit.remove([node])
