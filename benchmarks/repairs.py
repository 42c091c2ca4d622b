"""What each data repair is worth: alone, together, and what is lost without it.

    python benchmarks/repairs.py [MODEL=CALIBRATION=EVALUATION ...] [--bench FOLDER] [--limit N] [--json]

Each model is quantized wherever the target can (recipe `fp8-full`, target `reference`) with no repair, with each of the
recipe's alone, with all of them, and with all but one; the repairs learn from the calibration data. A cell is the SQNR
of the output on the evaluation data in dB, the least of all outputs, and how much the multiply-accumulates in FP8 have
grown over the plain plan. `--bench`: a folder whose `score.py` has `Bench` with `entries`, `model(name)` and
`data(name, "calib" or "eval", limit)`; entries whose files are not there are left out. Without models: the digits.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnx_ir as ir
from entries import models, parser, worst

import fp8graph
from fp8graph.data import recipe as recipes
from fp8graph.engines.sizes import op_sizes


@dataclass(frozen=True)
class Variant:
    """Some of the repairs."""

    title: str
    repairs: tuple[str, ...]


def variants(repairs: Sequence[str]) -> list[Variant]:
    """None, each alone, all, all but each; no set of them twice."""
    wanted = [Variant("plain", ()), *(Variant(name, (name,)) for name in repairs)]
    wanted.append(Variant("all", tuple(repairs)))
    for name in repairs:
        wanted.append(Variant(f"without {name}", tuple(other for other in repairs if other != name)))
    first: dict[tuple[str, ...], Variant] = {}
    for item in wanted:
        first.setdefault(item.repairs, item)
    return list(first.values())


def fp8_macs(done: fp8graph.Optimized) -> int:
    """Multiply-accumulates with both operands in FP8."""
    sizes = op_sizes(ir.from_proto(done.model), done.plan.shapes)
    wanted = {key for key, op in done.plan.quantized() if op.precision == "fp8"}
    return sum(macs or 0 for key, (macs, _) in sizes.items() if key in wanted)


@dataclass(frozen=True)
class Found:
    """SQNR in dB, multiply-accumulates over those of the plain plan, and the seconds that `optimize` took."""

    sqnr_db: float
    macs: float
    seconds: float

    @property
    def cell(self) -> str:
        """The cell of the table."""
        return f"{self.sqnr_db:.1f}" + (f" (+{self.macs - 1:.1%})" if self.macs > 1 else "")


def measured(
    model: Any, calibration: Any, evaluation: Any, batch: int | None, wanted: Sequence[Variant]
) -> Iterator[tuple[str, Found]]:
    """Each variant in turn, the plain one first."""
    base, plain = recipes.load("fp8-full"), 0
    for variant in wanted:
        start = time.perf_counter()
        recipe = replace(base, repairs=variant.repairs)
        done = fp8graph.optimize(model, data=calibration, batch=batch, recipe=recipe, target="reference", compare=False)
        took, macs = time.perf_counter() - start, fp8_macs(done)
        plain = plain or macs
        compared = fp8graph.compare(model, done.model, data=evaluation, batch=batch)
        yield variant.title, Found(worst(compared), macs / plain if plain else 1.0, took)


def main() -> int:
    """Measures each model and prints a table."""
    options = parser(__doc__)
    options.add_argument("--repairs", nargs="+", help="these instead of the recipe's, in this order")
    args = options.parse_args()
    wanted = variants(args.repairs or recipes.load("fp8-full").repairs)
    if not args.json:
        print(f"| model | {' | '.join(item.title for item in wanted)} |\n|---|{'---:|' * len(wanted)}", flush=True)
    for name, model, calibration, evaluation, batch in models(args):
        found: dict[str, Found] = {}
        for title, one in measured(model, calibration, evaluation, batch, wanted):
            found[title] = one
            print(f"{name}, {title}: {one.cell} dB, {one.seconds:.0f} s", file=sys.stderr, flush=True)
        if args.json:
            row = {
                title: {"sqnr_db": round(x.sqnr_db, 2), "macs": round(x.macs, 4), "seconds": round(x.seconds, 1)}
                for title, x in found.items()
            }
            print(json.dumps({"model": name, "variants": row}), flush=True)
        else:
            print(f"| {name} | {' | '.join(one.cell for one in found.values())} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
