"""A deployment pipeline: quantize with a pass of one's own, and let the model through only if it is good enough.

    python samples/deployment_pipeline/pipeline.py -o cnn.fp8.onnx

The pass is asked for by name where this folder is installed as a plug-in (`pip install --no-deps FOLDER`), else handed
over as an object. Status 0: good enough; 1: not so; otherwise that of the error (2 call, 3 input, 4 machine, 5 bug).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import fp8graph
from fp8graph.flow import Optimized
from fp8graph.runners.reference import reference

DIGITS = Path(__file__).resolve().parents[1] / "digits"
TARGET = "tensorrt-rtx:sm89"
LEAST_SQNR_DB, MOST_POINTS_LOST = 20.0, 1.0
UNKNOWN_PASS = "FG113"


def quantize(model: Path, output: Path, passes: str | list[fp8graph.PlanRule]) -> Optimized:
    """The quantized model, written to `output`, compared with the original on the calibration data."""
    data = DIGITS / "calibration.npz"
    return fp8graph.optimize(model, output=output, target=TARGET, data=data, passes=passes, force=True)


def quantize_with_plug_in(model: Path, output: Path) -> tuple[Optimized, str]:
    """The same with `keep-head`, and how that was found."""
    try:
        return quantize(model, output, "acme:keep-head{steps=2}"), "the installed plug-in"
    except fp8graph.UsageError as error:
        if error.code != UNKNOWN_PASS:
            raise
    from acme_passes.keep_head import KeepHead  # beside this file

    return quantize(model, output, [KeepHead(steps=2)]), "an object"


def accuracy(model: Path) -> float:
    """Share of the held-out images that are recognised, in per cent, in the exact reference."""
    with np.load(DIGITS / "heldout.npz") as file:
        images, labels = file["image"], file["label"]
    logits = reference(model).run({"image": images})["logits"]
    return float(100 * (logits.argmax(1) == labels).mean())


def judge(model: Path, output: Path, done: Optimized) -> list[str]:
    """What speaks against shipping it."""
    assert done.comparison is not None
    wrong = list(done.comparison.problems)
    for name, item in done.comparison.outputs.items():
        if item.sqnr_db is not None and item.sqnr_db < LEAST_SQNR_DB:
            wrong.append(f"SQNR of '{name}' is {item.sqnr_db:.1f} dB, wanted {LEAST_SQNR_DB}")
        print(f"SQNR of '{name}': {'equal' if item.sqnr_db is None else f'{item.sqnr_db:.1f} dB'}")
    before, after = accuracy(model), accuracy(output)
    print(f"accuracy: FP32 {before:.2f} %, FP8 {after:.2f} %")
    if before - after > MOST_POINTS_LOST:
        wrong.append(f"accuracy fell by {before - after:.2f} points, allowed {MOST_POINTS_LOST}")
    return wrong


def main() -> int:
    """Runs the pipeline and returns its status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the model to write")
    parser.add_argument("--model", type=Path, default=DIGITS / "cnn.onnx", help="a classifier of digits")
    args = parser.parse_args()
    try:
        done, found = quantize_with_plug_in(args.model, args.output)
        print(f"keep-head: {found}")
        for key, op in done.plan.ops.items():
            if op.do == "quantize" or op.why.code != "FG202":  # FG202: a type that no recipe quantizes
                print(f"{op.do:<8}  {op.op_type:<5} {key}: {op.why.code} {op.why.text} (by {op.why.by})")
        wrong = judge(args.model, args.output, done)
    except fp8graph.Fp8GraphError as error:
        print(error, file=sys.stderr)
        return error.status
    for line in wrong:
        print(f"refused: {line}")
    print(f"wrote {args.output}" if not wrong else f"do not ship {args.output}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
