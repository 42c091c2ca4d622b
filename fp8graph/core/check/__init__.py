"""Legality before the build: what a target rejects or silently drops, with node, consequence and mend.

Works on anybody's Q/DQ model. Rules are those measured on TensorRT-RTX 1.7.1 engines; `error` is what a builder refuses
or computes wrongly, `warning` what builds and does not run as its Q/DQ say, `info` what is worth knowing.

Each file holds one family of rules: a function `find(look)` that yields what it found, in any order.
"""

from __future__ import annotations

import onnx_ir as ir

from fp8graph.base.findings import Finding
from fp8graph.core.check import attention, operators, pairs, products, tensors, whole
from fp8graph.core.check.look import Found, Look
from fp8graph.core.facts import Facts
from fp8graph.data.plan import Plan
from fp8graph.data.target import Target
from fp8graph.graph import walk

_FAMILIES = (whole.find, pairs.find, tensors.find, operators.find, products.find, attention.find)


def check(model: ir.Model, target: Target, facts: Facts | None = None, *, planned: bool = False) -> list[Finding]:
    """All findings: on the model as a whole, then in graph order. Types and shapes have to be inferred.

    facts     under the shapes that the engine is built for; without them the model's own
    planned   a plan has weighed what is no fault of the graph (open shapes, what pays): that is not told again
    """
    return [item.finding for item in find(model, target, facts, planned=planned)]


def find(model: ir.Model, target: Target, facts: Facts | None = None, *, planned: bool = False) -> list[Found]:
    """All findings with their nodes."""
    look = Look(model, target, facts, planned=planned)
    found = dict.fromkeys(item for family in _FAMILIES for item in family(look))  # a set that keeps the order
    return sorted(found, key=lambda item: look.reading.order.get(item.node, -1) if item.node is not None else -1)


def ours(item: Found, plan: Plan | None) -> bool:
    """Whether a finding is about what a plan has done: an op that it quantizes, or a node that was put in for one."""
    if item.node is None:
        return False
    decision = plan.ops.get(item.finding.op) if plan is not None else None
    return walk.FOR in item.node.metadata_props or (decision is not None and decision.do == "quantize")
