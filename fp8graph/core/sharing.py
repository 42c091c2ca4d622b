"""One scale for tensors that meet in a Concat, so that FP8 passes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from fp8graph.core.facts import Facts
from fp8graph.data.plan import Decision, OpKey
from fp8graph.graph import tensors, walk


def share_concat(ops: Mapping[OpKey, Decision], model: ir.Model, facts: Facts) -> dict[OpKey, Decision]:
    """The decisions with one scale for a quantized Concat and its operands, wherever those are quantized, too.

    The range of the Concat holds those of its operands; of Concats that have an operand in common all ranges count.
    """
    observed = {q.value for op in ops.values() for q in op.inputs.values() if q.scale.origin == "observed"}
    groups: list[tuple[set[str], set[str]]] = []  # tensors under one scale, and those whose ranges make it
    for place in walk.walk(model):
        if place.node.op_type != "Concat" or place.node.domain not in ("", "ai.onnx"):
            continue
        output = facts.qualified(place.node.outputs[0])
        operands = [value for value in place.node.inputs if value is not None]
        if output not in observed or any(tensors.is_constant(value) for value in operands):
            continue
        members, over = {output, *(facts.qualified(value) for value in operands)}, {output}
        for group in [group for group in groups if group[0] & members]:
            groups.remove(group)
            members, over = members | group[0], over | group[1]
        groups.append((members, over))
    counted = {name: over for members, over in groups for name in members}
    return {
        key: replace(
            op,
            inputs={
                slot: replace(q, scale=replace(q.scale, over=tuple(sorted(counted[q.value] - {q.value}))))
                if q.value in counted and q.scale.origin == "observed"
                else q
                for slot, q in op.inputs.items()
            },
        )
        for key, op in ops.items()
    }
