"""Every recipe on every target: what is expected of each cell is written down here, and nothing else passes."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.data import recipe as recipes
from fp8graph.flow import Optimized
from tests.conftest import ROOT, SHARED
from tests.small import needs_rtx

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: pip install 'fp8graph[openvino]'"
)
TARGETS = (
    *("reference", "onnxruntime", "openvino:cpu", "tensorrt", "tensorrt:sm100"),
    *("tensorrt-rtx:sm89", "tensorrt-rtx:sm120"),
)
# What becomes of a recipe on each target, in their order:
#   runs      the written model is computed there; by ONNX Runtime with the settings that `optimize` names
#   planned   it is written; whether there is a builder depends on the machine
#   plain     it is built, and nothing is quantized
#   -         refused with FG341 (a type: FG342) and the alternatives, nothing written
#   others    it is built, and that is the verdict of every planned op
# From the facts. reference: runs all. onnxruntime: no kernels for FP4, FP6, E8M0 scales, bf16. OpenVINO emulates FP8,
# widens weights that are alone, and has no row for other formats and for blocks. TensorRT(-RTX): E5M2 is not imported
# (D3), INT4 weights beside FP8 activations do not build (D10), FP6 is no type of theirs, block scales are computed
# wrongly (E1): others stand in. MXFP8 runs from Blackwell on, RTX only simulates it (B32); NVFP4 runs from there on,
# RTX refuses FP4 for sm89 (D1). A target without a chip has to run on every one it knows.
CELLS = {
    "fp8-default": "runs runs emulated planned planned fp8 fp8",
    "fp8-full": "runs runs emulated planned planned fp8 fp8",
    "fp8-amax": "runs runs emulated planned planned fp8 fp8",
    "fp8-dynamic": "runs runs emulated planned planned fp8 fp8",
    "fp8-dynamic-token": "runs runs emulated planned planned fp8 fp8",
    "fp8-block128": "runs runs - planned planned fp8 fp8",
    "fp8-block128-ue8m0": "runs runs - planned planned fp8 fp8",
    "fp8-weight-only": "runs runs - planned planned storage storage",
    "fp8-e5m2": "runs runs emulated - - - -",
    "int8": "runs runs - planned planned int8 int8",
    "mxfp8": "runs - - - planned - -",
    "mxfp6": "runs - - - - - -",
    "mxfp4": "runs - - - - - -",
    "nvfp4": "runs - - - planned - fp4",
    "w4a8": "runs runs - - - - -",
    "fp16": "runs runs plain planned planned plain plain",
    "bf16": "runs - plain planned planned plain plain",
}
# Cells of a model that differ, and why.
BY_MODEL: dict[tuple[str, str, str], str] = {}
# The least SQNR in the reference (dB) on the digits, by what the weights have of bits; and that of the other recipes.
LEAST = {"mxfp4": 8.0, "nvfp4": 10.0, "w4a8": 8.0, "fp8-e5m2": 15.0, "mxfp8": 20.0, "fp16": 50.0, "bf16": 30.0}
EIGHT = 22.0
# MiniLM has outliers in its activations: one scale a tensor leaves INT8, which has no exponent, few steps for the rest.
OUTLIERS = {("minilm", "int8"): 12.0}


@dataclass(frozen=True)
class Stored:
    """How weights lie in a file: type, bits, elements of one axis that share a scale (0: a channel), type of scales."""

    type: str
    bits: int
    block: int = 0
    scale: str = "FLOAT"


STORED = {
    "fp8-e5m2": Stored("FLOAT8E5M2", 8),
    "fp8-block128": Stored("FLOAT8E4M3FN", 8, 128),
    "fp8-block128-ue8m0": Stored("FLOAT8E4M3FN", 8, 128, "FLOAT8E8M0"),
    "int8": Stored("INT8", 8),
    "mxfp8": Stored("FLOAT8E4M3FN", 8, 32, "FLOAT8E8M0"),
    "mxfp6": Stored("FLOAT6E2M3", 6, 32, "FLOAT8E8M0"),
    "mxfp4": Stored("FLOAT4E2M1", 4, 32, "FLOAT8E8M0"),
    "nvfp4": Stored("FLOAT4E2M1", 4, 16, "FLOAT8E4M3FN"),
    "w4a8": Stored("INT4", 4, 128),
}
PER_CHANNEL = Stored("FLOAT8E4M3FN", 8)
BYTES = {"FLOAT": 4, "UINT8": 1, "FLOAT8E8M0": 1, "FLOAT8E4M3FN": 1}


@dataclass(frozen=True)
class Model:
    """A model, its entry in ../shared/bench, products that every recipe plans at least, dB lost by its depth."""

    path: Path
    entry: str
    ops: int
    depth: float = 0.0


CACHE = Path(os.environ.get("FP8GRAPH_BENCH_CACHE", Path.home() / ".cache" / "fp8graph-bench"))
BENCH = SHARED / "bench"
DIGITS = ROOT / "samples" / "digits"
MODELS = {
    "vit": Model(DIGITS / "vit.onnx", "", 13),
    "cnn": Model(DIGITS / "cnn.onnx", "", 9),
    "resnet20": Model(BENCH / "models" / "resnet20_cifar10.onnx", "resnet20_cifar10", 19, 6.0),
    "stories260k": Model(BENCH / "models" / "stories260k.onnx", "stories260k", 36, 6.0),
    "minilm": Model(CACHE / "minilm.onnx", "minilm", 36, 6.0),
}
Data = Callable[[str], dict[str, np.ndarray[Any, Any]]]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Calibration data of a model: some samples that come with it."""
    held: dict[str, dict[str, np.ndarray[Any, Any]]] = {}

    def read(name: str) -> dict[str, np.ndarray[Any, Any]]:
        if name not in held:
            path, entry = DIGITS / "calibration.npz", MODELS[name].entry
            if not MODELS[name].path.exists():
                pytest.skip(f"{MODELS[name].path.name} is not there: python ../shared/bench/fetch_models.py makes it")
            if entry:
                path = tmp_path_factory.mktemp("data") / f"{entry}.npz"
                command = [sys.executable, str(BENCH / "score.py"), "calib", entry, "-o", str(path), "--n", "16"]
                subprocess.run(command, check=True, capture_output=True, timeout=300)
            with np.load(path) as arrays:
                held[name] = {key: arrays[key][:16] for key in arrays.files}
        return held[name]

    return read


