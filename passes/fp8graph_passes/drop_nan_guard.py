"""Drop the guard against NaN behind attention's Softmax, or move it behind the second product.

A row of scores that is -inf throughout makes Softmax yield NaN, and Where(IsNaN(p), 0, p) then makes it 0. A row of
P V is NaN where that of P is:   Where(IsNaN(P), 0, P) V = Where(IsNaN(P V), 0, P V).

What it does   1. Where no score can be -inf (the mask's numbers are finite, and do not overflow in the sum), the guard
                  goes: it never fires.
               2. Else, where only the product with V reads it, it moves behind that product. The product keeps its key,
                  and what is guarded now has the name of the product's output.
               Where neither can be, it stays, with a note.
Why            With the guard in between, TensorRT-RTX does not fuse attention in FP8; behind the product it does.
Limits         Scores and V are taken to be finite: a model in which they overflow gives other garbage than before.
Codes          FG232 a guard against NaN was left behind Softmax
Exactness      exact: 0 times V was 0, and any other row is left as it is
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core import bounds
from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import edit, tensors, walk

# Between Softmax and guard, and between guard and product: what keeps each element's place.
_SAME = frozenset({"Cast", "Identity", "Dropout"})


@dataclass(frozen=True)
class DropNanGuard(RewritePass):
    """No guard between Softmax and the product behind it."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Each guard once, in bodies and functions, too."""
        names, changed = edit.Names(model), 0
        # Up to opset 12 Softmax without an axis is over all axes from the second on.
        axis = -1 if model.graph.opset_imports.get("", 13) > 12 else 1
        for place in list(walk.walk(model)):
            guard = _guard(place)
            if guard is None:
                continue
            if bounds.finite(bounds.bounds(guard.softmax.inputs[0])) and not guard.output.is_graph_output():
                _bypass(guard)
            elif (product := guard.product(axis)) is not None:
                _move(guard, product, names)
            else:
                ctx.note("FG232", place.key, "the mask may hold -inf, and not one product alone reads what is guarded")
                continue
            changed += 1
        return changed


@dataclass(frozen=True)
class _Guard:
    """Where(IsNaN(p), 0, p) behind a Softmax."""

    place: walk.Place
    test: ir.Node
    softmax: ir.Node

    @property
    def p(self) -> ir.Value:
        value = self.test.inputs[0]
        assert value is not None
        return value

    @property
    def zero(self) -> ir.Value:
        value = self.place.node.inputs[1]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        return self.place.node.outputs[0]

    def product(self, axis: int) -> ir.Node | None:
        """The product that the guard can move behind; `axis` is Softmax's where it names none."""
        tested, attribute = self.test.outputs[0], self.softmax.attributes.get("axis")
        axis = attribute.as_int() if attribute is not None else axis
        last = axis == -1 or (self.p.shape is not None and axis == len(self.p.shape) - 1)
        if not last or len(tested.uses()) != 1 or tested.is_graph_output():
            return None
        found = _product(self.output)
        if found is None or (found.outputs[0].dtype != self.zero.dtype and not isinstance(self.zero.graph, ir.Graph)):
            return None
        return found


def _guard(place: walk.Place) -> _Guard | None:
    node = place.node
    if node.op_type != "Where" or node.domain not in ("", "ai.onnx"):
        return None
    condition, zero, p = node.inputs
    test = condition.producer() if condition is not None else None
    if test is None or test.op_type != "IsNaN" or test.inputs[0] is not p or test.graph is not node.graph:
        return None
    if zero is None or not tensors.is_constant(zero) or zero.const_value is None or zero.const_value.size != 1:
        return None
    softmax = _softmax(p)
    return _Guard(place, test, softmax) if softmax is not None and not tensors.read(zero).any() else None


def _softmax(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _SAME:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node if node is not None and node.op_type == "Softmax" else None


def _product(value: ir.Value) -> ir.Node | None:
    """The product that alone reads the value, as its left operand: its rows are then those of the result."""
    while not value.is_graph_output():
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.graph is not value.graph:
            return None
        user, slot = uses[0]
        if user.op_type == "MatMul" and user.domain in ("", "ai.onnx"):
            return user if slot == 0 and user.inputs[1] is not value else None
        if user.op_type not in _SAME or slot:
            return None
        value = user.outputs[0]
    return None


def _bypass(guard: _Guard) -> None:
    zero = guard.zero
    guard.output.replace_all_uses_with(guard.p)
    edit.remove([guard.place.node])
    if not guard.test.outputs[0].uses() and not guard.test.outputs[0].is_graph_output():
        edit.remove([guard.test])
    edit.drop_unused_initializer(zero)


def _move(guard: _Guard, product: ir.Node, names: edit.Names) -> None:
    """Puts the guard's own nodes behind the product; keys stay, for they are written down before names move."""
    place, test, result = guard.place, guard.test, product.outputs[0]
    for node in (place.node, product):
        node.metadata_props[walk.KEY] = walk.node_key(node) or place.scope + walk.first_output(node)
    guarded, p, zero = guard.output, guard.p, guard.zero
    guarded.replace_all_uses_with(p)
    guarded.type, guarded.shape, test.outputs[0].shape = result.type, result.shape, result.shape
    name = result.name
    edit.take_over(result, guarded, rename=True)
    result.name = names.fresh(f"{name}_unguarded")
    fitting = zero if zero.dtype == result.dtype else _zero_like(zero, result, names)
    for node, slot, value in ((test, 0, result), (place.node, 1, fitting), (place.node, 2, result)):
        edit.replace_input(node, slot, value)
    place.graph.remove([test, place.node])
    place.graph.insert_after(product, [test, place.node])
    edit.drop_unused_initializer(zero)


def _zero_like(zero: ir.Value, value: ir.Value, names: edit.Names) -> ir.Value:
    assert value.dtype is not None and isinstance(zero.graph, ir.Graph)
    array = np.zeros((), tensors.NUMPY[tensors.FLOATS[value.dtype]])
    return edit.register(zero.graph, tensors.constant(names.fresh(f"{zero.name}_as_product"), array))
