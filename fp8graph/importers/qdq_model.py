"""A model that another tool has quantized: the scales of its Q/DQ pairs on activations, by the tensors' names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.reading import given, is_quantizer
from fp8graph.graph import tensors, walk
from fp8graph.graph.constants import number
from fp8graph.graph.load import load


def read(path: Path) -> dict[str, float]:
    """The largest magnitude that each pair with one scale can hold; the larger one where a tensor has two pairs.

    A pair behind a Cast speaks for the tensor in front of it, too. Weights are left out. Raises as `load` does.
    """
    found: dict[str, float] = {}
    for place in walk.walk(load(path).model):
        node, value = place.node, given(place.node, 0)
        if not is_quantizer(node) or value is None or tensors.is_constant(value):
            continue
        scale, zero = number(given(node, 1)), number(given(node, 2))
        if scale is None or scale.size != 1 or (zero is not None and zero.size != 1):
            continue
        reach = _reach(node, zero)
        producer = value.producer()
        before = given(producer, 0) if producer is not None and producer.op_type == "Cast" else None
        for name in {value.name, before.name if before is not None else value.name}:
            amax = float(scale.reshape(())[()]) * reach
            found[name or ""] = max(amax, found.get(name or "", 0.0))
    return found


def _reach(node: ir.Node, zero: tensors.Array | None) -> float:
    """The largest magnitude of a code less the zero point: 448 for E4M3, 127 for INT8, 255 at most for UINT8."""
    said = node.outputs[0].dtype if zero is None else ir.DataType.from_numpy(zero.dtype)
    if "output_dtype" in node.attributes:
        said = ir.DataType(node.attributes["output_dtype"].as_int())
    name = tensors.word(said) or "uint8"  # what the standard takes, where nothing is said
    point = 0 if zero is None else int(np.float32(zero.reshape(())[()]))
    if name.startswith("uint"):
        most = 2 ** int(name[4:]) - 1
        return float(max(point, most - point))
    if name.startswith("int"):
        most = 2 ** (int(name[3:]) - 1) - 1
        return float(max(most + point, most - point))
    return float(formats.get(name).max)
