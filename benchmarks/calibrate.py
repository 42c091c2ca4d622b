"""What calibration costs over plainly running the same batches, in time and in memory.

    python benchmarks/calibrate.py MODEL... [--batch 4] [--runs 5] [--json]

Observed are the activations that `optimize` would quantize for target `reference` with recipe `fp8-full`: their amax,
then their histograms. Time: one thread, plain session and ours in turn in one process, the best CPU time of each for
one batch. Memory: one process each, which has read and planned the model; how far it peaks above that while the session
is made and runs five batches. Batches are random: neither depends on their values.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnxruntime as ort

from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import open_samples
from fp8graph.calibrate.view import View
from fp8graph.core.options import Options
from fp8graph.core.settle import needs
from fp8graph.flow.feeding import Reading
from fp8graph.flow.job import Job
from fp8graph.numerics.ranges import Need

GOALS = {"amax": 1.1, "histogram": 1.5}
MEGABYTES = 60
_DIGITS = Path(__file__).resolve().parents[1] / "samples" / "digits"
Feed = dict[str, Any]


def feed_of(model: Any, batch: int, length: int) -> Feed:
    """A random batch; the first axis is `batch` where it is open, all others that are have `length`."""
    shapes = {}
    for value in model.graph.inputs:
        dims = [dim if isinstance(dim, int) else None for dim in value.shape]
        shapes[value.name] = tuple(
            size if size is not None else (batch if axis == 0 else length) for axis, size in enumerate(dims)
        )
    return next(iter(open_samples("random", model, Notes(), samples=1, input_shapes=shapes)))


def opened(path: Path) -> Job:
    """The model as `optimize` has it before it calibrates."""
    job = Job(Options(), None, Reading())
    job.open(path, "fp8-full", "reference", None, None, None)
    return job


def plain_session(path: Path) -> ort.InferenceSession:
    """The model in ONNX Runtime, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runner(job: Job, path: Path, what: str, feed: Feed) -> tuple[Callable[[], object], int]:
    """What runs one batch, and how many tensors it observes."""
    if what == "plain":
        session = plain_session(path)
        return lambda: session.run(None, feed), 0
    tensors = [need.tensor for need in needs(job.plan(), job.normalized.model)]
    view = View(job.normalized.model, [Need(name, what) for name in tensors], "", "")  # type: ignore[arg-type]
    return lambda: view.observe(0, feed), len(tensors)


def peak(path: Path, what: str, batch: int, length: int) -> float:
    """Megabytes that a session and five batches take, in a process of its own."""
    call = [sys.executable, __file__, str(path), "--peak", what, "--batch", str(batch), "--length", str(length)]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def own_peak(path: Path, what: str, batch: int, length: int) -> float:
    """The same in this process. Linux only."""
    job = opened(path)
    feed = feed_of(job.source.model, batch, length)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run, _ = runner(job, path, what, feed)
    for _ in range(5):
        run()
    return _memory("VmHWM") - before


def _memory(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1e3


def measure(path: Path, batch: int, length: int, runs: int) -> dict[str, Any]:
    """Ratios of the best times, and megabytes over the plain run."""
    row: dict[str, Any] = {"model": path.name, "batch": batch}
    job = opened(path)
    feed = feed_of(job.source.model, batch, length)
    plain, _ = runner(job, path, "plain", feed)
    for what in GOALS:
        observe, row["tensors"] = runner(job, path, what, feed)
        times: dict[str, list[float]] = {"plain": [], what: []}
        for run in (plain, observe):  # the first batch makes room
            run()
        for _ in range(runs):
            for name, run in (("plain", plain), (what, observe)):
                begin = time.process_time()
                run()
                times[name].append(time.process_time() - begin)
        row[f"{what}_ratio"] = round(min(times[what]) / min(times["plain"]), 3)
        row["plain_ms"] = round(min(times["plain"]) * 1e3, 1)
        del observe
    if Path("/proc/self/clear_refs").exists():
        usual = peak(path, "plain", batch, length)
        row["plain_mb"] = round(usual)
        row |= {f"{what}_mb": round(peak(path, what, batch, length) - usual) for what in GOALS}
    return row


def describe(row: dict[str, Any]) -> str:
    """One line for people."""
    parts = [
        f"{what} {row[f'{what}_ratio']}x" + (f", {row[f'{what}_mb']:+} MB" if f"{what}_mb" in row else "")
        for what in GOALS
    ]
    plain = f"plain {row['plain_ms']} ms" + (f", {row['plain_mb']} MB" if "plain_mb" in row else "")
    return f"{row['model']}, batch {row['batch']}, {row['tensors']} tensors: {'; '.join([*parts, plain])}"


def main() -> int:
    """Measures each model and prints a line for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="default: the digits models")
    parser.add_argument("--batch", type=int, default=4, help="rows of a batch, where that is open (4)")
    parser.add_argument("--length", type=int, default=128, help="of the other open axes (128)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="JSON lines")
    parser.add_argument("--peak", choices=("plain", *GOALS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    models = args.models or [_DIGITS / "cnn.onnx", _DIGITS / "vit.onnx"]
    if args.peak:
        print(own_peak(models[0], args.peak, args.batch, args.length))
        return 0
    where = {name: version(name) for name in ("fp8graph", "onnxruntime", "numpy")}
    for model in models:
        row = measure(model, args.batch, args.length, args.runs)
        print(json.dumps(row | {"versions": where}) if args.json else describe(row), flush=True)
    if not args.json:
        print(f"goals: amax {GOALS['amax']}x, histogram {GOALS['histogram']}x, +{MEGABYTES} MB; {where}")
    return 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
