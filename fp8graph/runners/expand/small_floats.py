"""FP4, FP6 and powers of two (E8M0) in types that hold each of their values and that ONNX Runtime has kernels for.

    E2M1, E2M3, E3M2   lie in E4M3FN: codes of weights are written anew, lazily
    E8M0               lies in fp32

ONNX Runtime casts to and from E8M0 (all round modes, exactly), and has nothing else for these types (1.31.1, 1.32.0).
Inputs and outputs of the graph become of these types, too.

To round to a small format, with y the quotient in fp32, M bits of mantissa and values up to `max`:

    c = Clip(y, -max, max)                       saturates; a NaN stays one (ONNX leaves it open; E4M3FN has a code)
    q = 2^(e - M) for 2^e <= |c| < 2^(e + 1)     the spacing, that of the least normal binade below it
    z = Round(c / q) * q                         ties to even; what is even in a binade is so in its codes
"""

from __future__ import annotations

from fractions import Fraction

import onnx_ir as ir

from fp8graph import formats
from fp8graph.formats.spec import Format
from fp8graph.graph import edit, protos, tensors, walk
from fp8graph.graph.inlining import inline
from fp8graph.numerics import cast
from fp8graph.runners.expand.writing import FLOAT, Writer, integer, is_standard, made_type, refused

_E4M3FN, _E8M0 = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E8M0
_SMALL: dict[ir.DataType, Format] = {
    ir.DataType(form.onnx_type): form for form in (formats.get(name) for name in ("e2m1", "e2m3", "e3m2"))
}
CARRIERS: dict[ir.DataType, ir.DataType] = {_E8M0: FLOAT} | dict.fromkeys(_SMALL, _E4M3FN)


def expand(model: ir.Model) -> ir.Model:
    """A copy without these types; the model itself where it has none. Weights are read when they are written.

    Raises BackendError FG133 for an op that reads the bits of such a type.
    """
    typed = any(value.dtype in CARRIERS for _, graph in walk.graphs(model) for value in walk.values(graph))
    if not typed and not any(made_type(place.node) in CARRIERS for place in walk.walk(model)):
        return model
    work = model.clone(deep_copy=True)
    inline(work, lambda function: True)  # the values of a function have no types
    protos.infer_types(work)  # a file may leave out what inner values are
    names = edit.Names(work)
    for place in reversed(list(walk.walk(work))):  # readers first: they see the types as they were
        assert isinstance(place.graph, ir.Graph)
        _rewrite(place, place.graph, names)
    for _, graph in walk.graphs(work):
        assert isinstance(graph, ir.Graph)
        _carry(graph)
    return work


def _rewrite(place: walk.Place, graph: ir.Graph, names: edit.Names) -> None:
    node = place.node
    small = [v for v in (*node.inputs, *node.outputs) if v is not None and (v.dtype in CARRIERS)]
    if not small and made_type(node) not in CARRIERS:
        return
    writer = Writer(node, graph, names)
    made = made_type(node)
    if is_standard(node, "Cast", "CastLike"):
        _cast(place, writer)
    elif is_standard(node, "QuantizeLinear") and made in _SMALL:
        _quantize(node, writer, _SMALL[made])
    elif is_standard(node, "Constant", "ConstantOfShape") and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(carried(tensor.numpy())))
    elif is_standard(node, "BitCast"):
        raise refused(place, "it reads or writes the bits of FP4, FP6 or E8M0, which are computed in other types")


def _cast(place: walk.Place, writer: Writer) -> None:
    node, source = place.node, place.node.inputs[0]
    like = node.inputs[1] if node.op_type == "CastLike" else None
    to = like.dtype if like is not None else made_type(node)
    if source is None or to is None:
        raise refused(place, "the type that it casts to is not known")
    value = source
    if source.dtype in _SMALL:  # held in E4M3FN
        value = writer.add("Cast", source, to=int(FLOAT))
    if to == _E8M0:
        kept = {name: node.attributes[name] for name in ("round_mode", "saturate") if name in node.attributes}
        value = writer.add("Cast", value, of=_E8M0, to=int(_E8M0), **kept)
        writer.replace(writer.add("Cast", value, to=int(FLOAT)))
    elif to in _SMALL:
        writer.replace(_rounded(writer, value if value.dtype == FLOAT else _wide(writer, value), _SMALL[to]))
    elif source.dtype in CARRIERS:
        kept = {name: node.attributes[name] for name in ("saturate",) if name in node.attributes}
        writer.replace(writer.add("Cast", value, of=to, to=int(to), **kept))
    else:
        raise refused(place, f"it casts from {source.dtype} to {to}")


def _wide(writer: Writer, value: ir.Value) -> ir.Value:
    """In fp32: what is of type E8M0 will be so, and what is of no known type may be."""
    return value if value.dtype == _E8M0 else writer.cast(value, FLOAT)


def _quantize(node: ir.Node, writer: Writer, form: Format) -> None:
    value, scale = node.inputs[0], node.inputs[1]
    assert value is not None and scale is not None
    axis, block = integer(node, "axis", 1), integer(node, "block_size", 0)
    spread = writer.spread(_wide(writer, scale), value, axis, block)
    quotient = writer.add("Div", _wide(writer, value), spread)
    precision = ir.DataType(integer(node, "precision", 0) or int(FLOAT))
    if precision != FLOAT:  # the quotient of two numbers of such a type, rounded twice, is the one rounded once
        quotient = writer.cast(writer.cast(quotient, precision), FLOAT)
    writer.replace(_rounded(writer, quotient, form))


def _rounded(writer: Writer, value: ir.Value, form: Format) -> ir.Value:
    """The float32 value on the format's grid, in E4M3FN."""
    largest = float(form.max)
    clipped = writer.add("Clip", value, writer.number(-largest), writer.number(largest))
    magnitude = writer.add("Abs", clipped)
    step = form.smallest_subnormal
    edge = form.smallest_normal * 2
    spacing = writer.number(float(step))
    while edge <= form.max:
        step *= 2
        above = writer.add("GreaterOrEqual", magnitude, writer.number(float(edge)), of=ir.DataType.BOOL)
        spacing = writer.add("Where", above, writer.number(float(step)), spacing)
        edge *= Fraction(2)
    whole = writer.add("Round", writer.add("Div", clipped, spacing))
    return writer.cast(writer.add("Mul", whole, spacing), _E4M3FN)


def _carry(graph: ir.Graph) -> None:
    """Gives weights and values the types that hold theirs."""
    for value in graph.initializers.values():
        if value.dtype in CARRIERS and value.const_value is not None:
            value.const_value = tensors.lazy_from(
                value, value.name or "", carried, dtype=CARRIERS[value.dtype]
            ).const_value
    for value in walk.values(graph):
        producer = value.producer()
        rounded = producer is not None and producer.op_type == "Cast" and made_type(producer) == _E8M0
        if value.dtype in CARRIERS and not rounded:
            value.type = ir.TensorType(CARRIERS[value.dtype])


def carried(array: tensors.Array) -> tensors.Array:
    """An array of one of these types as E4M3FN, or as the powers of two that it holds, exactly; others as they are."""
    dtype = ir.DataType.from_numpy(array.dtype)
    if dtype == _E8M0:
        return cast.decode(array, formats.get("e8m0"))
    if dtype not in _SMALL:
        return array
    wide = formats.get("e4m3fn")
    return cast.encode(cast.decode(array, _SMALL[dtype]), wide).view(cast.ml_dtype(wide))
