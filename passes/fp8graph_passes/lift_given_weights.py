"""Take weights that came as codes behind DequantizeLinear for weights: they keep their codes and scales.

    DequantizeLinear(codes, scale) -> [Transpose, Cast] -> MatMul     becomes     MatMul with a weight

What it does   A DequantizeLinear of stored codes becomes a constant that knows its codes. Transposes and Casts between
               them go into it. What the plan then keeps in high precision is put back (`restore-given-weights`).
               1. Codes in the recipe's format, of FP8 in any: where all that reads it are products whose other operand
                  is not quantized (`lift-given-pairs` has taken it off its pair).
               2. FP8 that the target does not read (for TensorRT E5M2, FNUZ and blocks that do not divide their axis):
                  whoever reads it. It is not put back, but stays a float where the plan does not quantize it.
Why            A checkpoint in FP8 brings weights alone. Only with the activation quantized, too, is the product one in
               FP8; the plan honours the scales that came, and says where the target cannot.
Limits         Not in functions, not with a zero point other than 0.
Exactness      exact: the constant is what DequantizeLinear makes of codes and scales
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.given_weights import readable
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.core.reading import given
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.given import Given, constant, dequantizer
from fp8graph_passes._given import alike, codes, of_products, readers, turned


@dataclass(frozen=True)
class LiftGivenWeights(RewritePass):
    """Stored codes that products read become weights that know them."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every such DequantizeLinear, in bodies, too; where the recipe quantizes no activations, case 2 alone."""
        changed, stale, names = 0, list[ir.Value](), edit.Names(model)
        for place in list(walk.walk(model)):
            found = codes(place.node)
            if found is None or not isinstance(place.graph, ir.Graph):
                continue
            if not _wanted(place.node.outputs[0], found, ctx):
                continue
            _lift(place.node, found, place.graph, names)
            stale += [found.codes, found.scale]
            changed += 1
        edit.drop_unused_initializers(stale)
        return changed


def _wanted(value: ir.Value, found: Given, ctx: Context) -> bool:
    """Whether a weight is taken: for its product (case 1), or since the target does not read it (case 2)."""
    if not readable(ctx.target, found):
        return all(user is not None for user, _ in readers(value))
    return alike(found, ctx.recipe) and of_products(value, lambda node, slot: dequantizer(given(node, slot)) is None)


def _lift(node: ir.Node, found: Given, graph: ir.Graph, names: edit.Names) -> None:
    output = node.outputs[0]
    for user, _ in list(output.uses()):
        perm = turned(user)
        if perm is not None and isinstance(user.graph, ir.Graph):
            _lift(user, found.transposed(perm) if perm else found, user.graph, names)
    if output.uses():
        assert output.name is not None and output.dtype is not None
        # What it was before `insert-qdq` and a Cast: optimized once more a model keeps its names.
        name = output.name.removesuffix(f"_{tensors.FLOATS[output.dtype]}").removesuffix("_dq")
        weight = constant(found, output.name if name == output.name else names.fresh(name), output.dtype)
        output.name = f"{output.name}_lifted"
        output.replace_all_uses_with(weight)
        graph.register_initializer(weight)
    edit.remove([node])
