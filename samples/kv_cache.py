"""Generates step by step with a cache of keys and values in FP8: the codes that a step gives are fed to the next.

    python samples/kv_cache.py -o decoder.fp8.onnx

Makes one attention layer with a cache, holds its cache in FP8, and runs four steps in ONNX Runtime, which never
dequantizes the cache outside of the model. Prints the bytes of the cache and how near the last step is to that in fp32.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import fp8graph

HEADS, SIZE, WIDTH, STEPS = 4, 32, 128, 4
Array = np.ndarray[Any, np.dtype[Any]]
LAYER = f"""<ir_version: 10, opset_import: ["" : 21]>
decoder (float[1,S,{WIDTH}] x, float[1,{HEADS},P,{SIZE}] past_key, float[1,{HEADS},P,{SIZE}] past_value)
     => (float[1,S,{WIDTH}] y, float[1,{HEADS},T,{SIZE}] present_key, float[1,{HEADS},T,{SIZE}] present_value)
<int64[4] heads = {{0, 0, {HEADS}, {SIZE}}}, int64[3] flat = {{0, 0, {WIDTH}}}, float scale = {{{SIZE**-0.5}}}> {{
  q = MatMul (x, w_q) q_heads = Reshape (q, heads) q_turned = Transpose <perm = [0, 2, 1, 3]> (q_heads)
  k = MatMul (x, w_k) k_heads = Reshape (k, heads) new_key = Transpose <perm = [0, 2, 1, 3]> (k_heads)
  v = MatMul (x, w_v) v_heads = Reshape (v, heads) new_value = Transpose <perm = [0, 2, 1, 3]> (v_heads)
  present_key = Concat <axis = 2> (past_key, new_key)
  present_value = Concat <axis = 2> (past_value, new_value)
  scaled = Mul (q_turned, scale) keys = Transpose <perm = [0, 1, 3, 2]> (present_key)
  scores = MatMul (scaled, keys) p = Softmax <axis = -1> (scores) context = MatMul (p, present_value)
  turned = Transpose <perm = [0, 2, 1, 3]> (context) joined = Reshape (turned, flat) y = MatMul (joined, w_o)
}}"""


def layer() -> onnx.ModelProto:
    """The layer in fp32, with random weights."""
    model = onnx.parser.parse_model(LAYER)
    random = np.random.default_rng(0)
    for name in ("w_q", "w_k", "w_v", "w_o"):
        weight = (random.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return model


def feed(past: int, seed: int) -> dict[str, Array]:
    """One step behind `past` earlier ones."""
    random = np.random.default_rng(seed)
    caches = {f"past_{side}": (1, HEADS, past, SIZE) for side in ("key", "value")}
    return {
        name: random.standard_normal(size).astype(np.float32) for name, size in {"x": (1, 1, WIDTH), **caches}.items()
    }


def generate(model: onnx.ModelProto | str) -> tuple[Array, int]:
    """Output of the last of a few steps that begin with an empty cache, and the bytes that the cache then takes."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    given = model if isinstance(model, str) else model.SerializeToString()
    session = ort.InferenceSession(given, options, ["CPUExecutionProvider"], disabled_optimizers=["ReluQuantRewrite"])
    fp8 = session.get_inputs()[1].type != "tensor(float)"
    kind = onnx.TensorProto.FLOAT8E4M3FN if fp8 else onnx.TensorProto.FLOAT
    empty = np.zeros((1, HEADS, 0, SIZE), np.uint8 if fp8 else np.float32)
    cache = [ort.OrtValue.ortvalue_from_numpy_with_onnx_type(empty, kind) for _ in range(2)]
    for step in range(STEPS):
        x = ort.OrtValue.ortvalue_from_numpy(feed(0, step)["x"])
        y, *cache = session.run_with_ort_values(
            ["y", "present_key", "present_value"], {"x": x, "past_key": cache[0], "past_value": cache[1]}
        )
    return y.numpy(), sum(value.numpy().nbytes for value in cache)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    model = layer()
    data = [feed(past, seed=100 + past) for past in (8, 16, 24)]
    done = fp8graph.optimize(
        model, data=data, target="tensorrt-rtx:sm89", kv_cache="fp8", output=args.output, force=True
    )
    for name, cache in done.plan.caches.items():
        print(f"{name} -> {cache.output}: {cache.quant.format}, scale {cache.quant.scale.value:.4g}")
    (before, plain), (after, small) = generate(model), generate(args.output)
    sqnr = 10 * float(np.log10((before**2).sum() / ((after - before) ** 2).sum()))
    print(f"cache after {STEPS} steps: {plain} bytes in fp32, {small} in FP8; SQNR of the last output {sqnr:.1f} dB")


if __name__ == "__main__":
    main()
