"""Models to try passes on, and feeds for them: the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from fp8graph.base.errors import UsageError
from fp8graph.calibrate.samples import input_specs

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]
# Open dimensions of inputs are this long in `random_feeds`: not 1, which would hide mistakes in broadcasting.
OPEN_DIMENSION = 2


def corpus(folder: Path | str | None = None) -> dict[str, onnx.ModelProto]:
    """The models of a folder's `*.onnxtxt`, by name; None is fp8graph's own, of some twenty lines each.

    Raises UsageError where there are none: fp8graph's own lie in its source tree, not in its wheel.
    """
    here = Path(__file__).resolve().parent
    places = [Path(folder)] if folder is not None else [here / "corpus", here.parents[1] / "tests" / "corpus"]
    found = {path.stem: path for place in places for path in sorted(place.glob("*.onnxtxt"))}
    if not found:
        raise UsageError(
            "there are no text models (*.onnxtxt)",
            where=str(folder or "fp8graph.testing"),
            why="" if folder is not None else "fp8graph's own lie in its source tree, not in its wheel",
            do="give models",
            code="FG100",
        )
    return {name: from_text(path.read_text(encoding="utf-8"), where=path.name) for name, path in found.items()}


def from_text(text: str, *, where: str = "the text given") -> onnx.ModelProto:
    """A model from ONNX's text form (`onnx.parser`), in which weights are inputs called `w_*`.

    They become initializers; in bodies, declarations do. Their numbers are normal with a deviation of 1/4, those of
    `w_pos_*` uniform in [0.5, 1.5): always the same, for they are drawn from the names of graph and weight. Raises
    UsageError where the text cannot be read.
    """
    try:
        model = onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        raise UsageError("a text model cannot be read", where=where, why=str(error), code="FG100") from error
    for graph in _graphs(model.graph):
        for declared in (graph.input, graph.value_info):
            for value in [item for item in declared if item.name.startswith("w_")]:
                graph.initializer.append(_weight(model.graph.name, value))
                declared.remove(value)
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _weight(model: str, value: onnx.ValueInfoProto) -> onnx.TensorProto:
    kind = value.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    draw = _generator(model, value.name)
    numbers = draw.random(shape) + 0.5 if value.name.startswith("w_pos_") else draw.standard_normal(shape) / 4
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return onnx.numpy_helper.from_array(np.asarray(numbers, np.float32).astype(dtype), value.name)


def random_feeds(model: ir.Model, *, seed: int = 0) -> Feeds:
    """One feed for a model's inputs: normal numbers, 0 and 1 for integers, both for booleans. The same everywhere."""
    feeds: Feeds = {}
    for spec in input_specs(model):
        if not spec.required or spec.dtype is None:
            continue
        shape = [OPEN_DIMENSION if size is None else size for size in spec.dims or ()]
        draw = _generator(str(seed), spec.name)
        integral = spec.dtype.kind in "biu"
        numbers = draw.integers(0, 2, shape) if integral else draw.standard_normal(shape).astype(np.float32)
        feeds[spec.name] = np.asarray(numbers).astype(spec.dtype)
    return feeds


def _generator(*words: str) -> np.random.Generator:
    seed = hashlib.sha256("/".join(words).encode()).digest()[:8]
    return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))
