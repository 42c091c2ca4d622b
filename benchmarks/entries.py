"""What benchmarks measure on: models that are named, entries of a bench, or the digits."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fp8graph.data.comparison import Comparison

_DIGITS = Path(__file__).resolve().parents[1] / "samples" / "digits"


def loaded(path: Path) -> ModuleType:
    """A module from its file."""
    spec = importlib.util.spec_from_file_location("bench_score", path) if path.exists() else None
    if spec is None or spec.loader is None:
        raise SystemExit(f"error: there is no {path.name} in {path.parent}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parser(about: str | None) -> argparse.ArgumentParser:
    """The options that say what is measured."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("models", nargs="*", metavar="MODEL=CALIBRATION=EVALUATION")
    made.add_argument("--bench", type=Path, metavar="FOLDER")
    made.add_argument("--entries", nargs="+", help="only these of the bench")
    made.add_argument("--limit", type=int, help="only the first N samples of evaluation data")
    made.add_argument("--json", action="store_true", help="JSON lines")
    return made


def models(args: argparse.Namespace) -> Iterator[tuple[str, Any, Any, Any, int | None]]:
    """Name, model, calibration data, evaluation data and batch; entries whose files are not there are left out."""
    for item in args.models:
        model, calibration, evaluation = item.split("=")
        yield Path(model).stem, model, calibration, evaluation, None
    if args.bench is not None:
        bench = loaded(args.bench / "score.py").Bench(str(args.bench))
        for name in args.entries or bench.entries:
            try:
                path = bench.model(name)
            except SystemExit as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            calibration, _ = bench.data(name, "calib", None)
            evaluation, _ = bench.data(name, "eval", args.limit)
            yield name, path, calibration, evaluation, None
    if not args.models and (args.bench is None or not args.entries):
        calibration = {"image": np.load(_DIGITS / "calibration.npz")["image"]}
        evaluation = {"image": np.load(_DIGITS / "heldout.npz")["image"][: args.limit]}
        for name in ("cnn", "vit"):
            yield f"digits {name}", _DIGITS / f"{name}.onnx", calibration, evaluation, 16


def worst(compared: Comparison) -> float:
    """SQNR in dB of the output that has the least."""
    found = [output.sqnr_db for output in compared.outputs.values() if output.sqnr_db is not None]
    return min(found, default=float("inf"))
