"""Times `fp8graph.numerics.cast.encode` against ONNX Runtime's QuantizeLinear, side by side in one process.

    python benchmarks/quantizer.py [--json] [--elements N] [--rounds N]

Both use one thread and write to memory that is already theirs. They take turns, and the best of `rounds` by CPU time
counts, so that other work on the machine spoils neither side alone. A line per format and kind of scale: million
elements a second of both, and the ratio. The codes are compared first.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from fp8graph import formats
from fp8graph.formats.spec import Format, Granularity, PerAxis, PerTensor
from fp8graph.numerics.cast import encode

ROWS = 1024
CASES = {"per tensor": PerTensor(), "axis 0": PerAxis(0), "last axis": PerAxis(-1)}


def quantize_session(format: Format, granularity: Granularity) -> ort.InferenceSession:
    """One QuantizeLinear of a matrix `x` by a scale `s`: opset 21, output_dtype, no zero point, one thread."""
    attributes: dict[str, Any] = {"axis": granularity.blocks[0][0]} if granularity.blocks else {}
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], output_dtype=format.onnx_type, **attributes)
    graph = helper.make_graph(
        [node],
        "quantizer",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "columns"]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n"] * len(granularity.blocks)),
        ],
        [helper.make_tensor_value_info("y", format.onnx_type, ["rows", "columns"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def contenders(
    format: Format, granularity: Granularity, values: np.ndarray
) -> tuple[Callable[[], object], Callable[[], object]]:
    """What to time: ours, and ONNX Runtime's. Raises SystemExit where their codes differ."""
    shape = granularity.scale_shape(values.shape)
    scale = np.asarray(np.random.default_rng(1).uniform(0.01, 0.03, shape), np.float32)
    broadcast = scale.reshape(granularity.broadcast_shape(values.shape))
    out = np.empty(values.shape, np.uint8)

    session = quantize_session(format, granularity)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(values))
    binding.bind_ortvalue_input("s", ort.OrtValue.ortvalue_from_numpy(scale))
    binding.bind_output("y")

    encode(values, format, broadcast, out=out)
    session.run_with_iobinding(binding)
    # ONNX Runtime hands no E5M2 array to numpy, only its address
    theirs = (ctypes.c_uint8 * values.size).from_address(binding.get_outputs()[0].data_ptr())
    if not np.array_equal(np.ctypeslib.as_array(theirs), out.reshape(-1)):
        raise SystemExit(f"error: {format.name}: codes differ from those of ONNX Runtime")
    return lambda: encode(values, format, broadcast, out=out), lambda: session.run_with_iobinding(binding)


def measure(elements: int, rounds: int) -> Iterator[dict[str, Any]]:
    """One row per format and kind of scale."""
    values = np.random.default_rng(0).standard_normal((ROWS, elements // ROWS), np.float32) * np.float32(2)
    for name in ("e4m3fn", "e5m2"):
        for case, granularity in CASES.items():
            runs = contenders(formats.get(name), granularity, values)
            best_s = [float("inf")] * len(runs)
            for _ in range(rounds):
                for i, run in enumerate(runs):
                    start = time.process_time()
                    run()
                    best_s[i] = min(best_s[i], time.process_time() - start)
            ours, theirs = (values.size / seconds / 1e6 for seconds in best_s)
            yield {
                "format": name,
                "scale": case,
                "ours_million_per_s": round(ours),
                "onnxruntime_million_per_s": round(theirs),
                "ratio": round(ours / theirs, 2),
            }


def setting(elements: int, rounds: int) -> dict[str, Any]:
    """Versions and machine class, without which no number means anything."""
    return {
        "elements": elements,
        "rounds": rounds,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "ml_dtypes": ml_dtypes.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "machine": platform.machine(),
        "system": platform.system(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--elements", type=int, default=1 << 24, help="elements of the tensor (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of which the best counts (default: %(default)s)")
    options = parser.parse_args()
    if options.elements < ROWS or options.rounds < 1:
        parser.error(f"at least {ROWS} elements and one round")
    where = setting(options.elements // ROWS * ROWS, options.rounds)
    write = sys.stdout.write
    if options.json:
        write(json.dumps({**where, "results": list(measure(options.elements, options.rounds))}, indent=1) + "\n")
        return
    write(", ".join(f"{key} {value}" for key, value in where.items()) + "\n")
    write(f"{'format':<8}{'scale':<12}{'ours M/s':>10}{'ORT M/s':>10}{'ratio':>8}\n")
    for row in measure(options.elements, options.rounds):
        format_, scale, ours, theirs, ratio = row.values()
        write(f"{format_:<8}{scale:<12}{ours:>10}{theirs:>10}{ratio:>8}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
