"""Outputs in a file take the place of the model that gave them, on the same inputs and on no others."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import Fp8GraphError, InputError, UsageError
from fp8graph.compare.saved import Saved, Writer
from tests.small import contents, feeds, model, refused, sha

TEXT = """(float[n,8] x, float[8,8] w) => (float[n,8] y, int64[n] i, string[1] s) {
    y = MatMul(x, w)
    i = ArgMax <axis = 1, keepdims = 0> (y)
    s = Constant <value_strings = ["a/b:c"]> ()
}"""
ONE = model(TEXT)
OTHER = model(TEXT, w=onnx.numpy_helper.to_array(ONE.graph.initializer[0]) * np.float32(1.01))
DATA = feeds(ONE, 3)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "one.npz"
    done = fp8graph.compare(ONE, data=DATA, save_outputs=path)
    assert (done.samples, dict(done.outputs)) == (3, {}) and [*contents(tmp_path)] == ["one.npz"]
    return path


@pytest.mark.parametrize("sides", [(OTHER,), (ONE, OTHER)], ids=["B", "A and B"])
def test_a_comparison_with_saved_outputs_is_that_with_the_model(saved, sides):
    assert fp8graph.compare(*sides, data=DATA, load_outputs=saved) == fp8graph.compare(ONE, OTHER, data=DATA)


def test_outputs_can_be_saved_while_two_models_are_compared_and_give_the_same_bytes(saved, tmp_path):
    again = tmp_path / "again.npz"
    found = fp8graph.compare(ONE, OTHER, data=DATA, save_outputs=again, min_sqnr={"y": 60})
    assert found.missed and sha(again) == sha(saved)


def test_samples_may_be_fewer_and_come_in_another_order(saved):
    found = fp8graph.compare(OTHER, data=[DATA[2], DATA[0], DATA[2]], load_outputs=saved)
    assert found == fp8graph.compare(ONE, OTHER, data=[DATA[2], DATA[0], DATA[2]])


@pytest.mark.parametrize(
    ("call", "error", "code", "says"),
    [
        ({"a": OTHER, "data": feeds(ONE, 3, seed=9)}, InputError, "FG107", "of other data"),
        ({"a": OTHER, "load_outputs": "none.npz"}, InputError, "FG108", "do not exist"),
        ({"a": OTHER, "load_outputs": "plain.npz"}, InputError, "FG111", "no fp8graph outputs"),
        ({"a": OTHER, "load_outputs": "torn.npz"}, InputError, "FG108", "cannot be read"),
        ({"a": OTHER, "load_outputs": "empty.npz"}, InputError, "FG111", "no outputs"),
        ({"a": OTHER, "load_outputs": None}, UsageError, "FG100", "nothing to compare it with"),
        ({"a": OTHER, "save_outputs": "new.npz"}, UsageError, "FG100", "takes A's place"),
        ({"a": OTHER, "load_outputs": None, "save_outputs": "x.npz", "rtol": 1}, UsageError, "FG100", "bounds were"),
        ({"a": OTHER, "load_outputs": None, "save_outputs": "one.npz"}, UsageError, "FG102", "exists already"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_written(saved, tmp_path, monkeypatch, call, error, code, says):
    monkeypatch.chdir(tmp_path)
    np.savez("plain.npz", y=np.zeros(3))
    np.savez("empty.npz", about=np.asarray(json.dumps({"schema": "fp8graph.outputs/1"})))
    (tmp_path / "torn.npz").write_bytes(saved.read_bytes()[:-40])
    before = contents(tmp_path)
    with refused(error, code, says):
        fp8graph.compare(**({"data": DATA, "load_outputs": "one.npz"} | call))
    assert contents(tmp_path) == before


def test_the_file_of_outputs_may_not_be_the_data(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=DATA[0]["x"])
    with refused(UsageError, "FG103"):
        fp8graph.compare(ONE, data=path, save_outputs=path, force=True)


def test_every_type_comes_back_as_it_was(tmp_path):
    path = tmp_path / "o.npz"
    feed = {"x": np.zeros(2, np.float32)}
    outputs = {
        "a/b": np.array([1.5, -2], ml_dtypes.bfloat16),
        "half": np.array(0.1, np.float16),
        "text": np.array(["x", "yz"], object),
        "flag": np.array([[True]]),
        "none": np.zeros((0, 3), np.int8),
    }
    writer = Writer(path, list(outputs))
    writer.add(feed, outputs)
    writer.add(feed, outputs)
    writer.close()
    back = Saved(dict(np.load(path)), "o.npz").run(feed)
    for name, array in outputs.items():
        assert back[name].tolist() == array.tolist() and back[name].shape == array.shape
        assert back[name].dtype == array.dtype or name == "text"


def test_outputs_that_are_no_tensors_are_refused(tmp_path):
    proto = model("(float[2] x) => (seq(float[2]) y) { y = SequenceConstruct(x) }")
    with pytest.raises(Fp8GraphError, match="arrays are what can be saved"):
        fp8graph.compare(proto, data=feeds(proto, 1), save_outputs=tmp_path / "o.npz")
    assert contents(tmp_path) == {}
