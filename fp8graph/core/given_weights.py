"""Weights that came as codes and scales: whether a target takes these, and what it costs to round them anew."""

from __future__ import annotations

import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.quants import output_axis
from fp8graph.data.plan import Quant
from fp8graph.formats.spec import Granularity, PerAxis
from fp8graph.graph import tensors
from fp8graph.numerics.cast import fake_quantize
from fp8graph.numerics.error import ErrorSums
from fp8graph.numerics.scale import channel_amax, store_scales


def takes(wanted: str, granularity: Granularity, node: ir.Node, slot: int, rank: int) -> bool:
    """Whether scales are as coarse as a target's row wants them: `tensor`, `channel` (of the output) or `any`."""
    if wanted == "any" or not granularity.blocks:
        return True
    axis = output_axis(node, slot, rank)
    return wanted == "channel" and axis is not None and granularity == PerAxis(axis)


def loss(weight: ir.Value, quant: Quant) -> float | None:
    """What another rounding of a weight makes of it: SQNR in dB; None where it stays what it is."""
    array = tensors.read(weight)
    form, granularity = formats.get(quant.format), quant.granularity
    scales = store_scales(channel_amax(array, granularity), form, quant.scale.stored)
    sums = ErrorSums()
    sums.add(array, fake_quantize(array, form, scales.effective, granularity))
    tensors.release(weight)
    return sums.sqnr_db
