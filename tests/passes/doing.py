"""Runs one pass on one small model, and says what came of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from fp8graph.base.codes import CODES
from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import PlanRule, RewritePass, Stage
from fp8graph.data import recipe as recipes
from fp8graph.data import target as targets
from fp8graph.graph import keys, walk
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types
from fp8graph.testing import outputs, planned, random_feeds


@dataclass(frozen=True)
class Done:
    """A model before and behind a pass. `count` is what the pass returned."""

    before: ir.Model
    model: ir.Model
    count: int
    ctx: Context

    @property
    def kinds(self) -> Counter[str]:
        """How many nodes of each type are left, bodies and functions included."""
        return Counter(place.node.op_type for place in walk.walk(self.model))

    @property
    def constants(self) -> dict[str, Any]:
        """Every initializer as an array, whatever graph it lies in."""
        found: dict[str, Any] = {}
        for _, graph in walk.graphs(self.model):
            if isinstance(graph, ir.Graph):
                found |= {name: value.const_value.numpy() for name, value in graph.initializers.items()}
        return found

    def node(self, output: str) -> ir.Node:
        """The node that writes a value of this name."""
        return next(p.node for p in walk.walk(self.model) if output in [value.name for value in p.node.outputs])

    def at(self, key: str) -> ir.Node:
        """The op with this key, whatever its output is called now."""
        return next(place.node for place in walk.walk(self.model) if place.key == key)

    def inputs(self, output: str) -> list[str | None]:
        """What the node behind a value reads."""
        return [value.name if value is not None else None for value in self.node(output).inputs]

    def outputs(self, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """What both models yield for one feed, each op computed alone."""
        feed = random_feeds(self.before, seed=seed)
        return outputs(self.before, feed), outputs(self.model, feed)

    def same(self) -> bool:
        """Whether both yield the same, bit by bit, and the new one is valid ONNX with right types."""
        onnx.checker.check_model(ir.to_proto(self.model), full_check=True)
        pairs = [self.outputs(seed) for seed in range(2)]
        return all(
            old[name].dtype == new[name].dtype and np.array_equal(old[name], new[name], equal_nan=True)
            for old, new in pairs
            for name in old
        )

    def apart(self) -> float:
        """How far the outputs are apart, in units in the last place of float32 of the largest element."""
        onnx.checker.check_model(ir.to_proto(self.model), full_check=True)
        worst = 0.0
        for old, new in (self.outputs(seed) for seed in range(2)):
            for name in old:
                peak = np.abs(old[name]).max()
                worst = max(worst, float(np.abs(new[name] - old[name]).max() / np.spacing(peak)))
        return worst


def run(item: RewritePass, model: Any, *, target: str = "reference", high: Any = "keep") -> Done:
    """The pass alone, on a model that is named and typed and nothing else; without a plan."""
    work = load(model).model
    keys.name_everything(work)
    infer_types(work)
    ctx = Context(target=targets.load(target), recipe=recipes.load("fp8-default"), high=high)
    before = work.clone()
    return Done(before, work, item.rewrite(work, ctx), ctx)


def planned_run(item: RewritePass, model: Any, **how: Any) -> Done:
    """The pass where it is at home in the pipeline, with a settled plan; `how` as for `fp8graph.testing.planned`."""
    prepared = planned(model, until=item, **how)
    before = prepared.model.clone()
    return Done(before, prepared.model, item.rewrite(prepared.model, prepared.ctx), prepared.ctx)


def opinions(rule: PlanRule, model: Any, **how: Any) -> dict[str, tuple[str, str]]:
    """What a rule says about each op of the normalized model that it has an opinion on: what to do, and the code."""
    prepared = planned(model, until=Stage.QUANTIZE, **how)
    found = {}
    for place in walk.walk(prepared.model):
        opinion = rule.decide(OpView(place, prepared.facts, half=False), prepared.ctx)
        if opinion is not None:
            assert opinion.code in CODES and opinion.text
            found[place.key] = (opinion.do, opinion.code)
    return found
