"""Two scales of attention, half on q and half on k, become one on q."""

from __future__ import annotations

import numpy as np
import pytest

from fp8graph_passes.merge_attention_scale import MergeAttentionScale
from tests.passes.doing import run
from tests.small import model

PLAIN = """(float[2,8,16] q, float[2,8,16] k, float[2,8,16] v) => (float[2,8,16] y) CONSTANTS {
    qs = Mul(q, a)
    ks = Mul(k, b)
    kt = Transpose <perm = [0, 2, 1]> (ks)
    s = MatMul(qs, kt)
    p = Softmax(s)
    y = MatMul(p, v)
}"""


def attention(constants: str = "float a = {0.5}, float b = {0.25}", instead: tuple[str, str] = ("", "")):
    text = PLAIN.replace("CONSTANTS", f"<{constants}>")
    assert instead[0] in text
    return model(text.replace(*instead) if instead[0] else text)


def test_the_product_of_both_lies_on_q_and_the_one_on_k_is_gone():
    done = run(MergeAttentionScale(), attention())
    assert done.count == 1
    assert done.kinds["Mul"] == 1
    left, constant = done.inputs("qs")
    assert left == "q"
    assert done.constants == {constant: np.float32(0.125)}
    assert done.inputs("kt") == ["k"]
    assert done.same()  # all are powers of two


@pytest.mark.parametrize("size", [16, 64, 256])
def test_two_fourth_roots_whose_product_is_a_power_of_two_but_for_rounding_become_it(size):
    root = np.float32(size**-0.25)
    done = run(MergeAttentionScale(), attention(f"float a = {{{root:.9g}}}, float b = {{{root:.9g}}}"))
    (value,) = done.constants.values()
    assert value == np.float32(size**-0.5)
    assert done.apart() <= 16


def test_a_product_that_is_no_power_of_two_is_taken_as_it_is():
    root = np.float32(80**-0.25)
    done = run(MergeAttentionScale(), attention(f"float a = {{{root:.9g}}}, float b = {{{root:.9g}}}"))
    (value,) = done.constants.values()
    assert value == np.float32(np.float64(root) * np.float64(root))
    assert done.apart() <= 16


@pytest.mark.parametrize("shape", ["float[1]", "float[1,1]"])
def test_constants_of_one_element_keep_their_rank(shape):
    done = run(MergeAttentionScale(), attention(f"{shape} a = {{0.5}}, {shape} b = {{0.25}}"))
    assert done.count == 1
    (value,) = done.constants.values()
    assert value.shape == (1,) * shape.count("1")
    assert done.same()


def test_the_constant_may_stand_on_either_side_and_movement_is_walked_past():
    done = run(MergeAttentionScale(), attention(instead=("qs = Mul(q, a)", "q0 = Mul(a, q) qs = Identity(q0)")))
    assert done.count == 1
    assert done.same()


STAYS = {
    "one scale only": {"instead": ("qs = Mul(q, a)", "qs = Neg(q)")},
    "a vector": {"constants": "float a = {0.5}, float[16] b = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2}"},
    "more axes than k": {"constants": "float a = {0.5}, float[1,1,1,1] b = {0.25}"},
    "q is read elsewhere": {"instead": ("y = MatMul(p, v)", "o = MatMul(p, v) y = Add(o, qs)")},
    "k is read elsewhere": {"instead": ("y = MatMul(p, v)", "o = MatMul(p, v) y = Add(o, ks)")},
    "no Softmax behind": {"instead": ("p = Softmax(s)", "p = Tanh(s)")},
    "scales that are computed": {"instead": ("qs = Mul(q, a)", "qs = Mul(q, v)")},
}


@pytest.mark.parametrize("why", STAYS)
def test_both_stay_where(why):
    proto = attention(**STAYS[why])
    if "more axes" in why:  # the product then has four axes, too
        proto.graph.output[0].type.tensor_type.ClearField("shape")
    done = run(MergeAttentionScale(), proto)
    assert done.count == 0


def test_one_multiplication_for_both_is_left_alone():
    text = """(float[2,8,16] x, float[2,8,16] v) => (float[2,8,16] y) <float a = {0.5}> {
        z = Mul(x, a) t = Transpose <perm = [0, 2, 1]> (z) s = MatMul(z, t) p = Softmax(s) y = MatMul(p, v)
    }"""
    assert run(MergeAttentionScale(), model(text)).count == 0


def test_the_graph_may_return_the_scaled_k_and_then_it_stays():
    proto = attention()
    value = proto.graph.output.add()
    value.CopyFrom(proto.graph.output[0])
    value.name = "ks"
    assert run(MergeAttentionScale(), proto).count == 0
