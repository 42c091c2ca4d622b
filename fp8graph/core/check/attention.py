"""Attention that loses the fused kernel which fp16 has, though its products may run in FP8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from fp8graph.core.attention import Attention
from fp8graph.core.check.look import Found, Look
from fp8graph.core.reading import is_quantizer
from fp8graph.graph import tensors, walk


def find(look: Look) -> Iterator[Found]:
    """One finding for each attention that is quantized and cannot be one fused kernel in FP8."""
    if not look.table.engine:
        return
    places = {place.node: place for place in look.places}
    for item in dict.fromkeys(look.prophet.facts.attentions.values()):
        said = [look.forecasts.get(node) for node in (item.scores, item.context)]
        verdicts = [each.verdict if each is not None else "none" for each in said]
        if "fp8" in verdicts:
            yield from _lost(look, places, item, verdicts)


def _lost(look: Look, places: dict[ir.Node, walk.Place], item: Attention, verdicts: Sequence[str]) -> Iterator[Found]:
    scores, context = places[item.scores], places[item.context]
    half = look.reading.dtype(item.context.outputs[0]) in tensors.HALF
    if look.planned and (not half or item.exposed):
        return
    if not half:
        text = "attention in fp32 is not fused in any precision: two FP8 products and a Softmax"
        yield look.found("FG319", context, text, "optimize MODEL -o OUT --high-precision-dtype fp16", "info")
        return
    if set(verdicts) != {"fp8"}:
        kept = context if verdicts[0] == "fp8" else scores
        other = scores if kept is context else context
        text = f"of this attention only '{other.key}' runs in FP8: it is not fused, and in fp16 it would be"
        do = "put Q/DQ on Q, K, V and on the result of Softmax (scale 1/448), or on none of them"
        yield look.found("FG319", kept, text, do)
        return
    if item.exposed:
        text = "scores or probabilities are outputs of the model: attention is not fused in any precision"
        yield look.found("FG319", context, text, "leave these outputs out", "info")
    elif any(is_quantizer(user) for user, _ in item.scores.outputs[0].uses()):
        text = "Q/DQ on the scores breaks the fused kernel"
        yield look.found("FG319", scores, text, "take the pair behind Q K^T away; that behind Softmax stays")
    elif item.guarded and not look.prophet.row_facts(item.context).get("guarded"):
        return
    elif look.prophet.row_facts(item.context).get("keys") is None and not look.planned:
        text = "the number of keys is open: attention is one fused FP8 kernel where the profile's least is 32 or more"
        yield look.found("FG319", context, text, "build with --min-shapes that give 32 keys or more", "info")
