"""Calibration caches that ModelOpt reads and writes: TensorRT's format; names of scales may end in `_scale`.

Source: modelopt/onnx/quantization/calib_utils.py, import_scales_from_calib_cache.
"""

from __future__ import annotations

from pathlib import Path

from fp8graph.importers import trt_cache


def read(path: Path) -> dict[str, float]:
    """The largest magnitude of each tensor. Raises as `trt_cache.read` does."""
    return {name.removesuffix("_scale"): amax for name, amax in trt_cache.read(path).items()}
