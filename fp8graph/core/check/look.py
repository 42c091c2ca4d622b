"""What every family of rules looks at: the model read once, the target, the forecast of each product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from fp8graph.base.findings import Finding, Severity
from fp8graph.core.facts import Facts
from fp8graph.core.forecast import Forecast, Prophet
from fp8graph.core.reading import Reading, is_dequantizer, is_quantizer
from fp8graph.data.target import Target
from fp8graph.formats import family
from fp8graph.graph import walk


@dataclass(frozen=True)
class Found:
    """A finding and the node it is about; None for the whole model."""

    node: ir.Node | None
    finding: Finding


class Look:
    """One model under one target.

    planned   whether a plan has weighed what is no fault of the graph: shapes, types, what pays
    """

    def __init__(self, model: ir.Model, target: Target, facts: Facts | None, *, planned: bool = False) -> None:
        self.model, self.target, self.table = model, target, target.qdq
        self.reading = Reading(model)
        self.prophet = Prophet(self.reading, target, facts)
        self.planned = planned

    @property
    def places(self) -> list[walk.Place]:
        """Every node."""
        return self.reading.places

    @cached_property
    def forecasts(self) -> dict[ir.Node, Forecast]:
        """The forecast of every product."""
        return self.prophet.all()

    @cached_property
    def pairs(self) -> list[walk.Place]:
        """Every Q and DQ."""
        return [place for place in self.places if is_quantizer(place.node) or is_dequantizer(place.node)]

    @cached_property
    def fp8(self) -> bool:
        """Whether anything in the model is in FP8."""
        return any(family(self.reading.format(place.node)) == "fp8" for place in self.pairs)

    def other_format(self, weight: bool) -> str:
        """What to do about FP8 that the target does not import: weights behind DequantizeLinear `optimize` rewrites."""
        name = self.target.asked or self.target.name
        if weight and not self.planned:
            return f"python -m fp8graph optimize MODEL -o OUT --target {name} writes it in e4m3fn"
        return "take its Q/DQ out of the model, or optimize the one that it was made of; --target reference runs it"

    def found(
        self, code: str, place: walk.Place | None, text: str, do: str = "", severity: Severity = "warning"
    ) -> Found:
        """One finding. A node that was inserted for an op is told by its own name."""
        op = "" if place is None else place.key or place.scope + walk.first_output(place.node)
        return Found(None if place is None else place.node, Finding(code, severity, op, text, do))

    def readers(self, node: ir.Node) -> Iterator[tuple[ir.Node, int]]:
        """Who reads the outputs of a node, and in which slot."""
        for value in node.outputs:
            yield from value.uses()
