"""Builds and attests the sample models with every version of tensorrt-rtx that the package registry has.

    python benchmarks/versions.py
    python benchmarks/versions.py --versions 1.7.1.116 --chips sm89

Prints a table: a row for each version and model. Each version is installed into a folder of its own and used from
there; what is installed otherwise is not touched. Needs a package registry; no GPU, but for versions before 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).resolve().parents[1] / "samples" / "digits"
MODELS = ("cnn", "vit")


def versions() -> list[str]:
    """What the registry has, the newest first."""
    call = [sys.executable, "-m", "pip", "index", "versions", "tensorrt_rtx"]
    said = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Available versions: (.+)", said)
    return found[1].split(", ") if found else []


def installed(version: str, folder: Path) -> Path:
    """The folder with a version; it is installed where it is not there yet."""
    place = folder / f"tensorrt_rtx-{version}"
    if not place.exists():
        call = [sys.executable, "-m", "pip", "install", "-q", "--target", str(place), f"tensorrt_rtx=={version}"]
        subprocess.run(call, check=True, stderr=subprocess.DEVNULL)
    return place


def fp8graph(*arguments: str, path: Path | None = None) -> dict[str, Any]:
    """The result document of a command; `path` is imported from first."""
    environment = {**os.environ, "PYTHONPATH": str(path)} if path is not None else None
    call = [sys.executable, "-m", "fp8graph", *arguments, "--json"]
    done = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def row(version: str, model: str, path: Path, folder: Path, target: str) -> str:
    """One line of the table."""
    engine = folder / f"{model}-{version}.engine"
    built = fp8graph("build", str(folder / f"{model}.onnx"), "-o", str(engine), "--target", target, path=path)
    if built["error"]:
        return (
            f"| {version} | {model} | status {built['status']}: {built['error']['why'] or built['error']['what']} | |"
        )
    made = built["result"]["manifest"]["builder"]["version"]
    assert made == version, f"{made} has built, not {version}"
    attested = fp8graph("attest", str(engine), "--model", str(folder / f"{model}.onnx"))
    counts = attested["result"]["counts"]
    verdicts = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    layers = built["result"]["manifest"]["layers"]
    said = "no listing" if layers is None else f"{len(layers)} layers listed"
    size = engine.stat().st_size / 1024
    return f"| {version} | {model} | built, {size:,.0f} KiB, {said} | status {attested['status']}: {verdicts} |"


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--versions", nargs="+", help="instead of all that the registry has")
    parser.add_argument("--chips", nargs="+", default=["sm89", "sm120"], help="one engine for all of them")
    parser.add_argument("--folder", type=Path, help="where versions are installed; kept for the next run")
    args = parser.parse_args()
    target = f"tensorrt-rtx:{'+'.join(args.chips)}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in MODELS:
            words = ["--high-precision-dtype", "fp16", "--data", str(SAMPLES / "calibration.npz"), "--target", target]
            made = fp8graph("optimize", str(SAMPLES / f"{model}.onnx"), "-o", str(folder / f"{model}.onnx"), *words)
            assert made["status"] == 0, made["error"]
        print(f"| tensorrt_rtx | sample | build for {' and '.join(args.chips)} | attest |")
        print("|---|---|---|---|")
        for version in args.versions or versions():
            path = installed(version, (args.folder or folder).absolute())
            for model in MODELS:
                print(row(version, model, path, folder, target), flush=True)


if __name__ == "__main__":
    main()
