"""Quantizes two small trained models for an RTX 40 GPU, builds their engines without one, and shows what came of it.

    python samples/demo.py [FOLDER]        files go to FOLDER (demo)

For each model of `samples/digits`: what was planned and why, what the engine really does, and the accuracy on images
that neither training nor calibration has seen. Status 0: every op that was planned in FP8 is attested in FP8, and
accuracy fell by at most one point; 1: not so; 4: there is no builder here (`tensorrt-rtx` is not installed).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

import fp8graph
from fp8graph.flow import Optimized
from fp8graph.runners.reference import reference

DIGITS = Path(__file__).resolve().parent / "digits"
TARGET = "tensorrt-rtx:sm89"
BATCH = 50
POINTS_ALLOWED = 1.0
# Any batch from 1 to 256, best at 32. FP8 attention wants half precision around it, so that it fuses into one kernel.
SHAPES = {"image": fp8graph.Profile(min=(1, 1, 8, 8), opt=(32, 1, 8, 8), max=(256, 1, 8, 8))}
NO_BUILDER = "FG505"


@dataclass
class Shown:
    """One model: what was made of it, and what the engine does, where one could be built."""

    done: Optimized
    model: Path
    attestation: fp8graph.Attestation | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)


class Spinner:
    """Progress as a line that vanishes; on anything but a terminal, nothing."""

    def __init__(self, status: Status, model: str) -> None:
        self.status, self.model = status, model

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Shows what is at work."""
        self.status.update(f"{self.model}: {what}")

    def step(self, n: int = 1) -> None:
        """Not shown."""

    def done(self) -> None:
        """Not shown: the next start replaces it."""


def accuracy(model: Path) -> float:
    """Share of the held-out images that are recognised, in per cent, in the exact reference."""
    with np.load(DIGITS / "heldout.npz") as file:
        images, labels = file["image"], file["label"]
    runner = reference(model)
    parts = [runner.run({"image": images[i : i + BATCH]})["logits"] for i in range(0, len(images), BATCH)]
    return float(100 * (np.concatenate(parts).argmax(1) == labels).mean())


def make(name: str, folder: Path, progress: Spinner) -> Shown:
    """Optimizes a model, builds its engine for TARGET, and reads back what the engine does."""
    out, engine = folder / f"{name}.fp8.onnx", folder / f"{name}.engine"
    done = fp8graph.optimize(
        DIGITS / f"{name}.onnx",
        output=out,
        target=TARGET,
        data=DIGITS / "calibration.npz",
        batch=32,
        shapes=SHAPES,
        high_precision_dtype="fp16",
        force=True,
        progress=progress,
    )
    try:
        built = fp8graph.build(out, output=engine, attest=True, force=True, progress=progress)
    except fp8graph.BackendError as error:
        if error.code != NO_BUILDER:
            raise
        return Shown(done, out)
    return Shown(done, out, built.attestation, fp8graph.inspect(engine)["layers"])


