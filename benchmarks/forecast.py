"""Holds the forecast that `check` makes before a build against what `attest` reads from the engine after it.

    python benchmarks/forecast.py theirs.onnx ours.fp8.onnx --chips sm89 sm120
    python benchmarks/forecast.py zoo/*.onnx --optimize

MODEL is any Q/DQ model; with --optimize it is quantized first, on random data. Each is built for every chip, and every
product that the engine names is counted by forecast and verdict. Status 1 where an op was wrongly forecast to run in
FP8, or where fewer than 95 % of those that do were forecast so. No GPU is used.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import fp8graph
from fp8graph.data.plan import Profile

LEAST = 0.95
# What no forecast can be held against: the engine does not name the op.
SILENT = ("unknown", "absent", "folded")


def counted(model: Path, chip: str, folder: Path, *, optimize: bool, high: str | None) -> Counter[tuple[str, str]]:
    """How often each forecast met each verdict in one engine."""
    source = model
    if optimize:
        source = folder / f"{model.stem}.fp8.onnx"
        fp8graph.optimize(
            model,
            output=source,
            target=f"tensorrt-rtx:{chip}",
            data="random",
            samples=1,
            compare=False,
            high_precision_dtype=high,
            force=True,
        )
    engine = folder / f"{model.stem}.engine"
    fp8graph.build(
        source, output=engine, target=f"tensorrt-rtx:{chip}", force=True, shapes=None if optimize else shapes(source)
    )
    said = fp8graph.attest(engine, model=source)
    return Counter((op.forecast, op.verdict) for op in (*said.verdicts.values(), *said.others.values()))


def shapes(model: Path) -> dict[str, Profile] | None:
    """64 for every open size; None where none is open."""
    from fp8graph.graph.load import load

    found = {}
    for value in load(model).model.graph.inputs:
        sizes = tuple(size if isinstance(size, int) and size > 0 else 64 for size in value.shape or ())
        if value.shape is None or sizes != tuple(value.shape):
            # The first axis is the batch.
            sizes = (1, *sizes[1:]) if value.shape is not None and not isinstance(value.shape[0], int) else sizes
            found[value.name or ""] = Profile(sizes, sizes, sizes)
    return found or None


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, Counter[tuple[str, str]]]]:
    """Each model on each chip; what cannot be built is told and left out."""
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            for chip in arguments.chips:
                try:
                    found = counted(
                        model, chip, Path(folder), optimize=arguments.optimize, high=arguments.high_precision_dtype
                    )
                except fp8graph.Fp8GraphError as error:
                    print(f"{model.name} {chip}: left out, {error.what}", file=sys.stderr)
                    continue
                yield f"{model.stem} {chip}", found


def main(words: Sequence[str] | None = None) -> int:
    """Prints a line for each engine, or JSON lines, and the sum."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--chips", nargs="+", default=["sm89"])
    parser.add_argument("--optimize", action="store_true", help="MODEL is not quantized yet")
    parser.add_argument("--high-precision-dtype", help="for --optimize")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    arguments = parser.parse_args(words)
    if not arguments.models:
        digits = Path(__file__).resolve().parents[1] / "samples" / "digits"
        arguments.models, arguments.optimize = sorted(digits.glob("*.onnx")), True
    total: Counter[tuple[str, str]] = Counter()
    for name, found in rows(arguments):
        total += found
        _say(name, found, arguments.json)
    _say("all", total, arguments.json)
    real = sum(count for (_, verdict), count in total.items() if verdict == "fp8")
    return int(wrong(total) > 0 or (real > 0 and total["fp8", "fp8"] < LEAST * real))


def wrong(found: Counter[tuple[str, str]]) -> int:
    """Ops that were forecast to run in FP8 and do not."""
    return sum(n for (said, verdict), n in found.items() if said == "fp8" and verdict not in ("fp8", *SILENT))


def _say(name: str, found: Counter[tuple[str, str]], as_json: bool) -> None:
    real = sum(n for (_, verdict), n in found.items() if verdict == "fp8")
    silent = sum(n for (said, verdict), n in found.items() if said == "fp8" and verdict in SILENT)
    line = {
        "model": name,
        "fp8": real,
        "forecast": found["fp8", "fp8"],
        "wrongly": wrong(found),
        "not_named": silent,
        "rest": sum(found.values()) - real - wrong(found) - silent,
    }
    text = f"{name}: {line['forecast']} of {real} in FP8 forecast, {line['wrongly']} wrongly, {silent} not named"
    print(json.dumps(line) if as_json else f"{text}, {line['rest']} others", flush=True)


if __name__ == "__main__":
    sys.exit(main())
