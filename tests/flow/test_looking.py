"""Compare, check and doctor: verdicts about files, through the functions that the commands call."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import InputError, UsageError
from tests.small import contents, feeds, model, refused

TEXT = """(float[n,8] x, float[8,8] w) => (float[n,8] y, int64[n] i, string[1] s) {
    y = MatMul(x, w)
    i = ArgMax <axis = 1, keepdims = 0> (y)
    s = Constant <value_strings = ["a"]> ()
}"""


def test_a_model_compared_with_itself_is_equal():
    proto = model(TEXT)
    found = fp8graph.compare(proto, proto, data=feeds(proto, 3))
    assert (found.samples, found.problems) == (3, ())
    for output in found.outputs.values():
        assert output.equal and output.sqnr_db is None and not output.new_nonfinite
    assert found.outputs["y"].cosine == pytest.approx(1.0) and found.outputs["y"].max_abs == 0.0
    assert json.loads(json.dumps(found.to_json()))["outputs"]["y"]["sqnr_db"] is None


def test_a_difference_is_measured_over_all_samples():
    one, data = model(TEXT), feeds(model(TEXT), 4)
    weight = onnx.numpy_helper.to_array(one.graph.initializer[0])
    other = model(TEXT, w=weight * np.float32(1.01))
    output = fp8graph.compare(one, other, data=data).outputs["y"]
    assert output.sqnr_db == pytest.approx(40.0, abs=0.01) and output.cosine == pytest.approx(1.0)
    largest = max(np.abs(feed["x"] @ weight).max() for feed in data)
    assert output.max_abs == pytest.approx(0.01 * largest, rel=1e-3) and not output.equal


def test_the_comparison_of_a_result_is_that_which_optimize_told(made, calibration):
    found = fp8graph.compare(made.source, made.out, data=calibration)
    assert found == made.done.comparison


def test_outputs_that_differ_in_shape_type_or_name_are_problems():
    one = model("(float[2,8] x) => (float[2,8] y, float[2,8] z, float[2,8] t) { y = Relu(x) z = Neg(x) t = Abs(x) }")
    text = """(float[2,8] x) => (float[8,2] y, float[2,8] z, double[2,8] t) {
        y = Transpose(x)  z = Neg(x)  t = Cast <to = 11> (x)
    }"""
    other = model(text)
    found = fp8graph.compare(one, other, data=feeds(one, 2))
    assert sorted(found.problems) == [
        "the output 't' is float64[2, 8], it was float32[2, 8]",
        "the output 'y' is float32[8, 2], it was float32[2, 8]",
    ]
    assert found.outputs["z"].equal and not found.outputs["y"].equal
    less = model("(float[2,8] x) => (float[2,8] z) { z = Neg(x) }")
    assert set(fp8graph.compare(one, less, data=feeds(one, 1)).problems) == {
        "the output 'y' is missing",
        "the output 't' is missing",
    }


def test_new_nans_and_infinities_are_problems_and_old_ones_are_not():
    one = model("(float[2,8] x) => (float[2,8] y) { a = Abs(x) y = Log(a) }")
    other = model("(float[2,8] x) => (float[2,8] y) { y = Log(x) }")
    data = [{"x": np.full((2, 8), -2.0, np.float32)}]
    found = fp8graph.compare(one, other, data=data)
    assert found.outputs["y"].new_nonfinite == 16 and "16 NaN or infinite values" in found.problems[0]
    assert fp8graph.compare(other, other, data=data).problems == ()


def test_a_side_may_name_its_runner(tmp_path):
    proto = model(TEXT)
    onnx.save(proto, str(tmp_path / "m.onnx"))
    path = tmp_path / "m.onnx"
    assert fp8graph.compare(f"{path}@onnxruntime", f"{path}@reference", data=feeds(proto)).outputs["y"].max_abs < 1e-4
    with refused(UsageError, "FG101", "no runner 'onnxruntim'", "did you mean 'onnxruntime'?"):
        fp8graph.compare(path, f"{path}@onnxruntim", data=feeds(proto))
    path.rename(tmp_path / "odd@name.onnx")
    assert fp8graph.compare(tmp_path / "odd@name.onnx", proto, data=feeds(proto)).problems == ()


@pytest.mark.parametrize(
    ("data", "code"), [("none.npz", "FG108"), ([], "FG107"), ({"z": np.ones((1, 8), np.float32)}, "FG107")]
)
def test_comparing_needs_data_that_fits(data, code):
    with refused(InputError, code):
        fp8graph.compare(model(TEXT), model(TEXT), data=data)


def test_checking_changes_no_file_and_takes_its_target_from_the_plan(made):
    before = contents(made.out.parent)
    assert fp8graph.check(made.out, plan=made.plan) == fp8graph.check(made.out, target="tensorrt-rtx:sm89") == ()
    assert contents(made.out.parent) == before
    with refused(UsageError, "FG101"):
        fp8graph.check(made.out, target="none")
    with refused(InputError, "FG111"):
        fp8graph.check(made.out, plan=made.out.parent / "none.json")


def test_doctor_lists_versions_and_what_every_target_can_do_here():
    found = fp8graph.doctor()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["onnx"] == onnx.__version__ and found["packages"]["fp8graph"]
    rows = {row["name"]: row for row in found["targets"]}
    assert set(rows) == {"onnxruntime", "openvino", "reference", "tensorrt", "tensorrt-rtx"}
    for row in rows.values():
        assert row["usable"] or (row["why_not"] and row["install"])
        assert {"optimize", "check", "compare"} <= set(row["can"])
    assert rows["onnxruntime"]["usable"] and "build" not in rows["onnxruntime"]["can"]
    assert json.loads(json.dumps(found)) == found
    assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())
