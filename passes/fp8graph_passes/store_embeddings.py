"""Store embedding tables in the weights' format, with one scale.

What it does   The constant table that Gather looks rows up in becomes codes behind a DequantizeLinear, with one scale.
               No recipe of ours names this pass: --passes store-embeddings does.
Why            A quarter of the bytes of float32; rows are dequantized as they are looked up. There is no arithmetic to
               gain on. tensorrt_rtx 1.7.1, read in engines: with one scale the kernel that looks up dequantizes, with
               one a row a kernel of its own dequantizes the whole table before.
Codes          FG224 an embedding is stored in FP8
Exactness      rounds the table to FP8
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.formats.spec import Format, PerTensor
from fp8graph.graph import edit, tensors, walk
from fp8graph.numerics import cast
from fp8graph.numerics.scale import channel_amax, scale_from_amax


@dataclass(frozen=True)
class StoreEmbeddings(RewritePass):
    """Tables of Gather in FP8."""

    stage: ClassVar[Stage] = Stage.FOLD
    exact: ClassVar[Exactness] = Approximate("rounds embedding tables to FP8")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Each table once, for all that look rows up in it."""
        names, form = edit.Names(model), formats.get(ctx.recipe.weights.format)
        done: dict[ir.Value, ir.Value] = {}
        changed = 0
        for place in list(walk.walk(model)):
            table = _table(place.node)
            if table is None:
                continue
            if table not in done:
                done[table] = _stored(table, form, names, place.key)
            edit.replace_input(place.node, 0, done[table])
            ctx.note("FG224", place.key, f"the table '{table.name}' is stored in {form.name}")
            changed += 1
        edit.drop_unused_initializers(done)
        return changed


def _table(node: ir.Node) -> ir.Value | None:
    """The finite float table that a Gather takes rows of; None for anything else."""
    if node.op_type != "Gather" or node.domain not in ("", "ai.onnx"):
        return None
    axis = node.attributes.get("axis")
    value = node.inputs[0]
    if (
        value is None
        or not tensors.is_constant(value)
        or value.dtype not in tensors.PLAIN
        or len(value.shape or ()) != 2
    ):
        return None
    if (axis is not None and axis.as_int() != 0) or not isinstance(value.graph, ir.Graph):
        return None
    array = tensors.read(value)
    finite = bool(np.isfinite(array).all())
    tensors.release(value)
    return value if finite else None


def _stored(table: ir.Value, form: Format, names: edit.Names, key: str) -> ir.Value:
    array = tensors.read(table)
    scale = np.asarray(scale_from_amax(channel_amax(array, PerTensor()), form), np.float32)
    tensors.release(table)

    def encoded(weight: tensors.Array) -> tensors.Array:
        return cast.encode(weight, form, scale).view(cast.ml_dtype(form))

    graph = table.graph
    assert isinstance(graph, ir.Graph)
    name = names.fresh(f"{table.name}_{formats.family(form.name)}")
    codes = tensors.lazy_from(table, name, encoded, dtype=ir.DataType(form.onnx_type))
    scales = tensors.constant(names.fresh(f"{table.name}_scale"), scale)
    graph.register_initializer(codes)
    graph.register_initializer(scales)
    node = edit.new_node(
        "DequantizeLinear",
        [codes, scales],
        names,
        output=f"{table.name}_dq",
        shape=table.shape,
        dtype=table.dtype,
        serves=key,
    )
    edit.insert_after(codes, [node], graph)
    return node.outputs[0]
