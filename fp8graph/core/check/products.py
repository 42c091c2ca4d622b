"""Products that will not run as their Q/DQ say: the forecast, told op by op."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fp8graph.core.check.look import Found, Look
from fp8graph.core.reading import is_dequantizer
from fp8graph.graph import walk

_WITH_THE_PAIR = "FG330"  # a format that is not imported is told where it is written


def find(look: Look) -> Iterator[Found]:
    """Each reason for which a product's forecast is not what its Q/DQ promise.

    A model that quantizes weights alone means it: that its products run in high precision is then no warning. So does a
    plan that stores the weight of an op, or reads a cache in FP8 (--kv-cache fp8), and quantizes no other operand.
    """
    weights_alone = not any(
        look.reading.source(place.node) is not None and not look.reading.constant(place.node.outputs[0])
        for place in look.pairs
        if is_dequantizer(place.node)
    )
    for place in look.places:
        for item in look.prophet.reasons(place.node) if place.node in look.forecasts else ():
            if item.code == "FG305" and _ours(look, place):
                item = replace(item, severity="info", do="")
            elif item.verdict == "storage" and weights_alone:
                item = replace(item, severity="info")
            if item.code != _WITH_THE_PAIR and not (look.planned and item.code == "FG314"):
                yield look.found(item.code, place, item.text, item.do, item.severity)


def _ours(look: Look, place: walk.Place) -> bool:
    """Whether a plan has quantized one operand, and not the other: what dequantizes it was put in."""
    nodes = [each.dequantizer for each in look.prophet.operands(place.node) if each.dequantizer is not None]
    return look.planned and bool(nodes) and all(walk.FOR in node.metadata_props for node in nodes)
