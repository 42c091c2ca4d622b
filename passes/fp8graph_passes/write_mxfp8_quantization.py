"""Write MXFP8 quantization as TensorRT's own operators.

    codes, scales = TRT_MXFP8DynamicQuantize(x)     TRT_MXFP8DequantizeLinear(codes, scales)

What it does   1. A QuantizeLinear to E4M3 whose block scales are found in the graph (largest value of each block,
                  divided by 448, rounded up to a power of two) becomes one node of the domain `trt` with two outputs,
                  its DequantizeLinear one that reads both, and what found the scales goes.
               2. A weight that is multiplied with such an operand keeps its codes; its scales become bytes, the
                  exponents of the powers of two, for its TRT_MXFP8DequantizeLinear.
               A Cast to half precision behind either is taken up.
Why            TensorRT computes products in MXFP8 on this form alone, on chips from Blackwell on. Its importer takes no
               scales in E8M0 (tensorrt_rtx 1.7.1): uint8 is how it wants them.
Limits         Blocks of 32 along the last axis of tensors of rank 2 and 3. ONNX Runtime has no such operators; the
               reference writes them out again.
Exactness      exact: the operators' own definition, written out, is what is replaced. In blocks with no value above
               2^-118 the scale may be half of ours, which is 2^-126 at least
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, Exactness, RewritePass, Stage
from fp8graph.graph import edit, tensors, walk
from fp8graph.graph.constants import number
from fp8graph.numerics import cast

DOMAIN, QUANTIZE, DEQUANTIZE = "trt", "TRT_MXFP8DynamicQuantize", "TRT_MXFP8DequantizeLinear"
_FLOAT, _FP8, _POWERS = ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E8M0
_BLOCK = 32
_RANKS = (2, 3)
_PRODUCTS = frozenset({"MatMul", "Gemm"})
_BETWEEN = frozenset({"Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
# From the powers of two up to the value: what finds the scales.
_FOUND_BY = ("Cast", "Max", "Div", "ReduceMax", "Reshape", "Abs")


@dataclass(frozen=True)
class WriteMxfp8Quantization(RewritePass):
    """TRT_MXFP8DynamicQuantize and TRT_MXFP8DequantizeLinear for operands in MXFP8."""

    stage: ClassVar[Stage] = Stage.LEGALIZE
    exact: ClassVar[Exactness] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Cases 1 and 2, each pair once, in bodies, too."""
        names, changed = edit.Names(model), 0
        for place in list(walk.walk(model)):
            if _is_dynamic(place.node):
                _write(place.node, names)
                changed += 1
        if changed:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        for place in list(walk.walk(model)):
            if place.node.op_type in _PRODUCTS and place.node.domain in ("", "ai.onnx"):
                changed += _store(place.node, names)
        return changed


def _is_dynamic(node: ir.Node) -> bool:
    """Whether a node is a QuantizeLinear in MXFP8 with scales of this run, and only DequantizeLinear read its codes."""
    value, scale = [*node.inputs, None, None][:2]
    if node.op_type != "QuantizeLinear" or node.outputs[0].dtype != _FP8 or value is None or scale is None:
        return False
    shape = tensors.dims(value)
    if shape is None or len(shape) not in _RANKS or (shape[-1] or 1) % _BLOCK or not _in_blocks(node, len(shape) - 1):
        return False
    users = [user for user, _ in node.outputs[0].uses()]
    codes_stay = not node.outputs[0].is_graph_output()
    pairs = all(user.op_type == "DequantizeLinear" and user.inputs[1] is scale for user in users)
    return codes_stay and pairs and len(_finders(scale, value)) > 0


def _in_blocks(node: ir.Node, axis: int) -> bool:
    """Whether a Q or DQ has blocks of 32 along this axis, the last one."""
    how = {name: node.attributes[name].as_int() for name in ("axis", "block_size") if name in node.attributes}
    return how.get("block_size") == _BLOCK and how.get("axis") in (-1, axis)


