"""Every recipe on every target: what is expected of each cell is written down here, and nothing else passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.data import recipe as recipes
from tests.small import needs_rtx

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "digits"
# What becomes of a recipe on TensorRT-RTX: the verdict of its ops in an engine for sm89, or the code of the refusal.
# From the facts: E5M2 is not imported (D3), INT4 weights beside FP8 activations do not build (D10), MXFP8 is simulated
# (B32), FP4 is refused for sm89 (D1) and has no row; block scales are computed wrongly (E1), so that others stand in.
ENGINES = {
    "fp8-default": "fp8",
    "fp8-full": "fp8",
    "fp8-amax": "fp8",
    "fp8-dynamic": "fp8",
    "fp8-dynamic-token": "fp8",
    "fp8-block128": "fp8",
    "fp8-block128-ue8m0": "fp8",
    "fp8-weight-only": "storage",
    "int8": "int8",
    "fp16": "",
    "bf16": "",
    "fp8-e5m2": "FG341",
    "mxfp8": "FG341",
    "mxfp6": "FG341",
    "mxfp4": "FG341",
    "nvfp4": "FG341",
    "w4a8": "FG341",
}
# What differs on sm120: blocks of FP4 run there, behind an operator of TensorRT's own (probe, tensorrt_rtx 1.7.1).
NEWER = {"nvfp4": "fp4"}
# The least SQNR in the reference (dB) on the digits, by what the weights have of bits.
LEAST = {"mxfp4": 8, "nvfp4": 10, "w4a8": 8, "fp8-e5m2": 15, "mxfp8": 20, "fp16": 50, "bf16": 30}


def data() -> dict[str, np.ndarray]:
    with np.load(SAMPLES / "calibration.npz") as arrays:
        return {name: arrays[name][:16] for name in arrays.files}


def test_every_recipe_has_its_cell():
    assert set(recipes.names()) == set(ENGINES)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("model", ["vit", "cnn"])
def test_every_recipe_runs_in_the_reference(name, model):
    done = fp8graph.optimize(SAMPLES / f"{model}.onnx", recipe=name, target="reference", data=data())
    assert done.comparison is not None and not done.comparison.problems
    assert all(item.sqnr_db is None or item.sqnr_db > LEAST.get(name, 22) for item in done.comparison.outputs.values())
    if name not in ("fp16", "bf16"):
        assert sum(done.planned_by.values()) >= 9


@pytest.mark.parametrize("name", [name for name, found in ENGINES.items() if found == "FG341"])
def test_what_the_engine_does_not_run_is_refused_with_the_alternatives(name, tmp_path):
    with pytest.raises(UsageError) as caught:
        fp8graph.optimize(
            SAMPLES / "vit.onnx", recipe=name, target="tensorrt-rtx:sm89", data=data(), output=tmp_path / "o"
        )
    assert caught.value.code == "FG341" and "fp8-default" in caught.value.do and not any(tmp_path.iterdir())


RUNS = [(name, chip, found) for chip, cells in (("sm89", ENGINES), ("sm120", NEWER)) for name, found in cells.items()]


@pytest.mark.parametrize(("name", "chip", "expected"), [run for run in RUNS if not run[2].startswith("FG")])
@pytest.mark.parametrize("model", ["vit", "cnn"])
@needs_rtx
def test_what_it_runs_is_attested(name, chip, expected, model, tmp_path):
    out, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    high = None if name == "bf16" else "fp16"
    fp8graph.optimize(
        SAMPLES / f"{model}.onnx",
        recipe=name,
        target=f"tensorrt-rtx:{chip}",
        high_precision_dtype=high,
        data=data(),
        output=out,
    )
    fp8graph.build(out, output=engine, target=f"tensorrt-rtx:{chip}")
    attested = fp8graph.attest(engine, model=out)
    verdicts = {op.verdict for op in attested.verdicts.values()}
    assert verdicts == ({expected} if expected else set()), {
        key: op.why for key, op in attested.verdicts.items() if not op.as_planned
    }
