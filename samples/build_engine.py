"""Builds an attested FP8 engine: optimize, build, attest, with progress, in one process and with a status for scripts.

    python samples/build_engine.py samples/digits/vit.onnx --data samples/digits/calibration.npz -o vit.engine
    python samples/build_engine.py m.onnx --data calib.npz --chips sm89 sm120 --max-batch 32 -o m.engine

Writes ENGINE with its manifest and log, and beside them the FP8 model with its plan. No GPU is used. With --script also
a Python script that builds the same engine from the FP8 model, for a machine without fp8graph.

status 0  every op that was planned in FP8 is attested in FP8, for all chips
       1  not so, or nothing can be quantized: read what is printed
       2  the call is wrong     3  model or data refused     4  builder failed or missing     5  a bug of fp8graph
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import onnx

import fp8graph


class Lines:
    """Progress as lines on stderr: what begins, and how long it took."""

    def __init__(self) -> None:
        self.running: list[tuple[str, float]] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Work begins; work within work is indented."""
        size = "" if total is None else f" ({total} {unit})"
        print(f"{'  ' * len(self.running)}{what}{size} ...", file=sys.stderr)
        self.running.append((what, time.perf_counter()))

    def step(self, n: int = 1) -> None:
        """Called for every sample and every step of the builder; a bar would move here."""

    def done(self) -> None:
        """The work that began last has ended."""
        what, began = self.running.pop()
        print(f"{'  ' * len(self.running)}{what}: {time.perf_counter() - began:.1f} s", file=sys.stderr)


def batches(model: Path, largest: int) -> dict[str, fp8graph.Profile]:
    """A profile for each input whose first dimension is free: batches of 1 to `largest`."""
    shapes = {}
    for value in onnx.load(model, load_external_data=False).graph.input:
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        if dims and dims[0] is None and None not in dims[1:]:
            rest = tuple(dim for dim in dims[1:] if dim is not None)
            shapes[value.name] = fp8graph.Profile((1, *rest), (largest, *rest), (largest, *rest))
    return shapes


def build(args: argparse.Namespace, progress: Lines) -> fp8graph.Attestation:
    """Model to engine to attestation. Raises Fp8GraphError, whose class is the status."""
    quantized = args.output.with_suffix(".fp8.onnx")
    done = fp8graph.optimize(
        args.model,
        output=quantized,
        target=f"tensorrt-rtx:{'+'.join(args.chips)}",
        data=args.data,
        batch=args.max_batch,
        shapes=batches(args.model, args.max_batch) if args.max_batch else None,
        high_precision_dtype=args.high_precision_dtype,
        force=args.force,
        progress=progress,
    )
    for finding in done.findings:
        print(f"{finding.code} {finding.severity}: {finding.op} {finding.text}", file=sys.stderr)
    # Target and shapes come from the plan that was written beside the model.
    built = fp8graph.build(
        quantized,
        output=args.output,
        emit_script=args.script,
        timeout=args.timeout,
        force=args.force,
        progress=progress,
    )
    for warning in built.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for file in (*done.files, *built.files):
        print(f"wrote {file.path} ({file.bytes:,} bytes)")
    return fp8graph.attest(args.output, model=quantized)


def main() -> int:
    """Reads the command line and returns the status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="ONNX model")
    parser.add_argument("--data", required=True, help="calibration data: .npz by input name, or a folder")
    parser.add_argument("--chips", nargs="+", default=["sm89"], help="one engine for all of them (sm89)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="ENGINE")
    parser.add_argument("--max-batch", type=int, help="batches of 1 to this; without it: as calibration saw them")
    parser.add_argument("--high-precision-dtype", choices=("keep", "fp16", "bf16", "fp32"), default="fp16")
    parser.add_argument("--script", type=Path, metavar="F", help="write a build script, too")
    parser.add_argument("--timeout", type=float, help="seconds that the builder may take")
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    args = parser.parse_args()
    try:
        attestation = build(args, Lines())
    except fp8graph.Fp8GraphError as error:  # UnmetError 1, UsageError 2, InputError 3, BackendError 4, InternalError 5
        print(error, file=sys.stderr)
        return error.status
    for key, op in attestation.broken.items():
        print(f"{op.verdict}: {op.op_type} {key}, planned {op.planned}: {op.why}")
    counts = ", ".join(f"{n} {verdict}" for verdict, n in attestation.counts.items())
    print(
        f"{attestation.builder} for {'+'.join(attestation.chips)}: {counts} of {len(attestation.verdicts)} planned ops"
    )
    return 1 if attestation.broken else 0


if __name__ == "__main__":
    sys.exit(main())
