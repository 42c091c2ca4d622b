"""BatchNormalization behind a constant-weight convolution goes into its weight and bias."""

from __future__ import annotations

import numpy as np
import pytest

from fp8graph.testing import planned
from fp8graph_passes.fold_batchnorm import FoldBatchnorm
from tests.passes.doing import run
from tests.small import model

BN = "float[4] w_gain, float[4] w_shift, float[4] w_mean, float[4] w_var"
ARGS = "w_gain, w_shift, w_mean, w_var"
VAR = np.array([0.5, 1.0, 2.0, 1e-3], np.float32)


def small(body: str, weights: str = "float[4,3,3,3] w_c", outputs: str = "float[2,4,6,6] y", inputs: str = "", **how):
    # dimensions of outputs are inferred where a convolution changes them
    text = f"(float[2,3,8,8] x{inputs}, {weights}, {BN}) => ({outputs}) {{ {body} }}"
    return model(text, w_var=VAR, **how)


def test_the_weight_and_bias_are_those_of_the_formula_in_double_precision():
    body = f"c = Conv(x, w_c, w_b) y = BatchNormalization <epsilon = 0.01> (c, {ARGS})"
    done = run(FoldBatchnorm(), small(body, "float[4,3,3,3] w_c, float[4] w_b"))
    old = {name: value.const_value.numpy().astype(np.float64) for name, value in done.before.graph.initializers.items()}
    factor = old["w_gain"] / np.sqrt(old["w_var"] + np.float64(np.float32(0.01)))
    weight = (old["w_c"] * factor[:, None, None, None]).astype(np.float32)
    bias = (factor * (old["w_b"] - old["w_mean"]) + old["w_shift"]).astype(np.float32)
    assert done.count == 1
    assert done.kinds == {"Conv": 1}
    _, new_weight, new_bias = done.inputs("y")
    np.testing.assert_array_equal(done.constants[new_weight], weight)
    np.testing.assert_array_equal(done.constants[new_bias], bias)
    assert len(done.constants) == 2  # the old parameters are gone


FOLDS = {
    "no bias": small(f"c = Conv(x, w_c) y = BatchNormalization(c, {ARGS})"),
    "a bias left out": small(f'c = Conv(x, w_c, "") y = BatchNormalization(c, {ARGS})'),
    "strided, padded, grouped": small(
        f"c = Conv <group = 1, strides = [2, 2], pads = [1, 1, 1, 1]> (x, w_c) y = BatchNormalization(c, {ARGS})",
        outputs="float[2,4,4,4] y",
    ),
    "transposed": small(
        f"c = ConvTranspose(x, w_c, w_b) y = BatchNormalization(c, {ARGS})",
        "float[3,4,3,3] w_c, float[4] w_b",
        "float[2,4,10,10] y",
    ),
    "before a Relu": small(f"c = Conv(x, w_c) n = BatchNormalization(c, {ARGS}) y = Relu(n)"),
    "not training, said so": small(f"c = Conv(x, w_c) y = BatchNormalization <training_mode = 0> (c, {ARGS})"),
    "in a body": small(
        f"""y = If (g) <then_branch = t () => (float[2,4,6,6] a) {{
                            c = Conv(x, w_c) a = BatchNormalization(c, {ARGS}) }},
                        else_branch = e () => (float[2,4,6,6] b) {{ d = Conv(x, w_c) b = Neg(d) }}>""",
        inputs=", bool g",
    ),
}


@pytest.mark.parametrize("what", FOLDS)
def test_it_folds_and_the_outputs_move_by_rounding_alone(what):
    done = run(FoldBatchnorm(), FOLDS[what])
    assert done.count == 1
    assert not done.kinds["BatchNormalization"]
    assert done.apart() <= 64


STAYS = {
    "the convolution has two readers": small(
        f"c = Conv(x, w_c) n = BatchNormalization(c, {ARGS}) y = Add(n, c)",
    ),
    "the graph returns the convolution": small(
        f"c = Conv(x, w_c) y = BatchNormalization(c, {ARGS})", outputs="float[2,4,6,6] y, float[2,4,6,6] c"
    ),
    "it trains": small(f"c = Conv(x, w_c) y, m, v = BatchNormalization <training_mode = 1> (c, {ARGS})"),
    "more outputs say training before opset 14": small(
        f"c = Conv(x, w_c) y, m, v, a, b = BatchNormalization(c, {ARGS})", opset=9, ir=7
    ),
    "the graph returns the new mean": small(
        f"c = Conv(x, w_c) y, m, v, a, b = BatchNormalization(c, {ARGS})",
        outputs="float[2,4,6,6] y, float[4] m",
        opset=9,
        ir=7,
    ),
    "the weight is no constant": small(
        f"c = Conv(x, k) y = BatchNormalization(c, {ARGS})", "float[4] w_unused", inputs=", float[4,3,3,3] k"
    ),
    "the gain is no constant": small(
        "c = Conv(x, w_c) y = BatchNormalization(c, g, w_shift, w_mean, w_var)", inputs=", float[4] g"
    ),
    "the bias is no constant": small(f"c = Conv(x, w_c, b) y = BatchNormalization(c, {ARGS})", inputs=", float[4] b"),
    "something lies between": small(f"c = Conv(x, w_c) r = Relu(c) y = BatchNormalization(r, {ARGS})"),
    "a transposed convolution in groups": model(
        f"""(float[2,4,8,8] x, float[4,2,3,3] w_c, {BN}) => (float[2,4,10,10] y) {{
            c = ConvTranspose <group = 2> (x, w_c) y = BatchNormalization(c, {ARGS}) }}""",
        w_var=VAR,
    ),
    "the body of an If ends between": small(
        f"""c = If (g) <then_branch = t () => (float[2,4,6,6] a) {{ a = Conv(x, w_c) }},
                        else_branch = e () => (float[2,4,6,6] b) {{ d = Conv(x, w_c) b = Neg(d) }}>
            y = BatchNormalization(c, {ARGS})""",
        inputs=", bool g",
    ),
}


@pytest.mark.parametrize("why", STAYS)
def test_it_stays_where(why):
    done = run(FoldBatchnorm(), STAYS[why])
    assert done.count == 0
    assert done.kinds["BatchNormalization"] == 1


def test_a_weight_that_two_convolutions_share_is_folded_for_each_on_its_own():
    body = f"a = Conv(x, w_c) b = BatchNormalization(a, {ARGS}) c = Conv(x, w_c) d = Add(b, c) y = Relu(d)"
    done = run(FoldBatchnorm(), small(body))
    assert done.count == 1
    assert "w_c" in done.constants
    assert done.inputs("c") == ["x", "w_c"]
    assert done.apart() <= 64


def test_the_scale_of_a_quantized_convolution_is_that_of_the_folded_weight():
    body = f"r = Relu(x) c = Conv(r, w_c) y = BatchNormalization(c, {ARGS})"
    whole = planned(small(body), fp8_everywhere=True, recipe="fp8-amax").model.graph.initializers
    fold = run(FoldBatchnorm(), small(body))
    (name,) = (name for name in fold.constants if name.endswith("_bn"))
    amax = np.abs(fold.constants[name]).max(axis=(1, 2, 3))
    scale = whole[f"{name}_scale"].const_value.numpy()
    np.testing.assert_array_equal(scale, amax / np.float32(448))
