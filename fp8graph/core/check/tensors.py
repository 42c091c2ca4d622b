"""Tensors: FP8 where no operator takes or makes it, types that do not go together."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from fp8graph.core.check.look import Found, Look
from fp8graph.core.forecast import is_product
from fp8graph.core.reading import ONNX, given, is_dequantizer, is_quantizer
from fp8graph.formats import family
from fp8graph.graph import tensors, walk

_MAKES = frozenset({"Constant", "TRT_MXFP8DynamicQuantize", "TRT_FP4DynamicQuantize", "If", "Loop", "Scan"})
_DIRECT = frozenset({"Constant"})
# Their inputs have one type; measured for Add alone, the others are read by the same rule of the importer.
_BINARY = frozenset({"Add", "Sub", "Mul", "Div"})


def find(look: Look) -> Iterator[Found]:
    """All rules of this file."""
    if not look.table.engine:
        return
    for place in look.places:
        yield from _read(look, place)
        yield from _made(look, place)
        yield from _together(look, place)


def _is_fp8(look: Look, value: ir.Value | None) -> bool:
    return value is not None and family(tensors.word(look.reading.dtype(value))) == "fp8"


def _read(look: Look, place: walk.Place) -> Iterator[Found]:
    """An FP8 tensor goes into DequantizeLinear, with a few moves before it; a constant one directly."""
    node, carries = place.node, look.table.carries
    if carries is None or node.op_identifier() in look.model.functions:
        return
    quantizes = is_quantizer(node) or is_dequantizer(node)
    for slot, value in enumerate(node.inputs):
        yield from _imported(look, place, slot, value)
        if not _is_fp8(look, value) or (quantizes and slot > 0) or value is None:
            continue
        maker = value.producer()
        stored = value.const_value is not None or (maker is not None and maker.op_type in _DIRECT)
        if stored and not is_dequantizer(node):
            text = f"the FP8 constant '{value.name}' goes into {node.op_type}: it may only go into DequantizeLinear"
            yield look.found("FG317", place, text, f"put the {node.op_type} behind the DequantizeLinear", "error")
        elif node.op_type not in carries and not quantizes:
            text = f"the FP8 tensor '{value.name}' goes into {node.op_type}, which takes none"
            do = f"put the DequantizeLinear before the {node.op_type}, and a second pair behind it"
            yield look.found("FG317", place, text, do, "error")
        elif not stored and _enters_branch(look, maker, node):
            text = f"the FP8 tensor '{value.name}' enters a branch of If: it is refused there"
            yield look.found("FG317", place, text, "put Q and DQ into the branch, both of them", "error")


def _imported(look: Look, place: walk.Place, slot: int, value: ir.Value | None) -> Iterator[Found]:
    """Constants of types that the importer does not take, or the chip has not."""
    kind = tensors.word(look.reading.dtype(value)) if value is not None and look.reading.constant(value) else ""
    imports, quantizes = look.table.imports, is_quantizer(place.node) or is_dequantizer(place.node)
    if value is None or not kind or imports is None:
        return
    told = quantizes and look.reading.format(place.node) == kind and family(kind) == "fp8"  # with its pair
    if kind not in imports and not told:
        text = f"'{value.name}' is {kind}, which {look.target.name} does not import"
        yield look.found("FG330", place, text, look.other_format(quantizes and family(kind) == "fp8"), "error")
    elif family(kind) == "fp4" and slot == 0 and (bad := [c for c in look.target.chips if c not in look.table.fp4]):
        text = f"'{value.name}' is {kind}, for which {', '.join(bad)} has no arithmetic"
        yield look.found("FG330", place, text, f"--target {look.target.name}:{'+'.join(look.table.fp4)}", "error")


def _enters_branch(look: Look, maker: ir.Node | None, node: ir.Node) -> bool:
    if maker is None:
        return False
    graphs = look.reading.graphs
    return any(owner.op_type == "If" for owner in look.reading.between(graphs.get(maker), graphs[node]))


def _made(look: Look, place: walk.Place) -> Iterator[Found]:
    node, carries = place.node, look.table.carries
    if carries is None or node.op_type in carries or node.op_type in _MAKES or is_quantizer(node):
        return
    if node.op_identifier() in look.model.functions:
        return
    if any(_is_fp8(look, value) for value in node.outputs):
        text = f"{node.op_type} makes an FP8 tensor: engines take such from QuantizeLinear alone"
        do = "write x / s, Cast, Cast, * s as Q/DQ with scale s"
        yield look.found("FG318", place, text, do, "error")


def _together(look: Look, place: walk.Place) -> Iterator[Found]:
    """Engines convert nothing by themselves."""
    node = place.node
    if is_product(node):
        slots: tuple[int, ...] = (0, 1, 2)
    elif node.op_type in _BINARY and node.domain in ONNX:
        slots = (0, 1)
    else:
        return
    kinds = [look.reading.dtype(given(node, slot)) for slot in slots]
    seen = dict.fromkeys(tensors.FLOATS[kind] for kind in kinds if kind in tensors.FLOATS)
    if len(seen) > 1:
        text = f"the inputs of {node.op_type} are {' and '.join(seen)}: engines convert nothing by themselves"
        do = "give DequantizeLinear a scale of the op's type, and the bias that type"
        yield look.found("FG329", place, text, do, "error")
