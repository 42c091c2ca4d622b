"""What a pass may touch besides the model: read-only documents, facts, notes, progress. No clock, files, randomness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import onnx_ir as ir

from fp8graph.base.findings import Notes, Severity
from fp8graph.base.progress import SILENT, Progress
from fp8graph.core.facts import Dims, Facts
from fp8graph.data.plan import OpKey, Plan
from fp8graph.data.recipe import HighChoice, Recipe
from fp8graph.data.target import Fact, Target
from fp8graph.graph import walk

if TYPE_CHECKING:
    from fp8graph.graph.tensors import Array
    from fp8graph.numerics.moments import Moments
    from fp8graph.numerics.ranges import Ranges


@dataclass
class Context:
    """The surroundings of a pass.

    plan      None while normalizing and planning
    ranges    None unless data was observed
    facts     what target rows may ask; dropped by the pipeline after a change
    high      high-precision type asked for: `keep`, `fp32`, `fp16` or `bf16`
    anew      whether scales that activations came with are to be found anew
    moments   of operands, by op, while a repair that learns from data is asked
    costs     what quantizing an operand (op, slot) costs the model's output, noise over signal power; `noises`: how
              that is spread over its channels, float64 [channels]; `macs`: multiply-accumulates of an op over the
              samples; while a repair that weighs is asked. `granted`: channels by op and slot
    found     arrays that repairs have found, by name
    powers    mean squares by channel of the tensors that a repair of channels needs, float64 [channels], by name
    """

    target: Target
    recipe: Recipe
    plan: Plan | None = None
    ranges: Ranges | None = None
    progress: Progress = SILENT
    notes: Notes = field(default_factory=Notes)
    facts: Facts | None = None
    high: HighChoice = "keep"
    anew: bool = False
    moments: Mapping[OpKey, Moments] = field(default_factory=dict)
    found: Mapping[str, Array] = field(default_factory=dict)
    powers: Mapping[str, Array] = field(default_factory=dict)
    costs: Mapping[tuple[OpKey, int], float] = field(default_factory=dict)
    noises: Mapping[tuple[OpKey, int], Array] = field(default_factory=dict)
    macs: Mapping[OpKey, float] = field(default_factory=dict)
    granted: Mapping[OpKey, Mapping[int, Sequence[int]]] = field(default_factory=dict)

    def note(self, code: str, op: str, text: str, *, severity: Severity = "info", do: str = "") -> None:
        """Leaves a finding for the user."""
        self.notes.add(code, op, text, severity=severity, do=do)


class OpView:
    """One op as a rule sees it."""

    def __init__(self, place: walk.Place, facts: Facts, *, half: bool) -> None:
        self.node = place.node
        self.key = place.key
        self.scope = place.scope
        self.graph = place.graph
        self._facts = facts
        self._half = half

    @property
    def type(self) -> str:
        """The operator type; with its domain where that is not ONNX's own."""
        domain = self.node.domain
        return self.node.op_type if domain in ("", "ai.onnx") else f"{domain}::{self.node.op_type}"

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name or ""

    @cached_property
    def facts(self) -> dict[str, Fact]:
        """What rows of a target may ask about the op."""
        return self._facts.of(self.node, half=self._half)

    @property
    def all_facts(self) -> Facts:
        """Facts about other ops and values."""
        return self._facts

    def input(self, slot: int) -> ir.Value | None:
        """The value in an input slot; None where it is left out."""
        return self.node.inputs[slot] if slot < len(self.node.inputs) else None

    def input_dims(self, slot: int) -> Dims | None:
        """Dimensions of an input; None for each that is not known, None where the rank is not."""
        return self._facts.dims(self.input(slot))
