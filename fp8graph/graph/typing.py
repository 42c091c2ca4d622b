"""Which inputs and outputs of an op ONNX lets have a high-precision type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from fp8graph.graph import tensors, walk

_ONNX_NAMES = {"fp32": "tensor(float)", "fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}


@dataclass(frozen=True)
class Slots:
    """Input and output slots of an op that can have the type asked for."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def typed_slots(node: ir.Node, imports: Mapping[str, int], dtype: ir.DataType) -> Slots:
    """Which slots ONNX lets be of this type; none for ops with bodies, for other domains, and where the type is fixed.

    None, too, for ops on sequences, and for slots that share their type with an input whose type is not known (a
    custom op's result): a Cast of one would let them differ.

    An output follows where one of the inputs binds its type variable: the output type of Cast, Range or
    ConstantOfShape is said elsewhere.
    """
    nothing = Slots(frozenset(), frozenset())
    domain = "" if node.domain == "ai.onnx" else node.domain
    types = [value.type for value in (*node.inputs, *node.outputs) if value is not None and value.type is not None]
    if not all(isinstance(kind, ir.TensorType) for kind in types):
        return nothing
    if domain or any(True for _ in walk.bodies(node)) or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return nothing
    try:
        schema = onnx.defs.get_schema(node.op_type, imports.get("", 1), domain)
    except onnx.defs.SchemaError:
        return nothing
    wanted = _ONNX_NAMES[tensors.FLOATS[dtype]]
    allowed = {item.type_param_str for item in schema.type_constraints if wanted in item.allowed_type_strs}

    def variable(formals: list[onnx.defs.OpSchema.FormalParameter], slot: int) -> str:
        if slot < len(formals):
            return str(formals[slot].type_str)
        last = formals[-1] if formals else None
        variadic = last is not None and last.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
        return str(last.type_str) if last is not None and variadic else ""

    formal_in, formal_out = list(schema.inputs), list(schema.outputs)
    allowed -= {
        variable(formal_in, slot) for slot, value in enumerate(node.inputs) if value is not None and value.dtype is None
    }
    inputs = frozenset(
        slot
        for slot, value in enumerate(node.inputs)
        if value is not None and value.dtype in tensors.PLAIN and variable(formal_in, slot) in allowed
    )
    bound = {variable(formal_in, slot) for slot in inputs}
    outputs = frozenset(slot for slot in range(len(node.outputs)) if variable(formal_out, slot) in bound & allowed)
    if node.op_type == "Cast":
        outputs = frozenset()
    return Slots(inputs, outputs)
