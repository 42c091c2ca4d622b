"""Takes the FP8 scales that Transformer Engine leaves in a checkpoint out of their pickles; runs where torch is.

    python samples/transformer_engine_scales.py CHECKPOINT.pt OUT.safetensors

Transformer Engine (and Megatron-LM and DeepSpeed on it) trains with delayed scaling: weights stay in bf16, and the
largest magnitudes of the last steps lie in each module's `_extra_state`, a pickle. fp8graph opens no pickle, so this
script does, once, on the machine and with the trust that the training had. It writes the weights and, for each of them,

    <weight>_amax_history              largest magnitudes of the weight in the last steps
    <weight>_activation_amax_history   largest magnitudes of its input
    <weight>_scale                     what codes are multiplied by: 1 / Transformer Engine's scale
    <weight>_activation_scale          the same of its input

which `python -m fp8graph import OUT.safetensors --model MODEL -o OUT.onnx` reads; scales win over histories. Those of
gradients stay behind: training in FP8 is out of scope.

Source: Transformer Engine 1.x and 2.x, `TransformerEngineBaseModule.get_extra_state`: a dict with `scale_fwd`
[3 * gemms] and `amax_history_fwd` [steps, 3 * gemms], in the order input, weight, output of each GEMM; either pickled
into a uint8 tensor or saved by torch into a BytesIO.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

# Weights of a module in the order of its GEMMs: Linear and LayerNormLinear, LayerNormMLP.
WEIGHTS = (("weight",), ("fc1_weight", "fc2_weight"))
STATE = "_extra_state"


class _Stub:
    """Stands for a class of Transformer Engine, such as its recipe, which is not needed."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Opens a checkpoint without Transformer Engine and Megatron-LM: classes that are not torch's become stubs."""

    def find_class(self, module: str, name: str) -> Any:
        known = module.partition(".")[0] in ("torch", "numpy", "collections", "_codecs")
        if known or (module, name) in (("_io", "BytesIO"), ("builtins", "set"), ("builtins", "bytearray")):
            return super().find_class(module, name)
        return _Stub


class _Module:
    """What torch.load takes for the pickle module."""

    Unpickler = _Unpickler
    load = staticmethod(lambda file, **_: _Unpickler(file).load())


def state_of(held: Any) -> Mapping[str, Any] | None:
    """The dict in an `_extra_state`, None where FP8 was off."""
    import torch

    if isinstance(held, torch.Tensor):
        held = _Unpickler(io.BytesIO(held.cpu().numpy().tobytes())).load() if held.numel() else None
    elif isinstance(held, io.BytesIO):
        empty = not held.getbuffer().nbytes
        held.seek(0)
        held = None if empty else torch.load(held, map_location="cpu", pickle_module=_Module, weights_only=False)
    return held if isinstance(held, dict) else None


def scales_of(state: Mapping[str, Any], names: set[str], module: str) -> dict[str, np.ndarray]:
    """Scales and histories of a module's weights by the names that `import` reads. float32."""
    weights = next((found for found in WEIGHTS if f"{module}{found[0]}" in names), ())
    history = np.asarray(state.get("amax_history_fwd", np.zeros((0, 0))), np.float32)
    scale = np.asarray(state.get("scale_fwd", np.zeros(0)), np.float32)
    out: dict[str, np.ndarray] = {}
    for gemm, weight in enumerate(weights):
        for column, part in ((3 * gemm, "_activation"), (3 * gemm + 1, "")):
            if history.ndim != 2 or column >= history.shape[1] or not np.any(history[:, column]):
                continue  # nothing went through it
            out[f"{module}{weight}{part}_amax_history"] = np.ascontiguousarray(history[:, column])
            if column < scale.size and np.isfinite(scale[column]) and scale[column] > 0:
                out[f"{module}{weight}{part}_scale"] = np.float32(1) / scale[column : column + 1]
    return out


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    import torch
    from safetensors.torch import save_file

    found = torch.load(sys.argv[1], map_location="cpu", pickle_module=_Module, weights_only=False)
    found = found.get("model", found)
    names = set(found)
    tensors = {k: v.contiguous().clone() for k, v in found.items() if isinstance(v, torch.Tensor) and STATE not in k}
    given = 0
    for name, held in found.items():
        if name.endswith(STATE) and (state := state_of(held)) is not None:
            plain = {k: v.float().numpy() for k, v in state.items() if isinstance(v, torch.Tensor)}
            scales = scales_of(plain, names, name.removesuffix(STATE))
            tensors |= {k: torch.from_numpy(v) for k, v in scales.items()}
            given += len(scales)
    save_file(tensors, sys.argv[2], metadata={"format": "pt"})
    print(f"{len(tensors) - given} tensors and {given} scales and histories -> {sys.argv[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
