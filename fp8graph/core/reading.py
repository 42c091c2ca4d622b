"""A model read once for checking: its nodes in order, what is constant, and what its Q/DQ say in whatever spelling."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import onnx_ir as ir

from fp8graph.graph import tensors, walk
from fp8graph.graph.constants import constants, number
from fp8graph.graph.tensors import Array

ONNX = ("", "ai.onnx")
# Measured with tensorrt_rtx 1.7.1: these domains' Q/DQ are read like ONNX's own.
_DOMAINS = (*ONNX, "com.microsoft", "trt")
QUANTIZE = frozenset({"QuantizeLinear", "TRT_FP8QuantizeLinear"})
DEQUANTIZE = frozenset({"DequantizeLinear", "TRT_FP8DequantizeLinear", "TRT_MXFP8DequantizeLinear"})
# Outputs have the type of the first input.
_SAME = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Concat", "Slice", "Split"})
_STEPS = 16


def attribute(node: ir.Node, name: str, default: int = 0) -> int:
    """An integer attribute; the default where it is not there, or given by a function's caller."""
    found = node.attributes.get(name)
    return found.as_int() if found is not None and not found.is_ref() else default


def given(node: ir.Node, slot: int) -> ir.Value | None:
    """The value in an input slot; None where it is left out."""
    return node.inputs[slot] if slot < len(node.inputs) else None


def is_quantizer(node: ir.Node | None) -> bool:
    """Whether the node is a QuantizeLinear, in any domain that engines read."""
    return node is not None and node.op_type in QUANTIZE and node.domain in _DOMAINS


def is_dequantizer(node: ir.Node | None) -> bool:
    """Whether the node is a DequantizeLinear, in any domain that engines read."""
    return node is not None and node.op_type in DEQUANTIZE and node.domain in _DOMAINS


class Reading:
    """One model, read once. Nothing in it is changed.

    places   every node: main graph, bodies, functions
    order    of each node in `places`
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.places = list(walk.walk(model))
        self.order = {place.node: index for index, place in enumerate(self.places)}
        self._known = constants(model)
        self._arrays: dict[ir.Value, Array | None] = {}

    def constant(self, value: ir.Value | None) -> bool:
        """Whether a value is made of constants alone."""
        return value is not None and id(value) in self._known

    def number(self, value: ir.Value | None) -> Array | None:
        """The array of a scale or zero point; None where it is no constant or cannot be told."""
        if value is None:
            return None
        if value not in self._arrays:
            self._arrays[value] = number(value)
        return self._arrays[value]

    @cached_property
    def _owners(self) -> dict[int, tuple[ir.Node, ir.Graph | ir.Function]]:
        """id of a body: its node, and the graph that this lies in."""
        return {id(body): (place.node, place.graph) for place in self.places for _, body in walk.bodies(place.node)}

    def between(self, outer: ir.Graph | ir.Function | None, inner: ir.Graph | ir.Function) -> Iterator[ir.Node]:
        """The nodes whose bodies one enters from `outer` to `inner`; none where outer is no such graph."""
        found, graph = [], inner
        while outer is not None and graph is not outer:
            if id(graph) not in self._owners:
                return
            node, graph = self._owners[id(graph)]
            found.append(node)
        yield from found

    @cached_property
    def graphs(self) -> dict[ir.Node, ir.Graph | ir.Function]:
        """The graph that each node lies in."""
        return {place.node: place.graph for place in self.places}

    @cached_property
    def alive(self) -> set[ir.Node]:
        """Nodes that an output depends on; in functions all of them. Engines leave the others out."""
        found: set[ir.Node] = set()
        stack: list[ir.Value] = list(self.model.graph.outputs)
        todo = [node for function in self.model.functions.values() for node in function.all_nodes()]
        while stack or todo:
            node = todo.pop() if todo else stack.pop().producer()
            if node is None or node in found:
                continue
            found.add(node)
            stack.extend(value for value in node.inputs if value is not None)
            for _, body in walk.bodies(node):
                stack.extend(body.outputs)
        return found

    @cached_property
    def calls(self) -> dict[int, list[ir.Node]]:
        """id of each function's input: the values' owners are these calls; keyed by the function's graph inputs."""
        found: dict[int, list[ir.Node]] = {}
        for place in self.places:
            function = self.model.functions.get(place.node.op_identifier())
            for value in function.inputs if function is not None else ():
                found.setdefault(id(value), []).append(place.node)
        return found

    def argument(self, value: ir.Value) -> list[ir.Value]:
        """What the calls of a function give for its input; empty for any other value."""
        found = []
        for node in self.calls.get(id(value), ()):
            inputs = list(self.model.functions[node.op_identifier()].inputs)
            index = next(i for i, each in enumerate(inputs) if each is value)
            actual = given(node, index)
            if actual is not None:
                found.append(actual)
        return found

    def dtype(self, value: ir.Value | None, steps: int = _STEPS) -> ir.DataType | None:
        """The type of a value; behind Q/DQ that type inference does not know, what these say."""
        if value is None or steps < 0:
            return None
        if value.dtype is not None:
            return value.dtype
        if value.const_value is not None:
            return value.const_value.dtype
        node = value.producer()
        if node is None:
            return next((self.dtype(each, steps - 1) for each in self.argument(value)), None)
        if is_quantizer(node):
            return self._quantized(node, steps)
        if is_dequantizer(node):
            asked = attribute(node, "output_dtype")
            return ir.DataType(asked) if asked else self.dtype(given(node, 1), steps - 1)
        if node.op_type == "Cast":
            return ir.DataType(attribute(node, "to"))
        return self.dtype(given(node, 0), steps - 1) if node.op_type in _SAME else None

    def _quantized(self, node: ir.Node, steps: int) -> ir.DataType | None:
        if node.op_type == "TRT_FP8QuantizeLinear":
            return ir.DataType.FLOAT8E4M3FN
        zero = given(node, 2)
        if zero is not None:
            return self.dtype(zero, steps - 1)
        return ir.DataType(attribute(node, "output_dtype", ir.DataType.UINT8))

    def format(self, node: ir.Node) -> str:
        """What a Q writes, or a DQ reads; empty where the model does not say."""
        if node.op_type in ("TRT_FP8DequantizeLinear", "TRT_MXFP8DequantizeLinear"):
            return "e4m3fn"
        if is_quantizer(node):
            return tensors.word(self._quantized(node, _STEPS))
        codes = given(node, 0)
        said = tensors.word(self.dtype(codes))
        maker = codes.producer() if codes is not None else None
        # Type inference knows nothing of other domains, and takes a Q without a type for one to uint8.
        return said or (self.format(maker) if maker is not None and is_quantizer(maker) else "")

    def source(self, dequantizer: ir.Node | None) -> ir.Node | None:
        """The Q that a DQ reads from, through data movement; None for stored codes."""
        if dequantizer is None:
            return None
        node = walk.origin(given(dequantizer, 0), _SAME)
        return node if is_quantizer(node) else None

    def shape(self, value: ir.Value | None) -> tuple[int | None, ...] | None:
        """Dimensions of a value; those of what Q, DQ and Casts read, where the value itself has none."""
        for _ in range(_STEPS):
            found = tensors.dims(value)
            if found is not None or value is None:
                return found
            if value.const_value is not None:
                return tuple(int(size) for size in value.const_value.shape.numpy())
            node = value.producer()
            if node is None:
                actual = self.argument(value)
                value = actual[0] if len(actual) == 1 else None
            elif is_quantizer(node) or is_dequantizer(node) or node.op_type in ("Cast", "Identity"):
                value = given(node, 0)
            else:
                return None
        return None
