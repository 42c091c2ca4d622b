"""Writes a small FP8 checkpoint and the float graph of its architecture, as a training framework and an exporter would.

    python samples/tiny_checkpoint.py FOLDER      # FOLDER/config.json, model.safetensors, model.onnx; 60 KB

Two layers, weights in E4M3 with one scale for each block of 16x16 (the blocks of published models are 128x128), as
DeepSeek-V3 and Qwen3-FP8 name them. `python -m fp8graph import FOLDER --model FOLDER/model.onnx -o OUT.onnx` brings the
weights to the graph.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from safetensors.numpy import save_file

BLOCK = 16
SIZES = {"up_proj": (72, 40), "down_proj": (40, 72)}  # [out, in]; the last blocks are cut


def quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of E4M3 and the scale of each block: largest magnitude over 448."""
    grid = [-(-size // BLOCK) for size in weight.shape]
    padded = np.zeros([count * BLOCK for count in grid], np.float32)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    blocks = padded.reshape(grid[0], BLOCK, grid[1], BLOCK)
    scale = (np.abs(blocks).max((1, 3)) / 448).astype(np.float32)
    codes = np.clip(blocks / scale[:, None, :, None], -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return codes.reshape(padded.shape)[: weight.shape[0], : weight.shape[1]], scale


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    tensors, weights = {}, {}
    for name, shape in SIZES.items():
        weight = random.standard_normal(shape).astype(np.float32) / 8
        codes, scale = quantized(weight)
        tensors[f"model.layers.0.mlp.{name}.weight"] = np.ascontiguousarray(codes)
        tensors[f"model.layers.0.mlp.{name}.weight_scale_inv"] = scale
        weights[f"layers.0.mlp.{name}.weight"] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    block = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    (folder / "config.json").write_text(json.dumps({"quantization_config": block}, indent=2) + "\n")
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        tiny (float[n, 40] x) => (float[n, 40] y) {
            h = Gemm<transB=1>(x, up) r = Relu(h) y = Gemm<transB=1>(r, down)
        }"""
    )
    for node, name in zip((model.graph.node[0], model.graph.node[2]), weights, strict=True):
        node.input[1] = name
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights[name], name))
    onnx.save(model, folder / "model.onnx")
    return 0


if __name__ == "__main__":
    sys.exit(main())
