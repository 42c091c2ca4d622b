"""What each way to find a scale is worth: the output's SQNR on data that no scale was taken from.

    python benchmarks/methods.py [MODEL=CALIBRATION=EVALUATION ...] [--bench FOLDER] [--limit N] [--json]

Each model is observed once. Then every Conv, Gemm and MatMul is quantized (recipe `fp8-full` without its repairs,
target `reference`) with each method, and held against the original on the evaluation data. `--bench`: a folder whose
`score.py` has `Bench` with `entries`, `model(name)` and `data(name, "calib" or "eval", limit)`. Without models: the
digits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from entries import models, parser, worst

import fp8graph
from fp8graph.data import recipe as recipes
from fp8graph.numerics.ranges import Ranges

METHODS = ("amax", "pow2", "percentile:99.99", "entropy", "mse")


@dataclass(frozen=True)
class Variant:
    """A method for activations, one for weights, and what the largest values are taken times."""

    activations: str
    weights: str = "amax"
    times: float = 1.0

    @property
    def title(self) -> str:
        """Head of its column."""
        times = f" x {self.times:.2f}" if self.times != 1 else ""
        return f"{self.activations}{times}" + (f", weights {self.weights}" if self.weights != "amax" else "")


VARIANTS = (
    *(Variant(method) for method in METHODS),
    *(Variant("amax", times=2 ** (step / 4)) for step in (1, 2, 3)),
    Variant("amax", "mse"),
    Variant("mse", "mse"),
)


def scaled(ranges: Ranges, times: float) -> Ranges:
    """Ranges as if all values had been that much larger, as far as their extremes tell."""
    values = {
        name: replace(stat, min=float(np.float32(stat.min * times)), max=float(np.float32(stat.max * times)))
        for name, stat in ranges.values.items()
    }
    return replace(ranges, values=values)


def measured(model: Any, calibration: Any, evaluation: Any, batch: int | None) -> Iterator[tuple[str, float]]:
    """SQNR in dB of each variant: the least of all outputs."""
    base, target = replace(recipes.load("fp8-full"), repairs=()), "reference"
    seen = fp8graph.calibrate(
        model, data=calibration, batch=batch, recipe=base, target=target, calibration_method="mse"
    ).ranges
    for variant in VARIANTS:
        weights = replace(base.weights, scale=variant.weights)
        recipe = replace(base.measured(variant.activations), weights=weights)
        done = fp8graph.optimize(model, ranges=scaled(seen, variant.times), recipe=recipe, target=target)
        compared = fp8graph.compare(model, done.model, data=evaluation, batch=batch)
        yield variant.title, worst(compared)


def main() -> int:
    """Measures each model and prints a table."""
    args = parser(__doc__).parse_args()
    if not args.json:
        print(f"| model | {' | '.join(variant.title for variant in VARIANTS)} |\n|---|{'---:|' * len(VARIANTS)}")
    for name, model, calibration, evaluation, batch in models(args):
        found = dict(measured(model, calibration, evaluation, batch))
        if args.json:
            print(
                json.dumps({"model": name, "sqnr_db": {title: round(x, 2) for title, x in found.items()}}), flush=True
            )
        else:
            print(f"| {name} | {' | '.join(f'{x:.1f}' for x in found.values())} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
