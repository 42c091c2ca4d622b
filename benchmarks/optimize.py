"""What `optimize` costs over plainly running the same samples: two whole processes, side by side.

    python benchmarks/optimize.py MODEL... [--samples 16] [--runs 5] [--json]

Plain: load the model with onnx, run the samples in ONNX Runtime, save the model with onnx. Ours: `optimize
--no-compare` on the same samples. The runs alternate, the best wall and CPU times of each are compared. Samples are
random: time does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

PLAIN = """
import sys
import numpy as np
import onnx
import onnxruntime
model, data, output = sys.argv[1:]
loaded = onnx.load(model)
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
with np.load(data) as arrays:
    feeds = {name: arrays[name] for name in arrays.files}
for index in range(len(next(iter(feeds.values())))):
    session.run(None, {name: array[index] for name, array in feeds.items()})
big = sum(t.ByteSize() for t in loaded.graph.initializer) > 1 << 30
onnx.save(loaded, output, save_as_external_data=big)
"""
GOAL = 2.0


def main() -> int:
    """Runs the comparison for each model and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    models = args.models or [
        Path(__file__).parent.parent / "samples" / "digits" / name for name in ("cnn.onnx", "vit.onnx")
    ]
    rows = [measure(model, args.samples, args.runs) for model in models]
    for row in rows:
        print(json.dumps(row) if args.json else describe(row))
    return 0


def measure(model: Path, samples: int, runs: int) -> dict[str, object]:
    """Best wall and CPU seconds of both, in alternating runs."""
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder) / "data.npz", Path(folder) / "out.onnx"
        np.savez(data, **random_feeds(model, samples))
        plain = [sys.executable, "-c", PLAIN, str(model), str(data), str(output)]
        ours = [sys.executable, "-m", "fp8graph", "optimize", str(model), "-o", str(output), "--force", "--no-compare"]
        ours += ["--data", str(data), "--target", "tensorrt-rtx:sm89", "--quiet"]
        times: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
        for _ in range(runs):
            times["plain"].append(timed(plain))
            times["ours"].append(timed(ours))
    best = {who: tuple(min(column) for column in zip(*pairs, strict=True)) for who, pairs in times.items()}
    return {
        "model": model.name,
        "samples": samples,
        "wall_ratio": round(best["ours"][0] / best["plain"][0], 2),
        "cpu_ratio": round(best["ours"][1] / best["plain"][1], 2),
        "wall_s": {who: round(pair[0], 2) for who, pair in best.items()},
        "cpu_s": {who: round(pair[1], 2) for who, pair in best.items()},
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("fp8graph", "onnxruntime", "onnx", "onnx-ir", "numpy")},
    }


def timed(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def random_feeds(model: Path, samples: int) -> dict[str, np.ndarray]:
    """One feed per index; dynamic dimensions are 1, ids stay small."""
    graph = onnx.load(str(model), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    generator, feeds = np.random.default_rng(0), {}
    for value in graph.input:
        if value.name in constants:
            continue
        shape = [samples, *(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        floating = np.issubdtype(dtype, np.floating)
        feeds[value.name] = (generator.random(shape) if floating else generator.integers(0, 2, shape)).astype(dtype)
    return feeds


def describe(row: dict[str, object]) -> str:
    """One line for people."""
    verdict = "reached" if float(str(row["wall_ratio"])) <= GOAL else "missed"
    return (
        f"{row['model']}, {row['samples']} samples: optimize --no-compare takes {row['wall_ratio']}x the wall time and "
        f"{row['cpu_ratio']}x the CPU time of load + run + save (goal {GOAL:.0f}x: {verdict}); wall {row['wall_s']} s, "
        f"{row['cores']} cores, {row['versions']}"
    )


if __name__ == "__main__":
    sys.exit(main())
