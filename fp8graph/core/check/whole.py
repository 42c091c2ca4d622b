"""What is said of a model as a whole: versions, names, functions, open shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fp8graph.core.check.look import Found, Look
from fp8graph.core.forecast import FIX, is_product
from fp8graph.core.reading import ONNX


def find(look: Look) -> Iterator[Found]:
    """All rules of this file."""
    yield from _versions(look)
    yield from _names(look)
    yield from _functions(look)
    yield from _open_shapes(look)


def _versions(look: Look) -> Iterator[Found]:
    opset = look.model.graph.opset_imports.get("", 0)
    if opset < 19 and any(place.node.domain in ONNX for place in look.pairs) and look.fp8:
        text = f"FP8 Q/DQ is legal from opset 19, the model imports {opset}"
        yield look.found("FG311", None, text, FIX, "error")
    if look.model.ir_version > look.target.ir_version:
        text = f"IR version {look.model.ir_version} is newer than {look.target.name} reads ({look.target.ir_version})"
        yield look.found("FG311", None, text, "export with an older onnx")


def _names(look: Look) -> Iterator[Found]:
    """An engine names its layers after nodes: of two with one name nobody can tell which ran in FP8."""
    if not look.table.engine:
        return
    names = Counter(place.node.name for place in look.places if place.node.name)
    for place in look.places:
        if place.node.name and names[place.node.name] > 1 and is_product(place.node):
            text = f"{names[place.node.name]} nodes are called '{place.node.name}': an engine does not tell them apart"
            yield look.found("FG322", place, text, FIX)


def _functions(look: Look) -> Iterator[Found]:
    if not look.table.engine:
        return
    calls = Counter(place.node.op_identifier() for place in look.places)
    for identifier, function in look.model.functions.items():
        if calls[identifier] > 1 and any(node.name for node in function):
            place = next(place for place in look.places if place.node.op_identifier() == identifier)
            text = f"the function {identifier[1]} is called {calls[identifier]} times and names its nodes: the import "
            text += "of it takes each name once"
            yield look.found("FG340", place, text, FIX, "error")


def _open_shapes(look: Look) -> Iterator[Found]:
    if look.planned or not look.table.engine:
        return
    free = [
        value.name or ""
        for value in look.model.graph.inputs
        if value.shape is None or any(not isinstance(size, int) or size < 0 for size in value.shape)
    ]
    if free and look.fp8:
        text = f"the shape of {', '.join(free)} is open: the engine is built for shapes that are given then"
        yield look.found("FG339", None, text, "build MODEL -o ENGINE --shapes ...", "info")
