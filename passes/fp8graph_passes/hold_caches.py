"""Hold caches of keys and values in FP8 from step to step: inputs and outputs of the model become FP8.

What it does   1. A cache that is an input becomes codes, with DequantizeLinear behind it for all who read it.
               2. The output that is this input in the next step becomes the codes of QuantizeLinear with the same
                  scale; whoever reads that value reads it behind DequantizeLinear.
               The older part, dequantized and quantized again with one scale, keeps its codes. The scale and the type
               that the cache had stand in the metadata of input and output.
Why            A cache in FP8 takes half the memory of fp16, and a step of generation is bound by reading it: engines of
               TensorRT-RTX 1.7.1 read the codes themselves, in decoding as in prefill. The form is standard ONNX; a
               Concat of codes, which gives the same engine, is none.
Where          Where the plan has caches (`--kv-cache fp8`).
Exactness      approximate: keys and values are rounded to the cache's format
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.base.errors import InputError
from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.data.plan import Cache
from fp8graph.graph import coded, edit, tensors


@dataclass(frozen=True)
class HoldCaches(RewritePass):
    """Carry out the plan's caches."""

    stage: ClassVar[Stage] = Stage.QUANTIZE
    exact: ClassVar[Exactness] = Approximate("rounds cached keys and values to FP8")
    retypes: ClassVar[bool] = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every cache of the plan once. Raises InputError FG110 for one that the model does not have."""
        caches = ctx.plan.caches if ctx.plan is not None else {}
        names = edit.Names(model)
        for name, cache in caches.items():
            _hold(model.graph, name, cache, names)
        return len(caches)


def _hold(graph: ir.Graph, name: str, cache: Cache, names: edit.Names) -> None:
    value = next((item for item in graph.inputs if item.name == name), None)
    output = next((item for item in graph.outputs if item.name == cache.output), None)
    number = cache.quant.scale.value
    if value is None or value.dtype not in tensors.FLOATS or number is None or bool(cache.output) != bool(output):
        raise InputError(
            "the plan's cache does not fit the model",
            where=f"input '{name}', output '{cache.output}'",
            why="the model has no such float input or output, or the plan no scale",
            do="make a plan for this model",
            code="FG110",
        )
    form = formats.get(cache.quant.format)
    scale = tensors.constant(names.fresh(f"{name}_scale"), np.asarray(number, np.float32))
    graph.register_initializer(scale)
    kind, dtype = ir.DataType(form.onnx_type), value.dtype
    assert dtype is not None
    if output is not None:
        codes = _quantized(graph, output, scale, kind, names)
        coded.mark(codes, number, dtype)
    readers = list(value.uses())
    node = _dequantize(value, scale, dtype, names, name)
    value.type = ir.TensorType(kind)
    coded.mark(value, number, dtype)
    _rewire(readers, node.outputs[0])
    edit.insert_after(value, [node], graph)


def _quantized(graph: ir.Graph, output: ir.Value, scale: ir.Value, kind: ir.DataType, names: edit.Names) -> ir.Value:
    """Returns the codes in the output's place, and lets its readers read them."""
    name, dtype, readers = output.name or "", output.dtype, list(output.uses())
    assert dtype is not None
    output.name = names.fresh(f"{name}_value")
    codes = edit.new_node(
        "QuantizeLinear",
        [output, scale],
        names,
        output=f"{name}_q",
        shape=output.shape,
        dtype=kind,
        attributes={"output_dtype": int(kind)},
        serves=name,
    )
    fresh = codes.outputs[0]
    fresh.name, fresh.doc_string = name, output.doc_string
    fresh.metadata_props.update(output.metadata_props)
    back = _dequantize(fresh, scale, dtype, names, name)
    _rewire(readers, back.outputs[0])
    edit.insert_after(output, [codes, back] if readers else [codes], graph)
    for index, returned in enumerate(graph.outputs):
        if returned is output:
            graph.outputs[index] = fresh
    return fresh


def _dequantize(value: ir.Value, scale: ir.Value, dtype: ir.DataType, names: edit.Names, serves: str) -> ir.Node:
    return edit.new_node(
        "DequantizeLinear",
        [value, scale],
        names,
        output=f"{value.name}_dq",
        shape=value.shape,
        dtype=dtype,
        serves=serves,
    )


def _rewire(readers: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, slot in readers:
        if node.op_type != "Shape" or node.domain not in ("", "ai.onnx"):
            edit.replace_input(node, slot, value)
