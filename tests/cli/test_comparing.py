"""The command `compare`: what it hands on, what it refuses, and its statuses."""

from __future__ import annotations

import pytest

from fp8graph.data.comparison import Comparison, OutputDifference

OUTPUTS = {
    "logits": OutputDifference(25.0, 0.999, 0.1),
    "same": OutputDifference(None, None, 0.0, equal=True),
}


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (Comparison(OUTPUTS, 8), 0),
        (Comparison(OUTPUTS, 8, missed=("logits: SQNR 25.00 dB is below 30 dB",)), 1),
        (Comparison(OUTPUTS, 8, problems=("the output 'logits' is missing",)), 1),
        (Comparison({"y": OutputDifference(30.0, 1.0, 0.1, new_nonfinite=2)}, 8), 1),
    ],
)
def test_compare_is_1_where_a_bound_or_a_promise_does_not_hold(cli, flow, found, status):
    flow.answers["compare"] = found
    done = cli("compare", "a.onnx", "b.onnx", "--data", "d.npz")
    assert done.status == status
    assert all(text in done.out for text in (*found.missed, *found.problems))


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ([], {"min_sqnr": None, "atol": None, "rtol": None, "check_error_stat": None, "save_outputs": None}),
        (["--min-sqnr", "99", "logits:20"], {"min_sqnr": {"": 99.0, "logits": 20.0}}),
        (["--atol", "0.1", "--rtol", "a:b:1e-3"], {"atol": {"": 0.1}, "rtol": {"a:b": 1e-3}}),
        (["--abs-tol", "0.1", "--rel-tol", "1"], {"atol": {"": 0.1}, "rtol": {"": 1.0}}),
        (["--check-error-stat", "max", "logits:mean"], {"check_error_stat": {"": "max", "logits": "mean"}}),
        (["--error_quantile", "0.5"], {"error_quantile": {"": 0.5}}),
        (["--save-outputs", "o.npz", "--force"], {"save_outputs": "o.npz", "force": True}),
        (["--load-outputs", "o.npz"], {"load_outputs": "o.npz"}),
        (["--layers"], {"layers": True}),
        (["--val-range", "[0,1]", "x:[-2,3.5]"], {"val_range": {"": (0.0, 1.0), "x": (-2.0, 3.5)}}),
        (["--input-shapes", "x:[1,3]", "y:2x2"], {"input_shapes": {"x": (1, 3), "y": (2, 2)}}),
        (["--calibration-shapes", "x:1x3,y:2x2"], {"input_shapes": {"x": (1, 3), "y": (2, 2)}}),
        (["--calibration_eps", "cpu", "cuda:0"], {"providers": ("cpu", "cuda:0")}),
        (["--data-loader-script", "f.py:g"], {"data": ("d.npz", "script:f.py:g")}),
    ],
)
def test_compare_hands_on_what_was_asked(cli, flow, monkeypatch, tmp_path, words, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o.npz").write_bytes(b"")
    done = cli("compare", "a.onnx", "b.onnx", "--data", "d.npz", *words, "--json")
    assert done.status == 0, done.err
    assert flow.calls["compare"].items() >= asked.items()
    assert [file["path"] for file in done.json["files"]] == (["o.npz"] if "--save-outputs" in words else [])


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--val-range", "x:0,1"], "no range"),
        (["--val-range", "x:[2,1]"], "begins above its end"),
        (["--val-range", "x:[0,1]", "x:[0,2]"], "'x' has two values"),
        (["--atol", "x:y"], "is no number"),
        (["--atol", "1", "2"], "two values for all"),
        (["--input-shapes", "x:2", "x:3"], "'x' has two shapes"),
    ],
)
def test_compare_refuses_what_cannot_be_read(cli, flow, words, what):
    done = cli("compare", "a.onnx", "b.onnx", "--data", "d.npz", *words)
    assert done.status == 2 and what in done.err, done.err
    assert flow.calls == {}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["a.onnx"], 2),
        (["a.onnx", "--save-outputs", "o.npz"], 0),
        (["a.onnx", "--load-outputs", "o.npz"], 0),
        (["--load-outputs", "o.npz"], 2),
    ],
)
def test_compare_takes_one_side_where_outputs_are_saved_or_loaded(cli, flow, monkeypatch, tmp_path, words, status):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o.npz").write_bytes(b"")
    assert cli("compare", *words, "--data", "d.npz").status == status


def test_compare_takes_its_sides_wherever_they_stand(cli, flow):
    done = cli("compare", "a.onnx@onnxruntime", "--samples", "3", "b.onnx", "--data", "d.npz", "--json")
    assert done.status == 0, done.err
    asked = flow.calls["compare"]
    assert (asked["a"], asked["b"], asked["samples"]) == ("a.onnx@onnxruntime", "b.onnx", 3)
    assert done.json["result"]["outputs"]["logits"]["sqnr_db"] == 31.24
