"""Ops that came wholly quantized: the pairs that their activations were taken off, and what planning makes of them."""

from __future__ import annotations

import numpy as np

from fp8graph import formats
from fp8graph.core.context import Context, OpView
from fp8graph.core.given_weights import stored
from fp8graph.core.passes import Opinion
from fp8graph.data.plan import PAIR, Quant, Scale
from fp8graph.data.target import Fact
from fp8graph.formats.spec import PerTensor
from fp8graph.graph import given

_SLOTS = (0, 1)
_TINY, _LARGEST = np.finfo(np.float32).tiny, np.finfo(np.float32).max


def whole(op: OpView, ctx: Context) -> bool:
    """Whether both operands came quantized, an activation among them, and nobody asked for other scales."""
    pairs = [given.held(op.node, slot) is not None for slot in _SLOTS]
    both = all(held or given.of(op.input(slot)) is not None for slot, held in zip(_SLOTS, pairs, strict=True))
    return any(pairs) and both and not ctx.anew


def opinion() -> Opinion:
    """What speaks for such an op."""
    return Opinion("quantize", "FG230", "it came quantized, and keeps the scales that it came with")


def facts() -> dict[str, Fact]:
    """Of `quants.policy_facts` what holds for such an op, whatever the recipe asks."""
    return {"activations": "static", "scales": "channel", "block": 0}


def quant(op: OpView, slot: int, name: str, ctx: Context, format: str) -> Quant | None:
    """The quantization that an activation came with; None where it came with none, or is to have another.

    Where the target does not read its format it has that of the recipe, and a scale under which its range is the same.
    """
    found = given.held(op.node, slot)
    if found is None or ctx.anew:
        return None
    if stored(ctx.target, found.format):
        return Quant(name, found.format, PerTensor(), Scale("given", PAIR, found.scale))
    factor = np.float32(float(formats.get(found.format).max / formats.get(format).max))
    scale = float(np.clip(np.float32(found.scale) * factor, _TINY, _LARGEST))
    return Quant(name, format, PerTensor(), Scale("given", PAIR, scale))


def told(op: OpView, ctx: Context) -> str:
    """The end of a reason: what became of scales that activations came with, where they are not kept."""
    pairs = dict.fromkeys(found for slot in _SLOTS if (found := given.held(op.node, slot)) is not None)
    if ctx.anew and pairs:
        scales = ", ".join(f"{pair.scale:.6g} ({pair.format})" for pair in pairs)
        return f"; scales of activations are found anew, as was asked: it came with {scales}"
    other = sorted({pair.format for pair in pairs if not stored(ctx.target, pair.format)})
    if other:
        return f"; an activation came in {', '.join(other)}, which {ctx.target.name} does not read: it keeps its range"
    return ""