def cells() -> Iterator[Any]:
    """One case for each model, recipe and target: the cheap models always, the public ones with `-m slow`."""
    for model, entry in MODELS.items():
        for recipe, row in CELLS.items():
            for target, common in zip(TARGETS, row.split(), strict=True):
                expected = BY_MODEL.get((model, recipe, target), common)
                marks = [pytest.mark.slow, pytest.mark.shared] if entry.entry else []
                if target.startswith("tensorrt-rtx") and expected != "-":
                    marks.append(needs_rtx)
                if target == "openvino:cpu" and expected != "-":
                    marks.append(needs_openvino)
                yield pytest.param(model, recipe, target, expected, marks=marks, id=f"{model}-{recipe}-{target}")


def test_every_recipe_has_its_cells():
    assert set(recipes.names()) == {*CELLS, "auto"}  # which has a format for each op: test_mixing.py
    assert set(BY_MODEL) <= {(model, recipe, target) for model in MODELS for recipe in CELLS for target in TARGETS}


@pytest.mark.parametrize(("model", "recipe", "target", "expected"), list(cells()))
def test_every_cell_is_as_written_down(model, recipe, target, expected, data, tmp_path):
    # Repairs learn of eight samples and more: those of the default recipe and of the one that has all of them do.
    count = 16 if recipe in ("fp8-default", "fp8-full") else 4
    feeds, out = {name: array[:count] for name, array in data(model).items()}, tmp_path / "m.onnx"
    computes = target in ("reference", "onnxruntime")

    def optimized() -> Optimized:
        return fp8graph.optimize(
            MODELS[model].path,
            recipe=recipe,
            target=target,
            high_precision_dtype="fp16" if target.startswith("tensorrt") and recipe != "bf16" else None,
            data=feeds,
            output=out,
            compare=computes,
        )

    if expected == "-":
        with pytest.raises(UsageError) as caught:
            optimized()
        code, other = ("FG342", "--recipe fp16") if recipe == "bf16" else ("FG341", "fp8-default")
        assert caught.value.code == code and other in caught.value.do and not any(tmp_path.iterdir())
        return
    done = optimized()
    if recipe not in ("fp16", "bf16"):
        holds_its_storage(out, recipe, target, done)
    if computes:
        computed(done, out, model, recipe, feeds if target == "onnxruntime" else None)
    elif expected != "planned":
        attested(out, target, expected)


