"""The nodes of a model as engines name them, and what stands before their operands: Q/DQ, moves, what breaks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from fp8graph.core.operands import PRODUCTS as PRODUCTS
from fp8graph.core.reading import attribute, given
from fp8graph.engines.witness import SMALL, NodeName
from fp8graph.formats import family
from fp8graph.graph import tensors, walk
from fp8graph.graph.constants import constants as constants

# Measured with tensorrt_rtx 1.7.1: between DQ and its op these leave the op in FP8. Cast only from fp32 downwards,
# Mul and Div only by a constant.
MOVES = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Split", "Gather", "Identity"}
    | {"Dropout", "DepthToSpace", "Cast", "Concat", "Mul", "Div"}
)
# These do not: the op falls back. Looking past them tells that it was meant to be quantized.
BREAKERS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Upsample", "Pad"}
    | {"Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSwish", "HardSigmoid", "Gelu", "Elu", "Tanh"}
)
_DEQUANTIZE = {"DequantizeLinear": "", "TRT_FP8DequantizeLinear": "fp8", "TRT_MXFP8DequantizeLinear": "fp8"}
_STEPS = 64  # longest chain between an op and its DQ that is followed


# A call and the function that it calls, while an operand is followed inside.
_Call = tuple[ir.Node, ir.Function]


@dataclass(frozen=True, eq=False)
class Site:
    """A node of the model, where it lies, and how engines name it."""

    place: walk.Place
    name: NodeName

    @property
    def node(self) -> ir.Node:
        """The node itself."""
        return self.place.node

    @property
    def whole(self) -> str:
        """Of a product that is a part of an op taken apart, with the key KEY~ROLE: KEY; empty for any other node."""
        whole, _, role = walk.node_key(self.node).rpartition("~")
        return whole if role and self.node.op_type in PRODUCTS else ""


def sites(model: ir.Model) -> list[Site]:
    """Every node of the model: main graph, bodies, functions."""
    found = list(_sites(model.graph, "", "", looped=False, called=False))
    for (domain, name, overload), function in model.functions.items():
        scope = f"fn:{domain}::{name}" + (f":{overload}" if overload else "") + "/"
        found += _sites(function, scope, "", looped=False, called=True)
    return found


def _sites(graph: ir.Graph | ir.Function, scope: str, suffix: str, *, looped: bool, called: bool) -> Iterator[Site]:
    for node in graph:
        base = node.name or f"node_of_{node.outputs[0].name if node.outputs else ''}"
        yield Site(walk.Place(node, scope, graph), NodeName(base, "" if called else base + suffix, looped))
        for label, body in walk.bodies(node):
            inner = f"{scope}{walk.first_output(node)}.{label}/"
            # Measured: branches of If add to a name, bodies of Loop and Scan do not.
            branch = f" | {body.name} ({label}) | {base} (If){suffix}" if node.op_type == "If" else suffix
            yield from _sites(body, inner, branch, looped=looped or node.op_type in ("Loop", "Scan"), called=called)


@dataclass(frozen=True)
class Operand:
    """One operand of an op, followed to the DequantizeLinear that it comes from.

    format    what was quantized there: fp8, int8, fp4, int4; empty where nothing was
    through   nodes between the op and that DequantizeLinear, the op's side first
    constant  it is made of constants alone: a weight
    """

    value: ir.Value
    format: str
    dequantize: ir.Node | None
    through: tuple[ir.Node, ...]
    constant: bool

    @property
    def breaker(self) -> ir.Node | None:
        """The first node on the way that FP8 does not pass."""
        return next((node for node in self.through if node.op_type in BREAKERS), None)


def operand(value: ir.Value, model: ir.Model, known: set[int]) -> Operand:
    """Follows an operand upwards through moves, breakers and function calls. `known`: what `constants` gave."""
    constant, first = id(value) in known, value
    through: list[ir.Node] = []
    calls: list[_Call] = []
    for _ in range(_STEPS):
        node = value.producer()
        if node is None:
            outer = _given(value, calls)
            if outer is None:
                break
            value = outer
            calls.pop()
        elif node.op_type in _DEQUANTIZE and node.inputs and node.inputs[0] is not None:
            format_ = _DEQUANTIZE[node.op_type] or _format(node.inputs[0], calls)
            return Operand(first, format_, node if format_ else None, tuple(through), constant)
        elif node.op_identifier() in model.functions:
            function = model.functions[node.op_identifier()]
            calls.append((node, function))
            value = function.outputs[list(node.outputs).index(value)]
        elif node.op_type in MOVES | BREAKERS and (upper := _data(node, known)) is not None:
            through.append(node)
            value = upper
        else:
            break
    return Operand(first, "", None, (), constant)


def _given(value: ir.Value, calls: list[_Call]) -> ir.Value | None:
    """What the innermost call gives for an input of the function; None for anything else."""
    if not calls:
        return None
    node, function = calls[-1]
    index = next((index for index, each in enumerate(function.inputs) if each is value), -1)
    return node.inputs[index] if 0 <= index < len(node.inputs) else None


def _data(node: ir.Node, known: set[int]) -> ir.Value | None:
    """The input of a move that the data comes from: the first; of a product with a constant, the other one."""
    if node.op_type in ("Mul", "Div"):
        moving = [value for value in node.inputs if value is not None and id(value) not in known]
        # Where both are constant (a weight times a scalar), the first is the weight.
        return moving[0] if len(moving) == 1 else node.inputs[0] if not moving else None
    return node.inputs[0] if node.inputs else None


def _format(value: ir.Value, calls: list[_Call]) -> str:
    """What a quantized tensor is stored as; empty where the model does not say."""
    for _ in range(_STEPS):
        if format_ := _stored_as(value):
            return format_
        node = value.producer()
        if node is None or not node.inputs:
            return ""
        if node.op_type in ("QuantizeLinear", "TRT_FP8QuantizeLinear"):
            return _quantized_to(node, calls)
        upper = node.inputs[0]
        if node.op_type not in MOVES or upper is None:
            return ""
        value = upper
    return ""


def _stored_as(value: ir.Value) -> str:
    dtype = value.dtype or (value.const_value.dtype if value.const_value is not None else None)
    return _small(dtype)


def _small(dtype: ir.DataType | None) -> str:
    """What engines call a type of one byte or less; empty for any other."""
    name = family(tensors.word(dtype))
    return name if name in SMALL else ""


def _quantized_to(node: ir.Node, calls: list[_Call]) -> str:
    if node.op_type == "TRT_FP8QuantizeLinear":
        return "fp8"
    zero = given(node, 2)
    if zero is not None:
        return _stored_as(zero if zero.dtype is not None else _given(zero, calls) or zero)
    return _small(ir.DataType(attribute(node, "output_dtype") or ir.DataType.UINT8))
