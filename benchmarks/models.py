"""Builds whole models in FP8 and in fp16, and says what of each engine really runs in FP8.

    python benchmarks/models.py samples/digits/vit.onnx=samples/digits/calibration.npz
    python benchmarks/models.py zoo/*.onnx --chips sm89 sm120 -o table.md

MODEL[=DATA]: DATA is what `optimize --data` takes; without it NAME.npz beside the model, where it is there, else random
data. Arrays called `in:NAME` are one feed as it is. Prints a Markdown table, a line for each model and chip; status 1
where a line has a flaw: an op that is not as planned, less than 95 % of the multiply-adds that the target's table calls
native in FP8, an attention that is not one kernel though planned so, planned weights over 55 % of fp16's bytes,
constants that are more than 2 % off the forecast, an op that was wrongly forecast to run in FP8, or less than 95 % of
those that do forecast so. No GPU is used.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from forecast import LEAST, wrong

import fp8graph

COLUMNS = (
    *("model", "chip", "planned", "attested", "forecast", "MACs native in FP8", "of all", "attention"),
    *("weights to fp16", "to forecast"),
)
_SAMPLES = Path(__file__).resolve().parents[1] / "samples" / "digits"
DIGITS = tuple(f"{_SAMPLES / name}.onnx={_SAMPLES / 'calibration.npz'}" for name in ("vit", "cnn"))
HEAD = (f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}")


@dataclass(frozen=True)
class Line:
    """One model on one chip: cells of the table, and what is wrong with it."""

    cells: tuple[str, ...]
    flaws: tuple[str, ...]


def measured(model: Path, data: Any, chip: str, folder: Path) -> Line:
    """Optimizes, builds and attests; and builds the same in fp16 with nothing quantized."""
    target, high = f"tensorrt-rtx:{chip}", "fp16"
    out, plain = folder / f"{model.stem}.{chip}.fp8.onnx", folder / f"{model.stem}.{chip}.fp16.onnx"
    done = fp8graph.optimize(
        model, data=data, target=target, high_precision_dtype=high, output=out, compare=False, force=True
    )
    fp8graph.optimize(
        model,
        data=data,
        target=target,
        high_precision_dtype=high,
        output=plain,
        compare=False,
        force=True,
        nodes_to_exclude=["*"],
        allow_unquantized=True,
    )
    engine, wide = out.with_suffix(".engine"), plain.with_suffix(".engine")
    fp8graph.build(out, output=engine, target=target, force=True)
    fp8graph.build(plain, output=wide, target=target, force=True)
    attested = fp8graph.attest(engine, model=out)
    small, large = (fp8graph.inspect(path) for path in (engine, wide))
    fused, attentions = fused_attention(done, small)
    ratio = planned_weights(small, large)
    excess, native = attested.weights.excess, attested.share("macs")
    fine = sum(op.as_planned for op in attested.verdicts.values())
    met = Counter((op.forecast, op.verdict) for op in (*attested.verdicts.values(), *attested.others.values()))
    eight = sum(count for (_, verdict), count in met.items() if verdict == "fp8")
    flaws = [
        (fine < len(attested.verdicts), f"{len(attested.verdicts) - fine} ops are not as planned"),
        ((native or 0.0) < 0.95, "less than 95 % of the MACs"),
        (fused < attentions, f"{attentions - fused} attentions are not fused"),
        (ratio is not None and ratio > 0.55, "weights over 55 % of fp16's"),
        (excess is not None and abs(excess) > 0.02, "constants are not as forecast"),
        (wrong(met) > 0, f"{wrong(met)} ops are wrongly forecast in FP8"),
        (met["fp8", "fp8"] < LEAST * eight, "less than 95 % of the ops in FP8 are forecast"),
    ]
    cells = (
        model.stem,
        chip,
        str(done.planned),
        str(attested.counts["fp8"]),
        f"{met['fp8', 'fp8']} of {eight}",
        f"{native:.1%}" if native is not None else "",
        f"{all_macs(attested):.1%}",
        f"{fused} of {attentions}" if attentions else "",
        f"{ratio:.1%}" if ratio is not None else "",
        f"{excess:+.1%}" if excess is not None else "",
    )
    return Line(cells, tuple(text for found, text in flaws if found))


def all_macs(attested: Any) -> float:
    """The share in FP8 of the multiply-adds of every product, whatever the target's table says of it."""
    totals = attested.totals("macs")
    return float(totals["fp8"] / max(sum(totals.values()), 1))


def fused_attention(done: Any, engine: Any) -> tuple[int, int]:
    """Attentions that are one FP8 kernel, of those that were planned in FP8 in half precision."""
    kernels = [
        set(row["names"])
        for row in engine["layers"]
        if row["kind"] == "attention" and list(row["operands"]).count("fp8") == 3
    ]
    groups: dict[str, set[str]] = {}
    for _, op in done.plan.quantized():
        if op.group and op.high != "fp32":
            groups.setdefault(op.group, set()).add(op.name)
    return sum(any(names <= kernel for kernel in kernels) for names in groups.values()), len(groups)


def planned_weights(small: Any, large: Any) -> float | None:
    """Bytes of the FP8 constants of one engine by those of the same weights in the other, which has the rest, too."""
    eight = small["weights"].get("fp8", 0)
    same = sum(large["weights"].values()) - (sum(small["weights"].values()) - eight)
    return eight / same if eight and same > 0 else None


def feeds(model: Path, given: str) -> Any:
    """What `optimize` reads: the data given, that beside the model, or random data."""
    path = Path(given) if given else model.with_suffix(".npz")
    if not given and not path.exists():
        return "random"
    if path.suffix != ".npz":
        return str(path)
    with np.load(path) as arrays:
        one = {name[3:]: arrays[name] for name in arrays.files if name.startswith("in:")}
    return [one] if one else str(path)


def table(models: Sequence[str], chips: Sequence[str]) -> Iterator[str]:
    """The lines of the table; the last is empty where there is no flaw, else it says that there are some."""
    flaws = 0
    yield from HEAD
    for item in models:
        name, _, given = item.partition("=")
        for chip in chips:
            begin = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    line = measured(Path(name), feeds(Path(name), given), chip, Path(folder))
                except fp8graph.Fp8GraphError as error:
                    line = Line((Path(name).stem, chip, *[""] * (len(COLUMNS) - 2)), (f"{error.code}: {error.what}",))
            flaws += bool(line.flaws)
            print(f"{name} {chip}: {time.perf_counter() - begin:.0f} s {'; '.join(line.flaws)}", file=sys.stderr)
            yield f"| {' | '.join(line.cells)} |"
    yield f"{flaws} lines with a flaw" if flaws else ""


def main() -> int:
    """Reads the command line, prints the table; the status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL[=DATA]", help="default: the digits models")
    parser.add_argument("--chips", nargs="+", default=["sm89", "sm120"])
    parser.add_argument("-o", "--output", type=Path, help="write the table there, too")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    args = parser.parse_args()
    lines: list[str] = []
    for line in table(args.models or DIGITS, args.chips):
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if not args.json:
            print(line, flush=True)
        elif line not in HEAD and len(row) == len(COLUMNS):
            print(json.dumps(dict(zip(COLUMNS, row, strict=True))), flush=True)
        lines.append(line)
    if args.output is not None:
        args.output.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    return 1 if lines[-1] else 0


if __name__ == "__main__":
    sys.exit(main())
