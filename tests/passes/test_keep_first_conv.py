"""The Conv that reads an image of few channels stays in high precision."""

from __future__ import annotations

import pytest

from fp8graph_passes.keep_first_conv import KeepFirstConv
from tests.passes.doing import opinions
from tests.small import model

KEPT = {"c": ("keep", "FG208")}
TAIL = "y = Relu(c)"


def image(before: str, value: str = "x", channels: int = 3, shape: str = "") -> object:
    shape = shape or f"2,{channels},8,8"
    return model(
        f"""(float[{shape}] x, float[4,{channels},3,3] w) => (float[2,4,6,6] y)
        <float c1 = {{127.5}}, float one = {{1}}, int64[4] s = {{2, {channels}, 8, 8}}, int64[1] front = {{0}}> {{
        {before} c = Conv({value}, w) {TAIL} }}"""
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_conv_on_few_channels_that_reads_the_models_input_is_kept(channels):
    assert opinions(KeepFirstConv(), image("", channels=channels)) == KEPT


BEFORE = {
    "constant scaling": ("a = Div(x, c1) b = Sub(a, one)", "b", ""),
    "the constant first": ("a = Mul(c1, x) b = Add(one, a)", "b", ""),
    "channels last": ("a = Transpose <perm = [0, 3, 1, 2]> (x)", "a", "2,8,8,3"),
    "movement": ("a = Unsqueeze(x, front) b = Squeeze(a, front) d = Reshape(b, s) e = Identity(d)", "e", ""),
}


@pytest.mark.parametrize("what", BEFORE)
def test_through_movement_and_constant_scaling_it_is_still_the_first(what):
    before, value, shape = BEFORE[what]
    assert opinions(KeepFirstConv(), image(before, value, shape=shape)) == KEPT


def test_an_image_of_integers_is_one_too():
    text = """(uint8[2,3,8,8] x, float[4,3,3,3] w) => (float[2,4,6,6] y) {
        f = Cast <to = 1> (x) c = Conv(f, w) y = Relu(c) }"""
    assert opinions(KeepFirstConv(), model(text)) == KEPT


NOT = {
    "it has more channels": image("", channels=5),
    "an op with arithmetic lies before": image("a = Relu(x)", "a"),
    "a Conv lies before": model(
        """(float[2,8,8,8] x, float[3,8,1,1] w, float[4,3,3,3] w_c) => (float[2,4,6,6] c) {
            a = Conv(x, w) c = Conv(a, w_c) }"""
    ),
    "it reads a constant": model("(float[4,3,3,3] k, float[2,3,8,8] w) => (float[2,4,6,6] c) { c = Conv(w, k) }"),
    "it is no Conv": model("(float[2,3] x, float[3,4] w) => (float[2,4] c) { c = MatMul(x, w) }"),
}


@pytest.mark.parametrize("why", NOT)
def test_there_is_no_opinion_where(why):
    assert opinions(KeepFirstConv(), NOT[why]) == {}


def test_the_number_of_channels_is_an_option():
    assert opinions(KeepFirstConv(channels=2), image("")) == {}
    assert opinions(KeepFirstConv(channels=8), image("", channels=5)) == KEPT
