"""Put weights that came as codes back behind DequantizeLinear, where the plan leaves their product alone.

What it does   A constant that `lift-given-weights` made becomes DequantizeLinear(codes, scale) again for every op whose
               plan does not quantize it; ops that the plan quantizes go on reading the constant. What the target does
               not read (a format, blocks that do not divide their axis) stays the constant.
Why            The file holds one byte an element for such a weight, as it came, and not two or four.
Exactness      exact: DequantizeLinear makes of codes and scales what the constant was
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.given_weights import readable
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.data.plan import Plan
from fp8graph.graph import edit, given, walk


@dataclass(frozen=True)
class RestoreGivenWeights(RewritePass):
    """Weights that stay in high precision stay stored as they came."""

    stage: ClassVar[Stage] = Stage.QUANTIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every such constant of all graphs once."""
        names, changed = edit.Names(model), 0
        for _, graph in list(walk.graphs(model)):
            weights = [] if isinstance(graph, ir.Function) else list(graph.initializers.values())
            for value in weights:
                found = given.of(value)
                back = found is not None and readable(ctx.target, found)
                kept = [use for use in value.uses() if not _quantizes(ctx.plan, *use)] if back else []
                if found is not None and kept:
                    assert isinstance(graph, ir.Graph)
                    _restore(graph, value, found, kept, names)
                    changed += 1
        return changed


def _quantizes(plan: Plan | None, node: ir.Node, slot: int) -> bool:
    decision = plan.ops.get(walk.node_key(node)) if plan is not None else None
    return decision is not None and slot in decision.inputs


def _restore(
    graph: ir.Graph, value: ir.Value, found: given.Given, kept: Sequence[tuple[ir.Node, int]], names: edit.Names
) -> None:
    coded = [given.stored(item, graph, names) for item in (found.codes, found.scale)]
    assert value.name is not None
    name = value.name
    if len(kept) == len(list(value.uses())):
        del graph.initializers[name]
        value.name = f"{name}_lifted"
    else:
        name = names.fresh(name)
    output = ir.Value(name=name, shape=value.shape, type=value.type)
    node = ir.node(
        "DequantizeLinear", coded, attributes=found.attributes(value.dtype), outputs=[output], name=found.node
    )
    graph.insert_before(graph[0], [node])
    for user, slot in kept:
        user.replace_input_with(slot, output)