def computed(done: Optimized, out: Path, model: str, recipe: str, feeds: Any) -> None:
    """The reference's numbers are near the source's; with `feeds`, ONNX Runtime computes the file."""
    assert done.comparison is not None and not done.comparison.problems
    least = OUTLIERS.get((model, recipe), LEAST.get(recipe, EIGHT) - MODELS[model].depth)
    assert all(item.sqnr_db is None or item.sqnr_db > least for item in done.comparison.outputs.values())
    if recipe not in ("fp16", "bf16"):
        assert sum(done.planned_by.values()) >= MODELS[model].ops
    if feeds is None:
        return
    found = done.default_session
    assert found is not None
    assert found.safe or found.options
    settings = onnxruntime.SessionOptions()
    for name in found.options.keys() - {"disabled_optimizers"}:
        settings.add_session_config_entry(name, found.options[name])
    disabled = found.options.get("disabled_optimizers", "").split()
    session = onnxruntime.InferenceSession(str(out), settings, disabled_optimizers=disabled)
    results = session.run(None, {name: array[:1] for name, array in feeds.items()})
    assert all(np.isfinite(result).all() for result in results)


def attested(out: Path, target: str, expected: str) -> None:
    """What is built of the model has the expected verdict for every planned op."""
    engine = out.with_suffix(".engine")
    fp8graph.build(out, output=engine, target=target)
    found = fp8graph.attest(engine, model=out).verdicts
    verdicts = {op.verdict for op in found.values()}
    assert verdicts == (set() if expected == "plain" else {expected}), {
        key: op.why for key, op in found.items() if not op.as_planned
    }


def holds_its_storage(out: Path, recipe: str, target: str, done: Optimized) -> None:
    """Every planned weight lies in the file in its format, packed, with as many scales as it has blocks; none twice."""
    graph = onnx.load(out).graph
    held = {item.name: item for item in graph.initializer}
    dequantized = [node for node in graph.node if node.op_type in ("DequantizeLinear", "TRT_MXFP8DequantizeLinear")]
    scales = {node.input[1]: node for node in dequantized}
    weights = [node for node in dequantized if node.input[0] in held and node.output[0] not in scales]
    made = {node.output[0]: node for node in dequantized}
    stored = STORED.get(recipe, PER_CHANNEL)
    for node in weights:
        codes = held[node.input[0]]
        assert onnx.TensorProto.DataType.Name(codes.data_type) == stored.type
        assert len(codes.raw_data) == math.ceil(math.prod(codes.dims) * stored.bits / 8)
        if recipe.startswith("fp8-block128") and target.startswith("tensorrt"):
            continue  # other granularities stand in
        inner = made.get(node.input[1])
        scale = held[node.input[1] if inner is None else inner.input[0]]
        kind = "FLOAT" if target == "onnxruntime" else "UINT8" if node.domain else stored.scale
        assert onnx.TensorProto.DataType.Name(scale.data_type) == kind
        assert len(scale.raw_data) == BYTES[kind] * scales_of(codes.dims, node, stored.block)
        assert (inner is not None) == (recipe == "nvfp4")
        assert inner is None or len(held[inner.input[1]].raw_data) == 4
    planned = {quant.value for _, op in done.plan.quantized() for quant in op.inputs.values() if quant.scale.of_weight}
    assert len({node.input[0] for node in weights}) == len(planned)
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert set(held) <= read  # nothing is left over, no second copy of a weight


def scales_of(dims: Any, node: onnx.NodeProto, block: int) -> int:
    """Scales that a weight of these dimensions has, by the axis that its DequantizeLinear names."""
    attributes = {item.name: item.i for item in node.attribute}
    assert attributes.get("block_size", 0) == block
    if not block:
        return int(dims[attributes["axis"]]) if "axis" in attributes else 1
    axis = attributes["axis"]
    return math.prod(math.ceil(size / block) if at == axis else size for at, size in enumerate(dims))
