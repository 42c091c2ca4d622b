"""The OpenVINO runner: what it computes, how far that lies from the exact reference, and what it refuses."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fp8graph
from fp8graph.base.errors import BackendError, UsageError
from fp8graph.runners.opening import RUNNERS, open_runner
from fp8graph.runners.openvino import telling
from fp8graph.runners.reference import reference
from tests.small import model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: pip install 'fp8graph[openvino]'"
)
PAIR = """(float[n] x) => (float[n] y) <float s = {1.0}, float8e4m3fn z = {0}>
{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""


def written(folder: Path, text: str, **options: Any) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model(text, **options).SerializeToString())
    return path


def sqnr(a: Any, b: Any) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))


def test_codes_are_those_of_rounding_by_way_of_fp16(tmp_path: Path):
    path = written(tmp_path, PAIR)
    x = (np.random.default_rng(0).standard_normal(200_000) * 100).astype(np.float32)
    exact, found = (runner.run({"x": x})["y"] for runner in (reference(path), open_runner("openvino", path)))
    twice = np.clip(x, -448, 448).astype(np.float16).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(found, twice)
    assert 0.003 < (found != exact).mean() < 0.005 and sqnr(exact, found) > 43


def test_values_beyond_the_largest_saturate(tmp_path: Path):
    x = np.asarray([448, 449, 1e30, -1e30, np.inf, -np.inf, 2.0**-9, 0], np.float32)
    found = open_runner("openvino", written(tmp_path, PAIR)).run({"x": x})["y"]
    assert list(found) == [448, 448, 448, -448, 448, -448, 2.0**-9, 0]


@pytest.mark.parametrize(("precision", "least"), [("f32", 30.0), ("bf16", 25.0)])
def test_a_whole_model_lies_close_to_the_reference(made_small: Path, precision: str, least: float):
    x = np.random.default_rng(1).random((8, 1, 8, 8), np.float32) * 16
    runner = open_runner("openvino", made_small, settings={"INFERENCE_PRECISION_HINT": precision})
    rows = [(reference(made_small).run({"image": x[i : i + 1]}), runner.run({"image": x[i : i + 1]})) for i in range(8)]
    exact, found = (np.concatenate([row[side]["logits"] for row in rows]) for side in (0, 1))
    assert sqnr(exact, found) > least


@pytest.fixture(scope="module")
def made_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's CNN in FP8, for OpenVINO."""
    out = tmp_path_factory.mktemp("openvino") / "cnn.onnx"
    samples = Path(__file__).resolve().parents[2] / "samples" / "digits"
    fp8graph.optimize(
        samples / "cnn.onnx", output=out, target="openvino:cpu", data=samples / "calibration.npz", compare=False
    )
    return out


def test_several_threads_get_what_one_gets(made_small: Path):
    x = np.random.default_rng(1).random((40, 1, 8, 8), np.float32)
    runner = open_runner("openvino", made_small)
    alone = [runner.run({"image": each[None]})["logits"] for each in x]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: runner.run({"image": each[None]})["logits"], x))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_bf16_goes_in_as_it_is_and_comes_out_as_float32(tmp_path: Path):
    path = written(tmp_path, "(bfloat16[4] x) => (bfloat16[4] y) { y = Add(x, x) }")
    x = np.asarray([1, 2.5, -3, 0.1], ml_dtypes.bfloat16)
    found = open_runner("openvino", path).run({"x": x})["y"]
    assert found.dtype == np.float32 and np.array_equal(found, (x + x).astype(np.float32))


def test_outputs_keep_their_names_where_ops_are_folded_away(tmp_path: Path):
    text = "(float[2] x) => (float[2] z, float[2] y) { a = Relu(x) y = Identity(a) b = Identity(a) z = Identity(b) }"
    runner = open_runner("openvino", written(tmp_path, text))
    assert list(runner.outputs) == ["z", "y"]


def test_what_cannot_run_is_an_error_with_openvinos_reason(tmp_path: Path):
    runner = open_runner("openvino", written(tmp_path, "(float[2] x) => (float[2] y) { y = Relu(x) }"))
    for feeds, why in (({}, "no array was given for input 'x'"), ({"x": np.zeros(3, np.float32)}, "expecting [2]")):
        with pytest.raises(BackendError) as caught:
            runner.run(feeds)
        assert caught.value.code == "FG133" and why in caught.value.why
    with pytest.raises(BackendError):
        open_runner("openvino", written(tmp_path, "(float[2] x) => (float[2] y) { y = local.Odd(x) }", functions=""))


def test_an_unknown_runner_gets_the_nearest_name():
    with pytest.raises(UsageError) as caught:
        open_runner("openvin", Path("m.onnx"))
    assert caught.value.do == "did you mean 'openvino'?" and {"reference", "onnxruntime", "openvino"} <= set(RUNNERS)


def test_a_message_is_told_without_the_places_in_the_source():
    said = "Exception from src/a.cpp:1:\nCheck 'x' failed at src/b.cpp:2:\nWhat is wrong\n\n\n"
    assert telling(RuntimeError(said)) == "What is wrong"
    assert telling(RuntimeError("Exception from src/a.cpp:1:\n")) == "Exception from src/a.cpp:1:"
    assert len(telling(RuntimeError("x" * 1000))) < 320
