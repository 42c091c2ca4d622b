"""Scales that another tool has found stand in the plan as given, and nothing is observed in their place."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import InputError, UsageError
from tests.small import contents, feeds, model, refused

TEXT = """(float[8,32] x, float[32,16] w, float[16,16] w_b) => (float[8,16] y) {
    h = MatMul(x, w) r = Relu(h) y = MatMul(r, w_b)
}"""
AMAX = {"x": 3.5, "h": 7.0, "r": 1.75}


def trt(amax: dict[str, float], end: str = "") -> str:
    lines = [f"{name}{end}: {struct.pack('>f', number / 127).hex()}" for name, number in amax.items()]
    return "\n".join(["TRT-8501-EntropyCalibration2", *lines, ""])


def tensors_data(amax: dict[str, float]) -> str:
    ends = {
        name: {
            "CLS": "TensorData",
            "lowest": {"CLS": "numpy.array", "data": [-number], "dtype": "float32"},
            "highest": {"CLS": "numpy.array", "data": 0.5, "dtype": "float32"},
        }
        for name, number in amax.items()
    }
    return json.dumps({"CLS": "TensorsData", "data": ends, "calibration_method": {"value": "CalibrationMethod.MinMax"}})


FILES: dict[str, tuple[str, str, Callable[[dict[str, float]], str]]] = {
    "TensorRT": ("calib.cache", "trt-cache", trt),
    "ModelOpt": ("calib.cache", "modelopt-cache", lambda amax: trt(amax, "_scale")),
    "ONNX Runtime": ("calibration.json", "ort-table", tensors_data),
    "ONNX Runtime, older": (
        "calibration.json",
        "ort-table",
        lambda amax: json.dumps({name: [-number, 0.5, [1, 2], 2] for name, number in amax.items()}),
    ),
    "ONNX Runtime, text": (
        "calibration.cache",
        "ort-table",
        lambda amax: "".join(f"{name} {number}\n" for name, number in amax.items()),
    ),
}


def scales(plan: fp8graph.Plan) -> dict[str, tuple[str, str, float | None]]:
    quants = [quant for op in plan.ops.values() for slot, quant in op.inputs.items() if slot == 0]
    return {quant.value: (quant.scale.origin, quant.scale.rule, quant.scale.value) for quant in quants}


@pytest.mark.parametrize("tool", FILES)
def test_a_tools_file_gives_its_scales_to_the_plan(tool: str, tmp_path: Path):
    name, kind, write = FILES[tool]
    (tmp_path / name).write_text(write(AMAX))
    given = model(TEXT)
    done = fp8graph.import_plan(tmp_path / name, model=given, from_=kind, output=tmp_path / "p.json")
    assert done.plan is not None
    expected = {name: float(np.float32(AMAX[name] / 448)) for name in ("x", "r")}
    found = scales(done.plan)
    assert {name: item[:2] for name, item in found.items()} == dict.fromkeys(expected, ("given", kind))
    for name, (_, _, number) in found.items():
        assert number == pytest.approx(expected[name], rel=2e-7)
    assert done.rounded == ("r", "x")
    assert [Path(item.path).name for item in done.files] == ["p.json"]
    # no data is needed any more, and the numbers stand in the graph
    made = fp8graph.optimize(given, plan=tmp_path / "p.json").model
    held = {item.name: onnx.numpy_helper.to_array(item) for item in made.graph.initializer if "_scale" in item.name}
    assert {float(held["x_scale"]), float(held["r_scale"])} == {item[2] for item in found.values()}


def test_a_scale_in_e4m3_comes_out_of_a_quantized_model_bit_for_bit(tmp_path: Path):
    given = model(TEXT)
    first = fp8graph.optimize(given, data=feeds(given), output=None)
    onnx.save(first.model, tmp_path / "theirs.onnx")
    done = fp8graph.import_plan(tmp_path / "theirs.onnx", model=given)
    assert done.plan is not None
    before, after = scales(first.plan), scales(done.plan)
    assert {name: item[2] for name, item in before.items()} == {name: item[2] for name, item in after.items()}
    assert {item[:2] for item in after.values()} == {("given", "qdq")}


INT8 = """(float[8,32] x, float[32,16] w) => (float[8,16] y) {{
    s = Constant<value_float = 0.5>() z = Constant<value = {zero}>()
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w)
}}"""


@pytest.mark.parametrize(
    ("zero", "reach"), [("int8 {0}", 127), ("int8 {-27}", 154), ("uint8 {100}", 155), ("uint8 {255}", 255)]
)
def test_a_pair_in_int8_reaches_as_far_as_its_codes(zero: str, reach: int, tmp_path: Path):
    onnx.save(model(INT8.format(zero=zero)), tmp_path / "theirs.onnx")
    text = "(float[8,32] x, float[32,16] w) => (float[8,16] y) { y = MatMul(x, w) }"
    done = fp8graph.import_plan(tmp_path / "theirs.onnx", model=model(text), allow_unmatched="q")
    assert done.plan is not None
    assert scales(done.plan)["x"] == ("given", "qdq", float(np.float32(0.5 * reach / 448)))


def test_what_the_file_does_not_give_is_listed_and_observed(tmp_path: Path):
    path = tmp_path / "calib.cache"
    path.write_text(trt({"x": 3.5, "(Unnamed Layer* 3) [Constant]_output": 1.0}))
    given = model(TEXT)
    with refused(InputError, "FG117", "file: (Unnamed Layer* 3) [Constant]_output; model: r"):
        fp8graph.import_plan(path, model=given, output=tmp_path / "p.json")
    assert list(contents(tmp_path)) == ["calib.cache"]
    done = fp8graph.import_plan(path, model=given, output=tmp_path / "p.json", allow_unmatched=["(Unnamed*", "r"])
    assert done.unmatched == {"file": ["(Unnamed Layer* 3) [Constant]_output"], "model": ["r"]}
    with refused(UsageError, "FG120"):
        fp8graph.optimize(given, plan=tmp_path / "p.json")
    plan = fp8graph.optimize(given, plan=tmp_path / "p.json", data=feeds(given)).plan
    assert scales(plan)["x"] == ("given", "trt-cache", float(np.float32(3.5 / 448)))
    assert scales(plan)["r"][0] == "observed"
    assert scales(plan)["r"][2] is not None


BAD: dict[str, tuple[str, bytes, str, str, str]] = {
    "no head": ("c.cache", b"x: 3c000000\n", "trt-cache", "FG115", "it begins with 'x: 3c000000'"),
    "no number": ("c.cache", b"TRT-8501-MinMaxCalibration\nx: zz\n", "trt-cache", "FG115", "line 2 is 'x: zz'"),
    "empty": ("c.cache", b"", "trt-cache", "FG115", "it begins with ''"),
    "bytes": ("c.cache", b"TRT-8501-E\n\xff\xfe", "trt-cache", "FG111", "no UTF-8"),
    "infinite": ("c.cache", b"TRT-8501-E\nx: 7f800000\nr: 3c000000\n", "trt-cache", "FG116", "magnitude is inf"),
    "zero": ("c.cache", b"TRT-8501-E\nx: 0\nr: 3c000000\n", "trt-cache", "FG116", "magnitude is 0"),
    "NaN": ("c.cache", b"TRT-8501-E\nx: 7fc00000\nr: 3c000000\n", "trt-cache", "FG116", "magnitude is nan"),
    "no JSON": ("calibration.json", b"{", "ort-table", "FG115", "JSONDecodeError"),
    "a text for a range": ("calibration.json", b'{"x": ["a", 1]}', "ort-table", "FG115", "'a' is no number"),
    "averages alone": ("calibration.json", b'{"x": {"avg": 1}}', "ort-table", "FG115", "lowest"),
    "a list": ("calibration.cache", b"[1]", "ort-table", "FG115", "is no 'tensor highest'"),
    "a flatbuffer": ("calibration.flatbuffers", b"\x10\0", "ort-table", "FG115", "calibration.json"),
    "no model": ("q.onnx", b"TRT", "qdq", "FG106", "does not parse"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_none_of_it_is_refused_and_nothing_is_written(case: str, tmp_path: Path):
    name, content, kind, code, says = BAD[case]
    (tmp_path / name).write_bytes(content)
    with refused(InputError, code, name, says):
        fp8graph.import_plan(tmp_path / name, model=model(TEXT), from_=kind, output=tmp_path / "p.json")
    assert list(contents(tmp_path)) == [name]


@pytest.mark.parametrize(
    ("source", "asked", "says"),
    [
        ("calib.cache", {"output": "o.onnx"}, "import writes no model from this source"),
        ("m.safetensors", {"output": "o.json"}, "import writes no plan from this source"),
        ("m.safetensors", {"target": "tensorrt"}, "without target and recipe"),
    ],
)
def test_what_cannot_be_written_is_a_wrong_call(source: str, asked: dict[str, Any], says: str, tmp_path: Path):
    (tmp_path / source).write_text(trt(AMAX))
    if "output" in asked:
        asked = {"output": tmp_path / asked["output"]}
    with refused(UsageError, "FG100", says):
        fp8graph.import_plan(tmp_path / source, model=model(TEXT), **asked)


def test_a_missing_file_is_refused(tmp_path: Path):
    for kind in ("auto", "qdq", "trt-cache", "modelopt-cache", "ort-table"):
        with pytest.raises(InputError) as raised:
            fp8graph.import_plan(tmp_path / "none", model=model(TEXT), from_=kind)
        assert "none" in raised.value.where


def test_tensors_under_one_scale_have_that_of_the_largest(tmp_path: Path):
    """A Concat and its operands share one: the file must give all of them."""
    (tmp_path / "concat.toml").write_text('extends = "fp8-default"\n[quantize]\nconcat = true\n')
    text = """(float[2,32] x, float[32,32] w_a, float[32,32] w_b, float[64,16] w_c, float[32,16] w_d)
        => (float[2,16] y, float[2,16] z) {
        a = MatMul(x, w_a) b = MatMul(x, w_b) c = Concat<axis = 1>(a, b) y = MatMul(c, w_c) z = MatMul(b, w_d)
    }"""
    asked: dict[str, Any] = {"recipe": str(tmp_path / "concat.toml"), "from_": "ort-table"}
    table = tmp_path / "calibration.json"
    for b, c in (
        (3.5, -7),
        (-7, 3.5),
    ):  # the second is no range that calibration can see, and an entropy calibrator can
        table.write_text(json.dumps({"x": [0, 1], "b": [0, b], "c": [c, 0]}))
        plan = fp8graph.import_plan(table, model=model(text), **asked).plan
        assert plan is not None
        assert {scales(plan)[name][2] for name in ("b", "c")} == {7 / 448}
    table.write_text('{"x": [0, 1], "c": [-7, 3.5]}')
    with refused(InputError, "FG117", "model: b"):
        fp8graph.import_plan(table, model=model(text), **asked)
