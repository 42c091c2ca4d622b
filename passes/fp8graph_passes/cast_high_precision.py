"""Give every op the high-precision type that the plan says, with Casts where types meet.

What it does   1. An op planned in fp16 or bf16 reads its float inputs in that type and yields it, as far as ONNX lets
                  the op have it; constants are converted once, and finite numbers stay finite: a mask of float32's
                  lowest number times zero must not become NaN.
               2. An op planned in fp32 inside such a graph (a tensor does not fit fp16) gets Casts around it.
               3. Inputs and outputs of the model, and of every body, keep their types.
               Operands that the plan quantizes are left alone: Q reads the tensor as its producer wrote it.
Why            Networks are strongly typed: what is to run in half precision must say so in the graph.
Exactness      rounds to the type asked for; nothing changes where the plan keeps the model's own types
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.data.plan import Decision, OpKey
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.typing import typed_slots


@dataclass(frozen=True)
class CastHighPrecision(RewritePass):
    """Carry out the plan's high-precision types."""

    stage: ClassVar[Stage] = Stage.QUANTIZE
    exact: ClassVar[Exactness] = Approximate("rounds to the high-precision type asked for")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every planned op once, bodies included; functions keep their types."""
        if ctx.plan is None:
            return 0
        work = _Casting(model, ctx.plan.ops)
        for scope, graph in walk.graphs(model):
            if not scope.startswith("fn:") and isinstance(graph, ir.Graph):
                work.graph(graph)
        work.restore_outputs()
        edit.drop_unused_initializers(work.replaced)
        return work.changes


class _Casting:
    def __init__(self, model: ir.Model, ops: Mapping[OpKey, Decision]) -> None:
        self.names = edit.Names(model)
        self.ops = ops
        self.opset = model.graph.opset_imports.get("", 1)
        self.imports = model.graph.opset_imports
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.returned = [
            (value, value.dtype)
            for scope, graph in walk.graphs(model)
            if not scope.startswith("fn:")
            for value in graph.outputs
        ]
        self.own = {value: value.dtype for _, graph in walk.graphs(model) for value in walk.values(graph)}
        self.replaced: list[ir.Value] = []
        self.changes = 0

    def graph(self, graph: ir.Graph) -> None:
        for node in list(graph):
            decision = self.ops.get(walk.node_key(node))
            if decision is None:
                continue
            slots = typed_slots(node, self.imports, tensors.ONNX[decision.high])
            for slot, value in enumerate(node.inputs):
                if value is None or value.dtype not in tensors.PLAIN or slot in decision.inputs:
                    continue
                wanted = tensors.ONNX[decision.high] if slot in slots.inputs else self.own.get(value, value.dtype)
                if wanted is not None and value.dtype != wanted:
                    node.replace_input_with(slot, self.cast(value, wanted))
                    self.changes += 1
            for slot, value in enumerate(node.outputs):
                wanted = tensors.ONNX[decision.high] if slot in slots.outputs else self.own.get(value)
                if value.dtype in tensors.PLAIN and wanted is not None and value.dtype != wanted:
                    value.type = ir.TensorType(wanted)
                    self.changes += 1

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another float type; one Cast, or one converted constant, for all its readers."""
        done = self.casts.get((value, dtype))
        if done is not None:
            return done
        kind = tensors.FLOATS[dtype]
        name = f"{value.name}_{kind}"
        graph = value.graph
        assert graph is not None
        if tensors.is_constant(value) and isinstance(graph, ir.Graph):
            fresh = self.names.fresh(name)
            done = tensors.lazy_from(value, fresh, lambda array: _narrowed(array, kind), dtype=dtype)
            graph.register_initializer(done)
            self.replaced.append(value)
        else:
            node = edit.new_node(
                "Cast",
                [value],
                self.names,
                output=name,
                shape=value.shape,
                dtype=dtype,
                attributes={"to": int(dtype)},
                serves=_key_of(value),
            )
            edit.insert_after(value, [node], graph)
            done = node.outputs[0]
        self.casts[value, dtype] = done
        return done

    def restore_outputs(self) -> None:
        """Casts back what a graph returns in its own type, under its own name."""
        for value, dtype in self.returned:
            graph = value.graph
            if dtype is None or value.dtype == dtype or not isinstance(graph, ir.Graph) or not value.is_graph_output():
                continue
            name, changed = value.name or "", value.dtype
            assert changed is not None
            value.name = self.names.fresh(f"{name}_{tensors.FLOATS[changed]}")
            node = edit.new_node(
                "Cast",
                [value],
                self.names,
                output=f"{name}_back",
                shape=value.shape,
                dtype=dtype,
                attributes={"to": int(dtype)},
                serves=_key_of(value),
            )
            output = node.outputs[0]
            output.name = name
            output.doc_string = value.doc_string
            output.metadata_props.update(value.metadata_props)
            graph.append(node)
            for index, returned in enumerate(graph.outputs):
                if returned is value:
                    graph.outputs[index] = output
            self.changes += 1


def _key_of(value: ir.Value) -> str:
    """The op that a value comes from; an input's own name where it comes from none."""
    producer = value.producer()
    return (walk.node_key(producer) if producer is not None else "") or value.name or "?"


def _narrowed(array: tensors.Array, kind: str) -> tensors.Array:
    """The array in another float type; a finite number beyond the type's end becomes its last one, not an infinity."""
    dtype = tensors.NUMPY[kind]
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    with np.errstate(over="ignore"):
        out = array.astype(dtype)
    beyond = np.isinf(out) & np.isfinite(array)
    if beyond.any():
        out[beyond] = np.copysign(largest, array[beyond]).astype(dtype)
    return out
