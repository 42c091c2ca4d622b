"""Q and DQ themselves: their scales, zero points, types, and whether anybody reads what they make."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from fp8graph.core.check.look import Found, Look
from fp8graph.core.forecast import FIX, is_product
from fp8graph.core.reading import attribute, given, is_dequantizer, is_quantizer
from fp8graph.data.target import Ragged
from fp8graph.formats import family
from fp8graph.graph import tensors, walk

# Below this 1/scale does not fit fp16: 1/65504.
_LEAST_FP16 = 1.53e-5
_REACH = 64  # nodes that are walked down from a DQ in search of a product
_NAN = np.uint8(0x7F)  # E4M3FN: all of exponent and mantissa set


def find(look: Look) -> Iterator[Found]:
    """All rules of this file."""
    for place in look.pairs:
        if family(look.reading.format(place.node)) != "fp8":
            yield from _untyped(look, place)
            continue
        yield from _scale(look, place)
        yield from _zero_point(look, place)
        if look.table.engine:
            yield from _types(look, place)
            yield from _shape(look, place)
            yield from _codes(look, place)
        if look.target.ragged is not None:
            yield from _ragged(look, place, look.target.ragged)
        yield from _pair(look, place)
    if look.table.engine:
        yield from _idle(look)


def _scale(look: Look, place: walk.Place) -> Iterator[Found]:
    scale = given(place.node, 1)
    array = look.reading.number(scale)
    if scale is None or array is None or not array.size:
        return
    values = array.astype(np.float32)
    if not (np.isfinite(values).all() and (values > 0).all()):
        text = f"the scale '{scale.name}' is not positive and finite throughout"
        yield look.found("FG310", place, text, "calibrate anew", "error")
    elif look.table.engine and array.dtype == np.float16 and (values < _LEAST_FP16).any():
        text = f"the scale '{scale.name}' is so small that 1/scale overflows fp16: the engine divides instead"
        yield look.found("FG325", place, text, "give the scale in fp32", "info")
    if array.shape == (1,) and is_dequantizer(place.node) and look.table.scalars and not _is_vector(look, place.node):
        text = f"the scale '{scale.name}' has shape [1]: a list of one, where a scalar is meant"
        yield look.found("FG307", place, text, f"give it rank 0: {FIX}", "info")


def _is_vector(look: Look, node: ir.Node) -> bool:
    """Whether a scale of one element stands for an axis of one index."""
    shape = look.reading.shape(given(node, 0))
    axis = attribute(node, "axis", 1)
    return shape is not None and -len(shape) <= axis < len(shape) and shape[axis] == 1


def _zero_point(look: Look, place: walk.Place) -> Iterator[Found]:
    node = place.node
    zero = given(node, 2)
    if zero is None:
        return
    array = look.reading.number(zero)
    if array is not None and np.any(array.astype(np.float32)):
        text = f"the zero point '{zero.name}' is not zero: engines ignore it, FP8 has none"
        yield look.found("FG309", place, text, "quantize anew, with zero points of zero", "error")
    elif array is None and not look.reading.constant(zero) and not look.reading.argument(zero):
        text = f"the zero point '{zero.name}' is computed: engines ignore it"
        yield look.found("FG309", place, text, "leave the zero point out")
    kind, asked = tensors.word(look.reading.dtype(zero)), attribute(node, "output_dtype") if is_quantizer(node) else 0
    said = tensors.word(ir.DataType(asked))
    if asked and kind and kind != said:
        text = f"output_dtype says {said or ir.DataType(asked).name}, the zero point is {kind}"
        yield look.found("FG334", place, text, "leave one of the two out", "error")
    elif is_dequantizer(node) and kind and kind != look.reading.format(node):
        text = f"the codes are {look.reading.format(node)}, the zero point '{zero.name}' is {kind}"
        yield look.found("FG334", place, text, "give it the codes' type, or leave it out")


def _untyped(look: Look, place: walk.Place) -> Iterator[Found]:
    """A Q that says no type is one to uint8: nobody writes that beside FP8 on purpose."""
    node = place.node
    if not (is_quantizer(node) and look.table.engine and look.fp8):
        return
    if given(node, 2) is None and not attribute(node, "output_dtype") and node.op_type == "QuantizeLinear":
        text = "QuantizeLinear has neither zero point nor output_dtype: it quantizes to uint8"
        yield look.found("FG334", place, text, "add output_dtype = 17 (FLOAT8E4M3FN)")


def _types(look: Look, place: walk.Place) -> Iterator[Found]:
    node, imports = place.node, look.table.imports
    format = look.reading.format(node)
    if imports is not None and format not in imports and (is_quantizer(node) or look.reading.source(node) is None):
        text = f"{format} is not imported by {look.target.name}: FP8 is e4m3fn there"
        weight = is_dequantizer(node) and look.reading.constant(given(node, 0))
        yield look.found("FG330", place, text, look.other_format(weight), "error")
    codes = tensors.word(look.reading.dtype(given(node, 0)))
    if node.op_type == "TRT_FP8DequantizeLinear" and codes not in ("", "e4m3fn"):
        text = f"TRT_FP8DequantizeLinear reads {codes}: it takes FP8 tensors, no bytes"
        yield look.found("FG334", place, text, "store the weight as FLOAT8E4M3FN", "error")
    if is_quantizer(node):
        kinds = [look.reading.dtype(given(node, slot)) for slot in (0, 1)]
        names = [tensors.FLOATS.get(kind, "?") if kind is not None else "?" for kind in kinds]
        if "?" not in names and names[1] not in (names[0], "fp32"):
            text = f"the scale is {names[1]} and the tensor {names[0]}: only the tensor's type or fp32 is built"
            yield look.found("FG329", place, text, "give the scale in fp32", "error")


def _shape(look: Look, place: walk.Place) -> Iterator[Found]:
    """Scales in a list have one for each index of an axis, or for whole blocks of it."""
    node = place.node
    shape, scales = look.reading.shape(given(node, 0)), look.reading.shape(given(node, 1))
    if shape is None or scales is None or not scales or None in scales or math.prod(size or 0 for size in scales) < 2:
        return
    axis = attribute(node, "axis", 1)
    why = ""
    if not -len(shape) <= axis < len(shape):
        why = f"axis {axis} is out of range for a tensor of rank {len(shape)}"
    elif len(scales) == 1 and shape[axis] is not None and scales[0] != shape[axis]:
        why = f"there are {scales[0]} scales for the {shape[axis]} indices of axis {axis}"
    elif len(scales) == len(shape) > 1:
        whole = zip(shape, scales, strict=True)
        if not attribute(node, "block_size") and any(size and count and size % count for size, count in whole):
            why = "the scales' blocks do not divide the tensor"
    elif len(scales) > 1:
        why = f"the scales have rank {len(scales)}, the tensor {len(shape)}"
    if why:
        yield look.found("FG335", place, f"{why}: the importer refuses it", "quantize anew", "error")


def _ragged(look: Look, place: walk.Place, rule: Ragged) -> Iterator[Found]:
    """Blocks whose last one is cut."""
    node, size = place.node, attribute(place.node, "block_size")
    shape, axis = look.reading.shape(given(node, 0)), attribute(place.node, "axis", 1)
    if not size or shape is None or not -len(shape) <= axis < len(shape) or not rule.cuts(size, shape[axis] or 0):
        return
    do = f"python -m fp8graph optimize MODEL -o OUT --target {look.target.asked or look.target.name}"
    do = f"{do} writes a weight otherwise" if not look.planned else "quantize anew, with blocks that do"
    text = f"blocks of {size} do not divide axis {axis} of {shape[axis]}: {rule.text}"
    yield look.found("FG335", place, text, do, "error")


def _codes(look: Look, place: walk.Place) -> Iterator[Found]:
    """Stored codes that are NaN make every result NaN."""
    codes = given(place.node, 0)
    if not is_dequantizer(place.node) or codes is None or not tensors.is_constant(codes):
        return
    if look.reading.format(place.node) != "e4m3fn" or isinstance(codes.const_value, ir.LazyTensor):
        return  # what is computed as it is written was clipped
    array = tensors.read(codes).view(np.uint8)
    if array.size and bool(((array & _NAN) == _NAN).any()):
        text = f"the weight '{codes.name}' holds NaN, which builds without a word"
        yield look.found("FG326", place, text, "quantize anew from the weight in high precision")
    tensors.release(codes)


def _pair(look: Look, place: walk.Place) -> Iterator[Found]:
    """Q and DQ of one tensor that do not undo each other. In ours a constant factor was folded into one of them."""
    node = place.node
    if not is_dequantizer(node) or walk.FOR in node.metadata_props:
        return
    quantizer = look.reading.source(node)
    if quantizer is None:
        return
    first, second = (look.reading.number(given(each, 1)) for each in (quantizer, node))
    if first is None or second is None or first.size != second.size:
        return
    a, b = (array.astype(np.float64).ravel() for array in (first, second))
    if np.isfinite(a).all() and np.isfinite(b).all() and not np.allclose(a, b, rtol=1e-2, atol=0):
        text = f"QuantizeLinear divides by another scale ('{_name(quantizer)}') than DequantizeLinear multiplies with"
        do = "give both the same scale, unless the factor is meant"
        yield look.found("FG324", place, f"{text} ('{_name(node)}')", do, "info")


def _name(node: ir.Node) -> str:
    scale = given(node, 1)
    return scale.name or "" if scale is not None else ""


def _idle(look: Look) -> Iterator[Found]:
    """Q/DQ that no product reads: rounding and work for nothing."""
    read = {each.dequantizer for node in look.forecasts for each in look.prophet.operands(node)}
    for place in look.pairs:
        node = place.node
        if family(look.reading.format(node)) != "fp8" or node in read:
            continue
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            if is_quantizer(node) or look.reading.source(node) is not None:
                yield look.found("FG323", place, f"nothing reads what {node.op_type} makes", FIX, "info")
        elif is_dequantizer(node) and look.reading.source(node) is not None and not _is_read(look, node):
            text = "no product reads this Q/DQ pair: it rounds, and nothing runs in FP8 for it"
            yield look.found("FG323", place, text, "take the pair away")
            computed = given(node, 1)
            if computed is not None and not look.reading.constant(computed) and not look.reading.argument(computed):
                text = f"the scale '{computed.name}' is computed: FP8 is only simulated"
                yield look.found("FG307", place, text, "use a constant scale")


def _is_read(look: Look, node: ir.Node) -> bool:
    """Whether a product, a graph output, or something that cannot be followed takes what a DQ makes."""
    stack, seen = list(node.outputs), set[ir.Node]()
    while stack and len(seen) < _REACH:
        value = stack.pop()
        if value.is_graph_output():
            return True
        for user, _ in value.uses():
            if is_product(user) or is_quantizer(user) or user.op_identifier() in look.model.functions:
                return True
            if any(True for _ in walk.bodies(user)):
                return True
            if user not in seen and look.prophet.follower.known(user):
                seen.add(user)
                stack.extend(user.outputs)
    return len(seen) >= _REACH
