"""How one operand is quantized by a recipe: format, the axes that scales run along, and where numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.data.plan import Quant, Scale
from fp8graph.data.recipe import Recipe, TensorPolicy
from fp8graph.data.target import Fact
from fp8graph.formats.spec import FP32_SCALES, Granularity, PerAxis, PerBlock, PerTensor, ScaleFormat, ScaleRule

_CONVS = ("Conv", "ConvTranspose")


def policy_facts(recipe: Recipe) -> dict[str, Fact]:
    """What rows of a target may ask about a recipe: `activations` is none, static, dynamic, token or block, `scales`
    of the weights is tensor, channel or block; `block` is the size of an activation's blocks, 0 where it has none;
    `powers`, where it is so, that both operands have blocks of one size with scales stored as powers of two."""
    policy = recipe.activations
    moving: str = "none" if policy.format == "none" else policy.per
    if moving == "tensor":
        moving = "dynamic" if policy.scale == "dynamic" else "static"
    alike = policy.per == recipe.weights.per == "block" and policy.block == recipe.weights.block
    powers = alike and _powers(policy.stored) and _powers(recipe.weights.stored)
    told: dict[str, Fact] = {"powers": True} if powers else {}
    return told | {"activations": moving, "scales": recipe.weights.per, "block": max((*policy.block, 0))}


def planned_facts(inputs: Mapping[int, Quant]) -> dict[str, Fact]:
    """Of `policy_facts` what two planned operands tell where both lie in blocks of powers of two; else nothing."""
    sizes = {max((size for _, size in quant.granularity.blocks), default=0) for quant in inputs.values()}
    if len(inputs) < 2 or len(sizes) > 1 or not all(_powers(quant.scale.stored) for quant in inputs.values()):
        return {}
    return {"activations": "block", "scales": "block", "block": sizes.pop(), "powers": True}


def ruled(quant: Quant, rule: str) -> Quant:
    """A quantization with powers of two rounded as a target's row wants them; itself where nothing is to be changed."""
    stored = quant.scale.stored
    if not rule or not _powers(stored) or quant.scale.origin == "given":
        return quant
    return replace(quant, scale=replace(quant.scale, stored=ScaleFormat(stored.format, cast(ScaleRule, rule))))


def _powers(stored: ScaleFormat) -> bool:
    return stored.format is not None and formats.get(stored.format).kind == "exponent"


def told(recipe: Recipe) -> str:
    """What a recipe makes of an op, in a few words."""
    moving, weights = recipe.activations.format, recipe.weights.format
    if moving == "none":
        return f"the weight in {weights}"
    if {moving, weights} <= {"e4m3fn", "e5m2"}:
        return "both operands in FP8"
    return f"both operands in {moving}" if moving == weights else f"weight in {weights}, activation in {moving}"


def contraction_axis(node: ir.Node, slot: int, rank: int) -> int:
    """The axis of an operand that the product sums over: for a Conv its (input) channels."""
    if node.op_type in _CONVS:
        return 0 if node.op_type == "ConvTranspose" and slot else 1
    if node.op_type == "Gemm":
        return 1 - gemm_output_axis(node, slot)
    return max(rank - 2, 0) if slot else rank - 1


def gemm_output_axis(node: ir.Node, slot: int) -> int:
    """The axis of a Gemm's operand that is an axis of its output."""
    attribute = node.attributes.get("transB" if slot else "transA")
    flipped = attribute is not None and attribute.as_int() == 1
    return (0 if flipped else 1) if slot else (1 if flipped else 0)


def output_axis(node: ir.Node, slot: int, rank: int) -> int | None:
    """The axis of a weight that runs along output channels; None where it has none, or per tensor must do.

    A scale along any other axis lies in the sum over products, where no kernel can apply it behind the sum.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        group = node.attributes.get("group")
        return 1 if group is None or group.as_int() == 1 else None
    if node.op_type == "Gemm":
        return gemm_output_axis(node, slot)
    if rank < 2:
        return None
    if slot:
        return rank - 1
    return 0 if rank == 2 else None


def weight_granularity(policy: TensorPolicy, node: ir.Node, slot: int, rank: int, wanted: str) -> Granularity:
    """The blocks of a weight. `wanted`: `tensor` or `channel` where the target takes no finer ones, else `any`."""
    per = policy.per if wanted == "any" or policy.per == "tensor" else wanted
    if per == "block" and rank >= 2:
        along = contraction_axis(node, slot, rank)
        if len(policy.block) == 1:
            return PerBlock(along, policy.block[0], rank)
        across = output_axis(node, slot, rank)
        sizes = dict.fromkeys(range(rank), 1) | {along: policy.block[1]}
        if across is not None:
            sizes[across] = policy.block[0]
        return Granularity(tuple(sorted(sizes.items())))
    axis = None if per == "tensor" else output_axis(node, slot, rank)
    return PerTensor() if axis is None else PerAxis(axis)


def activation_granularity(policy: TensorPolicy, node: ir.Node, slot: int, rank: int) -> Granularity:
    """The blocks of an activation of a known rank. A Conv has no tokens: its activation has one scale."""
    along = contraction_axis(node, slot, rank)
    if policy.per == "block" and rank >= 2:
        return PerBlock(along, policy.block[0], rank)
    if policy.per == "token" and node.op_type not in _CONVS and rank >= 2:
        return Granularity(tuple((axis, 1) for axis in range(rank) if axis != along))
    return PerTensor()


def activation_scale(policy: TensorPolicy, granularity: Granularity, rule: str) -> Scale:
    """Where the scale of an activation comes from; one above stored ones is observed, those are found in the graph."""
    if policy.stored.outer and granularity.blocks:
        return Scale("observed", rule, stored=policy.stored)
    if policy.scale == "dynamic":
        return Scale("dynamic", policy.scale, stored=policy.stored if granularity.blocks else FP32_SCALES)
    return Scale("observed", rule)


def taken(policy: TensorPolicy, wanted: str) -> TensorPolicy:
    """A policy for activations as a target takes it: with `wanted` `token`, blocks become tokens."""
    if wanted != "token" or policy.per != "block":
        return policy
    return replace(policy, per="token", block=(), stored=FP32_SCALES)


def unit_scale(format: str) -> float:
    """The scale of what is 1 at most, such as probabilities: 1 becomes the format's largest value."""
    return float(np.float32(1) / np.float32(float(formats.get(format).max)))