def show_plan(console: Console, shown: Shown) -> None:
    """A row for each group of ops that were decided alike: planned, attested, why."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for key, op in shown.done.plan.ops.items():
        where = f"{op.op_type} in attention" if op.group else op.op_type
        why, precision = op.why.text, str("FP8" if op.do == "quantize" else op.high)
        if op.why.code == "FG202":  # one row for all types that the recipe leaves alone
            where, why = "others", "the recipe does not quantize them"
        groups.setdefault((where, precision, why), []).append(key)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("ops", justify="right")
    for title in ("", "planned", "attested", "why"):
        table.add_column(title, overflow="fold")
    for (where, precision, why), keys in sorted(groups.items(), key=lambda g: (g[0][1] != "FP8", g[0][0] == "others")):
        style = "bold" if precision == "FP8" else "dim"
        table.add_row(str(len(keys)), where, precision, verdicts(shown, keys), why, style=style)
    console.print(Padding(table, (1, 0, 1, 2)))


def verdicts(shown: Shown, keys: list[str]) -> Text:
    """What the engine does with these ops; nothing where none of them was to be quantized."""
    if shown.attestation is None:
        return Text("")
    found = [op for key in keys if (op := shown.attestation.verdicts.get(key)) is not None]
    counts = Counter(op.verdict for op in found)
    good = all(op.as_planned for op in found)
    return Text(", ".join(f"{n} {verdict}" for verdict, n in counts.items()), "green" if good else "red")


def fused_attention(shown: Shown) -> tuple[int, int]:
    """Attentions that the engine computes in one FP8 kernel, of all that were planned in FP8."""
    kernels = [
        set(layer["name"].split(" + "))
        for layer in shown.layers
        if layer["kind"] == "attention" and layer["operands"].count("fp8") == 3  # Q, K and V
    ]
    products: dict[str, set[str]] = {}
    for _, op in shown.done.plan.quantized():
        if op.group:
            products.setdefault(op.group, set()).add(op.name)
    return sum(any(names <= kernel for kernel in kernels) for names in products.values()), len(products)


def heard(attestation: fp8graph.Attestation) -> str:
    """The witnesses that had something to say of every op."""
    titles = {"builder": "the builder's layer listing", "file": "the engine file"}
    said = [op.witnesses for op in attestation.verdicts.values()]
    spoke = [name for name in titles if said and not any(w.get(name, "silent").startswith("silent") for w in said)]
    return " and ".join(titles[name] for name in spoke) or "none"


def show(console: Console, name: str, shown: Shown) -> list[str]:
    """Prints everything about one model; returns what went wrong."""
    done, original = shown.done, DIGITS / f"{name}.onnx"
    console.print(f"[bold]{name}[/]  {len(done.plan.ops)} ops: {done.planned} planned in FP8, {done.kept} kept")
    show_plan(console, shown)
    before, after = accuracy(original), accuracy(shown.model)
    wrong = []
    if before - after > POINTS_ALLOWED:
        wrong.append(f"{name}: accuracy fell from {before:.2f} % to {after:.2f} %")
    lines = [("accuracy", f"FP32 {before:.2f} %, FP8 {after:.2f} % of 450 held-out images (ONNX Runtime)", not wrong)]
    if done.comparison is not None:
        lines.append(("output", f"SQNR {done.comparison.outputs['logits'].sqnr_db:.1f} dB on calibration images", True))
    sizes = [path.stat().st_size / 1024 for path in (original, shown.model)]
    lines.append(("file", f"{sizes[0]:.0f} KiB -> {sizes[1]:.0f} KiB", True))
    if shown.attestation is not None:
        lines += engine_lines(shown, shown.attestation)
        broken = Counter((op.verdict, op.why) for op in shown.attestation.broken.values())
        wrong += [f"{name}: {n} ops planned in FP8 are {verdict}: {why}" for (verdict, why), n in broken.items()]
    for label, text, good in lines:
        console.print(f"  {label:<10} ", Text(text, "green" if good else "red"), sep="", soft_wrap=True)
    console.print()
    return wrong


def engine_lines(shown: Shown, attestation: fp8graph.Attestation) -> list[tuple[str, str, bool]]:
    """Label, text and whether it is as planned, for what is known of the engine."""
    planned, fine = len(attestation.verdicts), len(attestation.verdicts) - len(attestation.broken)
    said = f"{attestation.builder} for {'+'.join(attestation.chips)}: {fine} of {planned} planned ops run in FP8"
    lines = [("engine", said, fine == planned), ("witnesses", heard(attestation), fine == planned)]
    fused, attentions = fused_attention(shown)
    if attentions:
        said = f"{fused} of {attentions} run as one fused FP8 kernel each"
        lines.append(("attention", said, fused == attentions))
    return lines


def run(folder: Path, console: Console) -> int:
    """The whole demo; returns its status."""
    console.print(f"[bold]fp8graph {fp8graph.__version__}[/]  two digit classifiers for {TARGET}, without a GPU\n")
    folder.mkdir(parents=True, exist_ok=True)
    wrong, built = [], True
    for name in ("vit", "cnn"):
        with console.status(name) as status:
            shown = make(name, folder, Spinner(status, name))
        wrong += show(console, name, shown)
        built = built and shown.attestation is not None
    inspect = f"python -m fp8graph inspect {folder / 'vit.fp8.onnx.plan.json'}"
    console.print(Text(f"wrote {folder}; next: {inspect}", "dim"), soft_wrap=True)
    for line in wrong:
        console.print(Text(f"not as planned: {line}", "red"), soft_wrap=True)
    if wrong:
        return 1
    if not built:
        console.print("[yellow]no engine was built: tensorrt-rtx is not installed, or not usable here[/]")
        console.print(Text("  do:    pip install -e '.[rtx]'  (Linux on x86-64, Windows)"))
        console.print("  more:  python -m fp8graph doctor")
        return fp8graph.BackendError.status
    console.print(
        "[green]as planned: every op planned in FP8 is attested in FP8, accuracy within one point[/]", soft_wrap=True
    )
    return 0


def main() -> int:
    """Reads the command line; errors become the statuses of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo"), help="where files go (demo)")
    folder = parser.parse_args().folder
    # A pipe gets a fixed width, so that the output is the same everywhere.
    width = None if sys.stdout.isatty() else 100
    plain = bool(os.environ.get("NO_COLOR"))
    console = Console(width=width, color_system=None if plain else "auto", highlight=False)
    try:
        return run(folder, console)
    except fp8graph.Fp8GraphError as error:
        print(error, file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
