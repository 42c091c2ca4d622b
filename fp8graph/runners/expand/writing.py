"""What expansions write with: nodes in front of the one that they stand for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fp8graph.base.errors import BackendError
from fp8graph.graph import edit, tensors, walk

FLOAT = ir.DataType.FLOAT


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Whether the node is an operator of ONNX itself, and one of these."""
    return node.op_type in op_types and node.domain in ("", "ai.onnx")


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute of a node that is a number."""
    said = node.attributes.get(name)
    return default if said is None else said.as_int()


def made_type(node: ir.Node) -> ir.DataType | None:
    """The type that a Cast, Q, DQ, Constant or ConstantOfShape says its output has; None for others."""
    if is_standard(node, "Constant", "ConstantOfShape"):
        said = node.attributes.get("value")
        known = said is not None and not said.is_ref() and said.type == ir.AttributeType.TENSOR
        return said.as_tensor().dtype if said is not None and known else None
    if is_standard(node, "Cast", "QuantizeLinear", "DequantizeLinear"):
        said = node.attributes.get("to" if node.op_type == "Cast" else "output_dtype")
        if said is not None and not said.is_ref() and said.as_int():
            return ir.DataType(said.as_int())
        zero = node.inputs[2] if node.op_type == "QuantizeLinear" and len(node.inputs) > 2 else None
        return zero.dtype if zero is not None else None
    return None


def refused(place: walk.Place, why: str) -> BackendError:
    """The error for a form that no runtime here computes."""
    node = place.node
    return BackendError(
        f"the reference does not know this form of {node.op_type}",
        where=f'op {place.key}  (name "{node.name}")',
        why=why,
        do="compare the model that it was made from, or run it where it is to run",
        code="FG133",
    )


class Writer:
    """Nodes that replace one: made in order, and put in front of it by `replace`."""

    def __init__(self, node: ir.Node, graph: ir.Graph, names: edit.Names) -> None:
        self.node, self.graph, self.names = node, graph, names
        self.name = walk.first_output(node)
        self.nodes: list[ir.Node] = []

    def add(
        self, op_type: str, *inputs: ir.Value | None, of: ir.DataType = FLOAT, **attributes: edit.AttributeValue
    ) -> ir.Value:
        """The result of one op more."""
        name = f"{self.name}_{op_type}"
        made = edit.new_node(op_type, inputs, self.names, output=name, dtype=of, attributes=attributes)
        self.nodes.append(made)
        return made.outputs[0]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type; itself where it is known to have that one."""
        return value if value.dtype == dtype else self.add("Cast", value, of=dtype, to=int(dtype))

    def constant(self, array: tensors.Array) -> ir.Value:
        """A small constant."""
        return edit.register(self.graph, tensors.constant(self.names.fresh(f"{self.name}_constant"), array))

    def number(self, value: float) -> ir.Value:
        """A float32 scalar."""
        return self.constant(np.asarray(value, np.float32))

    def spread(self, scale: ir.Value, over: ir.Value, axis: int, block_size: int) -> ir.Value:
        """A float32 scale in the shape of the tensor that it is for, whatever its granularity.

        1 dequantized is the scale, and DequantizeLinear knows each granularity, ragged blocks too.
        """
        if tensors.dims(scale) == ():
            return scale
        one = ir.AttrTensor("value", ir.tensor(np.ones(1, np.int8)))
        ones = self.add(
            "ConstantOfShape", self.add("Shape", over, of=ir.DataType.INT64), of=ir.DataType.INT8, value=one
        )
        blocked = {"block_size": block_size} if block_size else {}
        return self.add("DequantizeLinear", ones, scale, of=FLOAT, axis=axis, **blocked)

    def replace(self, *results: ir.Value | None) -> None:
        """Lets results stand for the node's outputs, under their names, and removes the node."""
        self.graph.insert_before(self.node, self.nodes)
        for old, new in zip(self.node.outputs, results, strict=False):
            if new is not None:
                edit.take_over(old, new, rename=True)
        edit.remove([self.node])
