"""Extremes found inside the run are those of the tensors themselves, whatever computes them and whatever is in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.findings import Notes
from fp8graph.calibrate import collect as collecting
from fp8graph.calibrate import view as viewing
from fp8graph.calibrate.samples import open_samples
from fp8graph.graph.load import load
from fp8graph.graph.stages import Normalized
from fp8graph.numerics.ranges import Need, Ranges, Stat
from fp8graph.runners.onnxruntime import OnnxRuntime
from tests.small import feeds, model

CONVS = """(float[n,3,16,16] x, float[16,3,3,3] w_a, float[16,16,3,3] w_b, float[16,1,3,3] w_c) => (float[n,16,1,1] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w_a)
    r = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (r, w_b)
    s = Add(b, r)
    h = HardSwish(s)
    m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h)
    d = Conv <group = 16> (m, w_c)
    p = Mul(r, r)
    y = GlobalAveragePool(d)
}"""
ROWS = """(float[n,5,32] x, float[32,32] w_a) => (float[n,5,32] y) {
    a = MatMul(x, w_a)
    g = Gelu(a)
    t = Tanh(g)
    o = Softmax <axis = -1> (a)
    i = Transpose <perm = [0, 2, 1]> (o)
    j = Flatten(i)
    z = Sub(t, o)
    y = Add(z, x)
}"""
SETS = {"convs": model(CONVS, opset=20), "rows": model(ROWS, opset=20)}


def seen(proto: onnx.ModelProto, needs: list[str | Need], data: list[dict[str, Any]]) -> Ranges:
    source = load(proto)
    samples = open_samples(data, source.model, Notes())
    return collecting.collect(Normalized(source.model, source, ""), needs, samples, "sha256:0")


def inner(proto: onnx.ModelProto) -> list[str]:
    return [name for node in proto.graph.node for name in node.output]


@pytest.mark.parametrize("name", SETS)
def test_the_largest_value_and_the_count_are_those_of_the_tensor_itself(name):
    proto, data = SETS[name], feeds(SETS[name], 4)
    names = inner(proto)
    found, whole = seen(proto, names, data), seen(proto, [Need(each, "histogram") for each in names], data)
    assert found.values.keys() == whole.values.keys() == set(names)
    for each in names:
        # the runtime fuses other ops where a tensor has to leave it
        assert found.values[each].amax == pytest.approx(whole.values[each].amax, rel=1e-6)
        assert found.values[each].count == whole.values[each].count
        assert found.values[each].min in (0.0, pytest.approx(whole.values[each].min, rel=1e-6))
    exact = seen(proto, [Need(each, "range") for each in names], data)
    for each in names:
        wanted = whole.values[each]
        assert (exact.values[each].min, exact.values[each].max) == pytest.approx((wanted.min, wanted.max), rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_value_that_is_not_finite_is_found_wherever_it_lies(name, value, place):
    proto, data = SETS[name], feeds(SETS[name], 3)
    spoilt = {key: array.copy() for key, array in data[1].items()}
    flat = spoilt["x"].reshape(-1)
    flat[{"first": 0, "middle": flat.size // 2 + 1, "last": -1}[place]] = value
    view = viewing.View(load(proto).model, [Need(each) for each in inner(proto)], "", "")
    stats = view.observe(0, spoilt).values
    told = OnnxRuntime(with_outputs(proto)).run(spoilt)
    for each in inner(proto):
        assert bool(stats[each].nonfinite) is not bool(np.isfinite(told[each]).all()), each
    assert not any(stat.nonfinite for stat in view.observe(0, data[0]).values.values())


MADE = [
    ("n = Log(x)", -1.0),  # NaN where x is negative
    ("a = Sub(x, x) n = Div(a, a)", 1.0),
    ("a = Exp(x) b = Exp(a) n = Sub(b, b)", 9.0),  # infinity less infinity
    ("a = Sqrt(x) n = Softmax(a)", -4.0),
    ("a = Log(x) b = Relu(a) n = Mul(b, x)", -1.0),
]


@pytest.mark.parametrize(("body", "value"), MADE)
@pytest.mark.parametrize("behind", ["Relu(n)", "Add(n, n)", "Identity(n)"])
def test_a_nan_that_an_operator_makes_is_found_behind_it(body, value, behind):
    text = f"{{ {body} r = {behind} t = Relu(r) y = MatMul(t, w) }}"
    proto = model(f"(float[n,64] x, float[64,4] w) => (float[n,4] y) {text}")
    array = np.full((3, 64), 2.0, np.float32)
    array[1, 37] = value
    view = viewing.View(load(proto).model, [Need(each) for each in ("r", "t")], "", "")
    told = OnnxRuntime(with_outputs(proto)).run({"x": array})
    found = view.observe(0, {"x": array}).values
    for each in ("r", "t"):
        assert bool(found[each].nonfinite) is not bool(np.isfinite(told[each]).all())
    assert found["r"].nonfinite


@pytest.mark.parametrize(("body", "value"), [*MADE, ("a = Mul(x, x) n = Sub(a, a)", 3e38)])
def test_it_is_found_where_no_output_tells_of_it(body, value):
    text = f"{{ {body} r = Relu(n) p = MatMul(r, w) q = Greater(p, p) y = Cast <to = 1> (q) }}"
    proto = model(f"(float[64,64] x, float[64,4] w) => (float[64,4] y) {text}")
    feed = {"x": np.full((64, 64), 2.0, np.float32)}
    feed["x"][1, 37] = value
    told = OnnxRuntime(with_outputs(proto)).run(feed)
    assert np.isfinite(told["y"]).all() and not np.isfinite(told["r"]).all()
    view = viewing.View(load(proto).model, [Need("r")], "", "")
    assert view.observe(0, feed).values["r"].nonfinite == 1


@pytest.mark.parametrize("factor", [2.0**28, 2.0**31, 2.0**100])
def test_large_numbers_are_observed_as_they_are(factor):
    head = "(float[n,8] x, float[8,8] w, float[8,8] w_b) => (float[n,8] y)"
    proto = model(head + " { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w_b) }")
    feed = {"x": (feeds(proto)[0]["x"] * factor).astype(np.float32)}
    found, told = seen(proto, ["h", "r"], [feed]).values, OnnxRuntime(with_outputs(proto)).run(feed)
    assert found["h"] == Stat.of(told["h"]) and found["r"].max == told["r"].max()


def with_outputs(proto: onnx.ModelProto) -> Any:
    work = load(proto).model
    have = {value.name for value in work.graph.outputs}
    work.graph.outputs.extend(v for node in work.graph for v in node.outputs if v.name not in have)
    return work


def test_an_empty_tensor_is_no_obstacle():
    text = """(float[n,4] x, float[m,4] z, float[4,4] w) => (float[k,4] y) {
        c = Relu(z) d = Concat<axis = 0>(x, c) y = MatMul(d, w)
    }"""
    data = [{"x": np.ones((2, 4), np.float32), "z": np.zeros((rows, 4), np.float32)} for rows in (0, 3)]
    found = seen(model(text), ["c", "d"], data)
    assert found.values["c"].count == 12 and found.values["d"].count == 2 * 4 + 5 * 4
    assert seen(model(text), ["c"], data[:1]).values["c"] == Stat()


def test_what_hardly_goes_below_zero_is_looked_at_where_the_maximum_does_not_tell():
    proto = model("(float[n,4] x, float[4,4] w) => (float[n,4] y) { h = HardSwish(x) y = MatMul(h, w) }", opset=20)
    low, high = np.full((1, 4), -1.5, np.float32), np.full((1, 4), 2.0, np.float32)
    assert seen(proto, ["h"], [{"x": low}]).values["h"] == Stat(4, 0, -0.375, -0.375)
    assert seen(proto, ["h"], [{"x": np.concatenate([low, high])}]).values["h"].amax == pytest.approx(5 / 3)


def test_half_precision_tensors_are_observed_exactly():
    text = "(float16[n,8] x, float16[8,8] w) => (float16[n,8] y) { r = Relu(x) y = MatMul(r, w) }"
    array = np.linspace(-3, 3, 16).reshape(2, 8).astype(np.float16)
    found = seen(model(text, w=np.ones((8, 8), np.float16)), ["r"], [{"x": array}])
    assert found.values["r"] == Stat(16, 0, 0.0, 3.0)


def test_axes_are_observed():
    proto, data = SETS["rows"], feeds(SETS["rows"], 3)
    names = [Need("a", axis=2), Need("o", "histogram", 0)]
    found = seen(proto, names, data)
    arrays = [OnnxRuntime(with_outputs(proto)).run(feed)["a"] for feed in data]
    peaks = np.maximum.reduce([np.abs(array).max((0, 1)) for array in arrays])
    assert np.allclose(found.values["a"].channels[2].values, peaks, rtol=1e-6)
    assert not found.lacks(names) and found.lacks([Need("a", "histogram"), Need("t")])


def test_a_provider_or_a_large_model_takes_the_plain_way(monkeypatch):
    from fp8graph.runners import onnxruntime as module

    proto, data = SETS["convs"], feeds(SETS["convs"], 2)
    usual = seen(proto, inner(proto), data)
    monkeypatch.setattr(module, "_TWICE", 0)
    assert seen(proto, inner(proto), data) == usual


def test_calibrating_leaves_no_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    fp8graph.calibrate(SETS["convs"], data=feeds(SETS["convs"], 2))
    assert list(tmp_path.iterdir()) == []
