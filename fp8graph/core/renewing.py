"""A model that was carried out, with what repairs have found since: the codes and biases of single ops alone.

Carrying the whole plan out anew for each op that a repair has solved takes as many times as long as there are ops.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.quants import contraction_axis
from fp8graph.core.reading import DEQUANTIZE
from fp8graph.core.terms import widened
from fp8graph.data.plan import Adjust, Decision, Plan
from fp8graph.graph import edit, tensors, walk
from fp8graph.numerics import cast, sidecar
from fp8graph.numerics.sidecar import Array


def renew(model: ir.Model, before: Plan, plan: Plan, plain: Mapping[str, ir.Node]) -> bool:
    """Gives a model that was made of `before` the codes and biases of `plan`, in place.

    plain   ops of the normalized model, by key

    False where they cannot be placed (a later pass has written the operand in another way, or a repair has found
    something else): then some may be in, and the plan has to be carried out anew.
    """
    changed = {key for key, op in plan.ops.items() if op.adjust != before.ops[key].adjust}
    names = edit.Names(model)
    for place in list(walk.walk(model)) if changed else ():
        if place.key not in changed:
            continue
        changed.discard(place.key)
        decision = plan.ops[place.key]
        for item in decision.adjust:
            if item in before.ops[place.key].adjust:
                continue
            if item.kind == "codes":
                done = _codes(place, decision, item, plan.arrays, names)
            else:
                done = item.kind == "bias" and _bias(place, plain[place.key], item, plan.arrays, names)
            if not done:
                return False
    return not changed


def _codes(place: walk.Place, decision: Decision, item: Adjust, arrays: Mapping[str, Array], names: edit.Names) -> bool:
    node = walk.origin(place.node.inputs[item.slot], {"Cast"})
    held = node.inputs[0] if node is not None and node.op_type in DEQUANTIZE else None
    if node is None or held is None or not tensors.is_constant(held) or len(held.uses()) > 1:
        return False
    form, codes = formats.get(decision.inputs[item.slot].format), sidecar.fetch(arrays, item.value)
    again = next((each for each in decision.adjust if each.kind == "terms" and each.slot == 1 - item.slot), None)
    if again is not None:
        channels = sidecar.fetch(arrays, again.value)
        codes = widened(codes, channels, contraction_axis(place.node, item.slot, codes.ndim), form)
    return _placed(node, 0, held, codes.view(cast.ml_dtype(form)), names)


def _bias(place: walk.Place, plain: ir.Node, item: Adjust, arrays: Mapping[str, Array], names: edit.Names) -> bool:
    held, came = place.node.inputs[2], plain.inputs[2]
    if held is None or came is None or not tensors.is_constant(held) or held.dtype is None:
        return False
    kind = held.dtype.numpy()
    if (tensors.read(came).astype(kind) != tensors.read(held)).any():
        return False  # a factor was folded into it
    better = tensors.read(held).astype(np.float32) + sidecar.fetch(arrays, item.value)
    return _placed(place.node, 2, held, better.astype(kind), names)


def _placed(node: ir.Node, slot: int, held: ir.Value, array: Array, names: edit.Names) -> bool:
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        return False
    new = tensors.constant(names.fresh(f"{held.name}_found"), array)
    if tensors.dims(held) != array.shape or held.dtype != new.dtype:
        return False
    graph.register_initializer(new)
    edit.replace_input(node, slot, new)
    edit.drop_unused_initializers([held])
    return True