def _finders(scale: ir.Value, value: ir.Value) -> list[ir.Node]:
    """The nodes that find powers of two at or above amax / 448, from the last one up; none where others do."""
    node = scale.producer()
    if node is not None and node.op_type == "Cast" and scale.dtype == _FLOAT:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None  # powers of two, written as float32
    found: list[ir.Node] = []
    for op_type in _FOUND_BY:
        if node is None or node.op_type != op_type or not node.inputs or node.inputs[0] is None:
            return []
        found.append(node)
        node = node.inputs[0].producer()
    rounding = found[0].attributes.get("round_mode")
    upwards = rounding is not None and rounding.as_string() == "up" and found[0].outputs[0].dtype == _POWERS
    divisor = number(found[2].inputs[1])
    largest = float(formats.get("e4m3fn").max)
    return found if upwards and found[-1].inputs[0] is value and divisor is not None and divisor == largest else []


def _write(node: ir.Node, names: edit.Names) -> None:
    graph, codes, value, scale = node.graph, node.outputs[0], node.inputs[0], node.inputs[1]
    assert graph is not None and codes.name and value is not None and scale is not None
    widened = value.producer()
    if widened is not None and widened.op_type == "Cast" and widened.inputs[0] is not None:
        value = widened.inputs[0] if widened.inputs[0].dtype in tensors.HALF else value
    made = edit.new_node(
        QUANTIZE,
        [value],
        names,
        output=f"{codes.name}_mxfp8",
        shape=codes.shape,
        dtype=_FP8,
        attributes={"axis": -1, "block_size": _BLOCK, "output_dtype": int(_FP8)},
        serves=node.metadata_props.get(walk.FOR, ""),
    )
    made.domain = DOMAIN
    made.resize_outputs(2)
    scales = made.outputs[1]
    scales.name = names.fresh(f"{codes.name}_scales")
    scales.type, scales.shape = ir.TensorType(_POWERS), scale.shape
    graph.insert_before(node, [made])
    for user, _ in list(codes.uses()):
        _dequantize(user, made.outputs, -1)
    edit.remove_unread(node)


def _store(product: ir.Node, names: edit.Names) -> int:
    """Case 2 for one product; how many operands are written anew."""
    behind = [walk.origin(value, _BETWEEN) for value in product.inputs[:2]]
    if not any(node is not None and node.op_type == DEQUANTIZE for node in behind):
        return 0
    changed = 0
    for node in behind:
        codes, scale = [*node.inputs, None, None][:2] if node is not None else (None, None)
        if node is None or node.op_type != "DequantizeLinear" or codes is None or scale is None:
            continue
        graph, powers = scale.graph, _exponents(scale)
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        stored = tensors.is_constant(codes) and codes.dtype == _FP8 and _in_blocks(node, axis)
        if not stored or powers is None or not isinstance(graph, ir.Graph):
            continue
        constant = tensors.constant(names.fresh(f"{scale.name}_e8m0"), powers)
        _dequantize(node, (codes, edit.register(graph, constant)), axis)
        edit.drop_unused_initializer(scale)
        changed += 1
    return changed


def _exponents(scale: ir.Value) -> tensors.Array | None:
    """Constant scales as codes of E8M0, one byte each; None where one of them is no power of two."""
    if not tensors.is_constant(scale):
        return None
    kind, array = formats.get("e8m0"), tensors.read(scale)
    if scale.dtype == _POWERS:
        return array.view(np.uint8)
    if scale.dtype != _FLOAT:
        return None
    codes = cast.encode(array, kind)
    return codes if np.array_equal(cast.decode(codes, kind), array) else None


def _dequantize(node: ir.Node, inputs: Sequence[ir.Value], axis: int) -> None:
    """Makes a DequantizeLinear TensorRT's; where Casts to one type of half precision are all that reads it, of that."""
    out = node.outputs[0]
    readers = [user for user, _ in out.uses()]
    kinds = {user.outputs[0].dtype if user.op_type == "Cast" else out.dtype for user in readers}
    if len(kinds) == 1 and kinds <= set(tensors.HALF) and not out.is_graph_output():
        out.type = readers[0].outputs[0].type
        for reader in readers:
            if reader.op_type == "Cast":
                edit.take_over(reader.outputs[0], out)
                edit.remove([reader])
    node.op_type, node.domain = DEQUANTIZE, DOMAIN
    for slot, value in enumerate(inputs):
        node.replace_input_with(slot, value)
    dtype = out.dtype if out.dtype is not None else _FLOAT
    for name, said in (("axis", axis), ("block_size", _BLOCK), ("output_dtype", int(dtype))):
        node.attributes[name] = ir.AttrInt64(name, said)
