"""Random data: in the range and of the shape that were asked for, and refused where the model cannot take them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import open_samples
from tests.small import model, refused

TEXT = """(float[n,3] x, int64[n] i, uint8[2] u, bool[2] b, float16[m] h) => (float[n,3] y, int64[n] j, uint8[2] v,
    bool[2] c, float16[m] k) {
    y = Relu(x)  j = Identity(i)  v = Identity(u)  c = Identity(b)  k = Identity(h)
}"""
WORK = ir.from_proto(model(TEXT))


def made(**how):
    return list(open_samples("random", WORK, Notes(), samples=3, **how))


def test_without_options_floats_are_below_one_and_integers_zero_or_one():
    for feed in made():
        assert {name: array.shape for name, array in feed.items()} == {
            "x": (1, 3),
            "i": (1,),
            "u": (2,),
            "b": (2,),
            "h": (1,),
        }
        assert all(float(array.min()) >= 0 and float(array.max()) <= 1 for array in feed.values())


@pytest.mark.parametrize(
    ("ranges", "ends"),
    [
        ({"x": (-5.0, -4.0)}, {"x": (-5, -4), "i": (0, 1), "h": (0, 1)}),
        ({"": (7.0, 9.0), "b": (0.0, 1.0)}, {"x": (7, 9), "i": (7, 9), "u": (7, 9), "h": (7, 9)}),
        ({"": (2.0, 2.0), "b": (1.0, 1.0)}, {"x": (2, 2), "i": (2, 2), "b": (1, 1)}),
        ({"u": (0.0, 255.0), "i": (-(2.0**40), 2.0**40)}, {"u": (0, 255), "i": (-(2**40), 2**40)}),
        ({"h": (-60000.0, 60000.0)}, {"h": (-60000, 60000)}),
    ],
)
def test_values_lie_in_the_range_asked_for(ranges, ends):
    for feed in made(val_range=ranges, input_shapes={"x": (50, 3), "i": (50,), "h": (50,)}):
        for name, (low, high) in ends.items():
            array = feed[name].astype(np.float64)
            assert low <= array.min() and array.max() <= high
            if high - low > 3 and array.size > 10:
                assert array.max() - array.min() > 0.8 * (high - low)


def test_shapes_are_those_asked_for_and_the_label_says_all():
    samples = open_samples(
        "random", WORK, Notes(), seed=5, samples=2, val_range={"": (0, 1), "x": (-1, 2)}, input_shapes={"x": (4, 3)}
    )
    assert [feed["x"].shape for feed in samples] == [(4, 3)] * 2
    assert samples.label == "random, seed 5, 2 samples, values in [0, 1], x in [-1, 2], x of 4x3"


def test_an_input_that_is_read_as_a_shape_gets_the_values():
    work = ir.from_proto(model("(float[6] x, int64[2] s) => (float[a,b] y) { y = Reshape(x, s) }"))
    (feed, *_) = open_samples("random", work, Notes(), input_shapes={"s": (2, 3)})
    assert feed["s"].tolist() == [2, 3] and feed["s"].dtype == np.int64


@pytest.mark.parametrize(
    ("data", "how", "code", "says"),
    [
        ("random", {"val_range": {"z": (0, 1)}}, "FG101", "no input 'z'"),
        ("random", {"input_shapes": {"": (1, 3)}}, "FG101", "no input ''"),
        ("random", {"input_shapes": {"x": (1, 4)}}, "FG100", "?x3"),
        ("random", {"input_shapes": {"x": (1, 3, 1)}}, "FG100", "1x3x1"),
        ("random", {"val_range": {"i": (0, 0.5)}}, "FG100", "whole numbers"),
        ("random", {"val_range": {"": (-1, 1)}}, "FG100", "uint8 goes from 0 to 255"),
        ("random", {"val_range": {"h": (0, 1e5)}}, "FG100", "float16 ends at 65504"),
        ({"x": np.zeros((1, 3), np.float32)}, {"val_range": {"": (0, 1)}}, "FG100", "--val-range says how random"),
        (["a.npz"], {"input_shapes": {"x": (1, 3)}}, "FG100", "--input-shapes says how random"),
    ],
)
def test_what_does_not_fit_is_refused(data, how, code, says):
    with refused(UsageError, code, says):
        list(open_samples(data, WORK, Notes(), **how))


@pytest.mark.parametrize(
    "how",
    [
        {"val_range": (2, 1)},
        {"val_range": {"x": 3}},
        {"val_range": {"x": (0, float("nan"))}},
        {"val_range": (True, False)},
        {"input_shapes": {"x": ((1, 3), (2, 3), (4, 3))}},
    ],
)
def test_a_range_or_shape_of_another_kind_is_refused(how):
    with refused(UsageError, "FG100", next(iter(how))):
        fp8graph.compare(model(TEXT), model(TEXT), data="random", **how)


def test_random_data_has_the_shapes_that_the_plan_is_made_for():
    proto = model("(float[n,32] x, float[32,32] w) => (float[n,32] y) { y = MatMul(x, w) }")
    done = fp8graph.optimize(proto, data="random", samples=2, shapes={"x": ((1, 32), (8, 32), (16, 32))})
    assert done.plan.data == "random, seed 0, 2 samples, x of 8x32"
    other = fp8graph.optimize(proto, data="random", samples=2, input_shapes={"x": (4, 32)}, val_range=(0, 2))
    assert other.plan.shapes["x"].opt == (4, 32)
    assert other.plan.data == "random, seed 0, 2 samples, values in [0, 2], x of 4x32"


def test_such_options_without_data_are_refused():
    proto = model("(float[n,32] x, float[32,32] w) => (float[n,32] y) { y = MatMul(x, w) }")
    with refused(UsageError, "FG100", "--val-range says how data is read"):
        fp8graph.optimize(proto, plan_only=True, val_range=(0, 1))
