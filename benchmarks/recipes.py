"""What recipes are worth on the same models: the output's SQNR on data that nothing was taken from.

    python benchmarks/recipes.py [MODEL=CALIBRATION=EVALUATION ...] [--bench FOLDER] [--limit N] [--json]
        [--recipes fp8-default int8 auto auto+migrate-channels,equalize-channels] [--target reference]

A column is a recipe, and behind a plus passes that are added to it. A cell is the SQNR in dB, the least of all outputs;
in brackets the products in FP8, in INT8 and in high precision. `--bench`: a folder whose `score.py` has `Bench` with
`entries`, `model(name)` and `data(name, "calib" or "eval", limit)`. Without models: the digits.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from entries import models, parser, worst

import fp8graph

RECIPES = ("fp8-default", "int8", "auto")
_PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Found:
    """SQNR in dB, and how many products have which operands."""

    sqnr_db: float
    fp8: int
    int8: int
    kept: int

    @property
    def cell(self) -> str:
        """The cell of the table."""
        return f"{self.sqnr_db:.1f} ({self.fp8}, {self.int8}, {self.kept})"


def measured(column: str, target: str, model: Any, calibration: Any, evaluation: Any, batch: int | None) -> Found:
    """One cell."""
    recipe, _, passes = column.partition("+")
    done = fp8graph.optimize(
        model, data=calibration, batch=batch, recipe=recipe, passes=passes or None, target=target, compare=False
    )
    sqnr = worst(fp8graph.compare(model, done.model, data=evaluation, batch=batch))
    by = done.planned_by
    return Found(sqnr, by["fp8"], by["int8"], sum(1 for _, op in done.plan.kept() if op.op_type in _PRODUCTS))


def main() -> int:
    """Measures each model with each recipe and prints a table."""
    options = parser(__doc__)
    options.add_argument("--recipes", nargs="+", default=RECIPES, metavar="RECIPE[+PASSES]")
    options.add_argument("--target", default="reference")
    args = options.parse_args()
    if not args.json:
        print(f"| model | {' | '.join(args.recipes)} |\n|---|{'---:|' * len(args.recipes)}", flush=True)
    for name, *rest in models(args):
        found = {column: measured(column, args.target, *rest) for column in args.recipes}
        if args.json:
            print(json.dumps({"model": name, "found": {key: vars(cell) for key, cell in found.items()}}), flush=True)
        else:
            print(f"| {name} | {' | '.join(cell.cell for cell in found.values())} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
