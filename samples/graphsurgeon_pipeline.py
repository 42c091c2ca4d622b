"""The same from onnx-graphsurgeon: an edit of one's own, then FP8, then export; a Graph goes in and a Graph comes out.

    python samples/graphsurgeon_pipeline.py -o cnn.fp8.onnx

The edit: applications want probabilities, so a Softmax is put behind the logits. Status 0: done; 1: too far from the
original; otherwise that of the error (2 call, 3 input, 4 machine, 5 bug).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

import fp8graph

DIGITS = Path(__file__).resolve().parent / "digits"
LEAST_SQNR_DB = 20.0


def add_softmax(graph: gs.Graph) -> gs.Graph:
    """Puts a Softmax behind the output `logits`; the new output is called `probabilities`."""
    (logits,) = graph.outputs
    probabilities = gs.Variable("probabilities", dtype=np.float32, shape=logits.shape)
    graph.nodes.append(gs.Node("Softmax", "softmax", {"axis": -1}, inputs=[logits], outputs=[probabilities]))
    graph.outputs = [probabilities]
    return graph.cleanup().toposort()


def main() -> int:
    """Runs the pipeline and returns its status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the model to write")
    parser.add_argument("--model", type=Path, default=DIGITS / "cnn.onnx", help="a classifier of digits")
    args = parser.parse_args()
    graph = add_softmax(gs.import_onnx(onnx.load(args.model)))
    try:
        # The Graph that is handed in stays as it is. Without `output` nothing is written.
        done = fp8graph.optimize(graph, target="tensorrt-rtx:sm89", data=DIGITS / "calibration.npz")
    except fp8graph.Fp8GraphError as error:
        print(error, file=sys.stderr)
        return error.status
    quantized: gs.Graph = done.model
    for key, op in done.plan.quantized():
        print(f"FP8   {op.op_type:<5} {key}: {op.why.text}")
    for key, op in done.plan.kept():
        if op.op_type in ("Conv", "Gemm", "Softmax"):
            print(f"{op.high}  {op.op_type:<5} {key}: {op.why.text}")
    pairs = sum(node.op == "DequantizeLinear" for node in quantized.nodes)
    onnx.save(gs.export_onnx(quantized), args.output)
    assert done.comparison is not None
    sqnr = done.comparison.outputs["probabilities"].sqnr_db
    print(f"{len(graph.nodes)} nodes -> {len(quantized.nodes)}, {pairs} of them DequantizeLinear; SQNR {sqnr:.1f} dB")
    print(f"wrote {args.output}")
    return 0 if sqnr is None or sqnr >= LEAST_SQNR_DB else 1


if __name__ == "__main__":
    sys.exit(main())
