"""Runs every recipe on every target, and says what becomes of each model there.

    python benchmarks/matrix.py samples/digits/cnn.onnx=samples/digits/calibration.npz --recipes mxfp4 fp8-default
    python benchmarks/matrix.py zoo/*.onnx -o table.md

MODEL[=DATA]: DATA is what `optimize --data` takes; without it NAME.npz beside the model, where it is there, else random
data. Prints two Markdown tables: recipe by target, and what differs by model; then reasons. A cell:

    runs                       the reference computes it; ONNX Runtime does with the settings that `optimize` names
    unloaded                   written, and ONNX Runtime has no kernels for the model's type, which `optimize` says
    fp8, storage, int8, ...    built, and the verdicts that `attest` gives of the planned ops
    high precision             built, and nothing is quantized
    planned                    written; there is no builder here
    refused                    nothing is written, status 2
    no op                      nothing can be quantized there, status 1

Models are named where they differ. Status 1 where a cell is none of these: the code of another error, or ops that are
not as planned. No GPU is used.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from models import DIGITS, feeds

import fp8graph
from fp8graph.data import recipe as recipes

TARGETS = (
    *("reference", "onnxruntime", "openvino:cpu", "tensorrt", "tensorrt:sm100"),
    *("tensorrt-rtx:sm89", "tensorrt-rtx:sm120"),
)
BUILDERS = {"openvino": "openvino", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class Cell:
    """What became of one recipe on one target.

    word     the cell of the table
    why      of what does not run, the reason; of a flaw, what is wrong
    flaw     whether it is none of the outcomes that are allowed
    ops      of what is written, the ops that are planned
    figures  of the reference: SQNR of the worst output in dB, bits a weight with its scales
    """

    word: str
    why: str = ""
    flaw: bool = False
    ops: int = 0
    figures: tuple[str, str] = ("", "")


def measured(model: Path, data: Any, recipe: str, target: str, folder: Path) -> Cell:
    """Optimizes, and where a builder is installed builds and attests."""
    name, out = target.partition(":")[0], folder / "model.onnx"
    high = "fp16" if name.startswith("tensorrt") and recipe != "bf16" else None
    try:
        done = fp8graph.optimize(
            model,
            data=data,
            recipe=recipe,
            target=target,
            high_precision_dtype=high,
            output=out,
            compare=name not in BUILDERS,
            samples=4,
        )
        if name not in BUILDERS:
            return computed(done, out, name)
        ops = sum(done.planned_by.values())
        if importlib.util.find_spec(BUILDERS[name]) is None:
            return Cell("planned", ops=ops)
        engine = folder / "model.engine"
        fp8graph.build(out, output=engine, target=target)
        attested = fp8graph.attest(engine, model=out)
    except fp8graph.Fp8GraphError as error:
        return failed(error)
    verdicts = attested.verdicts.values()
    wrong = [op for op in verdicts if not op.as_planned]
    words = sorted({op.verdict for op in verdicts})
    why = f"{len(wrong)} ops are not as planned" if wrong else ""
    return Cell(" and ".join(words) or "high precision", why, bool(wrong), ops)


def computed(done: Any, out: Path, name: str) -> Cell:
    """The cell of a target that computes the written model itself."""
    session = done.default_session
    if name == "onnxruntime" and not session.safe and not session.options:
        return Cell("unloaded", session.why)
    if done.comparison.problems:
        return Cell("does not run", str(done.comparison.problems[0]), True)
    found = [item.sqnr_db for item in done.comparison.outputs.values() if item.sqnr_db is not None]
    bits = weight_bits(out)
    figures = (f"{min(found):.1f}" if found else "exact", f"{bits:.2f}" if bits else "")
    return Cell("runs", ops=sum(done.planned_by.values()), figures=figures)


def failed(error: fp8graph.Fp8GraphError) -> Cell:
    """The cell of a refusal, or of an error that is none."""
    if error.code in ("FG341", "FG342"):
        return Cell("refused", error.why)
    if error.code == "FG150":
        return Cell("no op", error.why)
    return Cell(error.code, error.what, True)


def weight_bits(path: Path) -> float:
    """Mean bits that a quantized weight takes in a file, its scales included; 0 where none is quantized."""
    graph = onnx.load(path).graph
    held = {item.name: item for item in graph.initializer}
    made = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    weights = {node.input[0]: node for node in made.values() if node.input[0] in held}
    # Scales that are quantized themselves have a DQ of their own: they are no weight, and count with what they scale.
    inner = {made[node.input[1]].input[0] for node in made.values() if node.input[1] in made}
    elements = stored = 0
    for name, node in weights.items():
        if name in inner:
            continue
        first = node.input[1]
        scales = made[first].input[:2] if first in made else [first]
        elements += onnx.numpy_helper.to_array(held[name]).size
        stored += sum(len(held[item].raw_data) for item in (name, *scales))
    return 8 * stored / elements if elements else 0.0


Cells = dict[tuple[str, str, str], Cell]


def run(models: Sequence[str], names: Sequence[str], targets: Sequence[str]) -> Cells:
    """Every cell by model, recipe and target; a line on stderr for each."""
    found: Cells = {}
    for item in models:
        path, _, given = item.partition("=")
        data = feeds(Path(path), given)
        for recipe in names:
            for target in targets:
                begin = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    cell = measured(Path(path), data, recipe, target, Path(folder))
                found[Path(path).stem, recipe, target] = cell
                spent = time.perf_counter() - begin
                print(f"{Path(path).stem} {recipe} {target}: {cell.word} {cell.why} {spent:.0f} s", file=sys.stderr)
    return found


def said(cells: dict[str, Cell]) -> str:
    """One cell of the table for all models: the word, or the words with the models of each."""
    words: dict[str, list[str]] = {}
    for model, cell in cells.items():
        words.setdefault(cell.word, []).append(model)
    if len(words) == 1:
        return next(iter(words))
    return "; ".join(f"{word} ({', '.join(which)})" for word, which in words.items())


def row(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(found: Cells) -> Iterator[str]:
    """The text that is printed."""
    models, names, targets = (list(dict.fromkeys(key[at] for key in found)) for at in range(3))
    yield row(["recipe", *targets])
    yield f"|{'---|' * (len(targets) + 1)}"
    for recipe in names:
        yield row([recipe, *(said({model: found[model, recipe, target] for model in models}) for target in targets)])
    if "reference" in targets:
        yield ""
        yield row(["recipe", *(f"{model}: {title}" for model in models for title in ("ops", "dB", "bits"))])
        yield f"|{'---|' * (3 * len(models) + 1)}"
        for recipe in names:
            cells = [found[model, recipe, "reference"] for model in models]
            yield row([recipe, *(text for cell in cells for text in (str(cell.ops), *cell.figures))])
    yield from remarks(found)


def remarks(found: Cells) -> Iterator[str]:
    """Why cells do not run, and models of which a target takes fewer ops than the reference."""
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for (model, recipe, target), cell in found.items():
        if cell.why:
            reasons.setdefault((target, cell.why), {})[recipe] = None
        all_ops = found.get((model, recipe, "reference"), cell).ops
        if 0 < cell.ops < all_ops:
            reasons.setdefault((target, f"{model}: {cell.ops} of {all_ops} ops"), {})[recipe] = None
    if reasons:
        yield ""
    for (target, why), which in sorted(reasons.items()):
        yield f"- **{target}**, {', '.join(which)}: {why}"


def main() -> int:
    """Reads the command line, prints the tables; the status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL[=DATA]", help="default: the digits models")
    parser.add_argument("--recipes", nargs="+", default=sorted(recipes.names()))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("-o", "--output", type=Path, help="write the tables there, too")
    parser.add_argument("--json", action="store_true", help="JSON lines, one for each cell")
    args = parser.parse_args()
    found = run(args.models or DIGITS, args.recipes, args.targets)
    text = "\n".join(table(found)) + "\n"
    if args.json:
        for (model, recipe, target), cell in found.items():
            print(json.dumps({"model": model, "recipe": recipe, "target": target, "cell": cell.word, "ops": cell.ops}))
    else:
        print(text, end="")
    if args.output is not None:
        args.output.write_text(text, encoding="utf-8")
    return 1 if any(cell.flaw for cell in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
