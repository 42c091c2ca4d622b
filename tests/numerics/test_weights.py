"""What rounding leaves of real weights: formats and granularities order as theory says, with margins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from fp8graph import formats
from fp8graph.formats.spec import Granularity, PerAxis, PerBlock, PerTensor, ScaleFormat
from fp8graph.numerics import cast
from fp8graph.numerics.scale import channel_amax, store_scales

ROOT = Path(__file__).resolve().parents[2]
DIGITS = sorted((ROOT / "samples" / "digits").glob("*.onnx"))
BENCH = sorted((ROOT.parent / "shared" / "bench" / "models").glob("*.onnx"))


def weights(paths: list[Path]) -> Iterator[np.ndarray]:
    """Every weight of two axes or more of Conv, Gemm and MatMul, its output channels last."""
    for path in paths:
        model = onnx.load(path)
        held = {item.name: item for item in model.graph.initializer}
        for node in model.graph.node:
            name = node.input[1] if node.op_type in ("Conv", "Gemm", "MatMul") else ""
            array = onnx.numpy_helper.to_array(held[name]) if name in held else np.zeros(0, np.float32)
            if array.ndim >= 2 and array.dtype == np.float32 and array.size >= 1024:
                turned = array.T if node.op_type != "MatMul" else array
                yield np.ascontiguousarray(turned.reshape(-1, turned.shape[-1]))


def kept(weight: np.ndarray, name: str, blocks: Granularity, stored: ScaleFormat) -> tuple[float, float]:
    """Signal and noise of a weight in a format."""
    form = formats.get(name)
    scale = np.asarray(store_scales(channel_amax(weight, blocks), form, stored).effective, np.float32)
    back = cast.decode(cast.encode(weight, form, scale, blocks), form, scale, blocks)
    return float((weight.astype(np.float64) ** 2).sum()), float(((weight - back).astype(np.float64) ** 2).sum())


def mean_db(paths: list[Path], name: str, blocks: str, stored: ScaleFormat | None = None) -> float:
    """Mean SQNR over all weights, in dB."""
    values = []
    for weight in weights(paths):
        place = {"tensor": PerTensor(), "channel": PerAxis(1)}.get(blocks) or PerBlock(0, int(blocks), 2)
        signal, noise = kept(weight, name, place, stored or ScaleFormat())
        if signal and noise:
            values.append(10 * math.log10(signal / noise))
    return float(np.mean(values))


MX, NV = ScaleFormat("e8m0", "ocp"), ScaleFormat("e4m3fn", outer=True)
# The better one, the worse one, and by how many dB at least.
ORDERS = {
    "E4M3 above E5M2: a mantissa bit is 6 dB": (("e4m3fn", "channel"), ("e5m2", "channel"), 5.0),
    "a scale per channel at least as good as one": (("e4m3fn", "channel"), ("e4m3fn", "tensor"), 0.0),
    "INT8 per channel above E4M3 per channel": (("int8", "channel"), ("e4m3fn", "channel"), 3.0),
    "NVFP4 above MXFP4: scales with a mantissa, smaller blocks": (("e2m1", "16", NV), ("e2m1", "32", MX), 1.0),
    "MXFP6 E2M3 above E3M2": (("e2m3", "32", MX), ("e3m2", "32", MX), 3.0),
    "MXFP8 above MXFP6": (("e4m3fn", "32", MX), ("e3m2", "32", MX), 3.0),
    "FP6 above FP4": (("e2m3", "32", MX), ("e2m1", "32", MX), 8.0),
}


@pytest.mark.parametrize("paths", [DIGITS, pytest.param(BENCH, marks=pytest.mark.shared)], ids=["digits", "bench"])
@pytest.mark.parametrize(("better", "worse", "margin"), ORDERS.values(), ids=ORDERS)
def test_formats_order_as_theory_says(paths, better, worse, margin):
    if not paths:
        pytest.skip("the folder ../shared is not there")
    assert mean_db(paths, *better) >= mean_db(paths, *worse) + margin
