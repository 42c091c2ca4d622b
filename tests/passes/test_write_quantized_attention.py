"""FP8 attention as TensorRT's own operator: what becomes of factors, masks and keys, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.testing import corpus
from tests.small import feeds, model, refused

TARGET = "tensorrt-rtx:sm89"


def attention(between: str, *, extra: str = "", shape: str = "2,2,32,16") -> str:
    return f"""(float[{shape}] q, float[{shape}] k, float[{shape}] v{extra}) => (float[{shape}] y)
      <float four = {{0.25}}, float hidden = {{-10000}}, float cap = {{30}}> {{
        kt = Transpose <perm = [0, 1, 3, 2]> (k) scores = MatMul (q, kt) {between} y = MatMul (p, v) }}"""


def fused(text: str, high: str | None = "fp16", **options):
    proto = model(text)
    return fp8graph.optimize(
        proto, target=TARGET, data=feeds(proto, 2), high_precision_dtype=high, attention="must-fuse", **options
    )


SHOWN, ADDED = ", bool[2,1,32,32] shown", ", float[2,1,1,32] added"
FORMS = {
    "nothing between": ("p = Softmax <axis = -1> (scores)", "", 1.0, None),
    "a factor": ("a = Mul (four, scores) p = Softmax <axis = -1> (a)", "", 0.25, None),
    "a divisor": ("a = Div (scores, four) p = Softmax <axis = -1> (a)", "", 4.0, None),
    "a boolean mask": ("a = Where (shown, scores, hidden) p = Softmax <axis = -1> (a)", SHOWN, 1.0, "BOOL"),
    "a factor and a mask that is added": (
        "a = Mul (scores, four) b = Add (added, a) p = Softmax <axis = -1> (b)",
        ADDED,
        0.25,
        "FLOAT16",
    ),
}


@pytest.mark.parametrize(("between", "extra", "scale", "mask"), FORMS.values(), ids=FORMS)
def test_what_lies_between_the_products_goes_into_the_operator(between, extra, scale, mask):
    done = fused(attention(between, extra=extra))
    nodes = [place for place in walk.walk(load(done.model).model) if place.node.domain == "trt"]
    assert [place.node.op_type for place in nodes] == ["TRT_QuantizedAttention"]
    node = nodes[0].node
    assert node.attributes["scale"].as_float() == scale
    assert (node.inputs[3].dtype.name if node.inputs[3] is not None else None) == mask
    step = node.inputs[4]
    assert step is not None and step.const_value is not None
    assert step.const_value.numpy() == np.float32(1 / 448)
    assert walk.keys(nodes[0]) == ["y", "scores"]
    assert {op.node.op_type for op in walk.walk(load(done.model).model)} & {"Softmax", "MatMul"} == set()
    assert done.planned == 2
    assert done.comparison is not None and (done.comparison.outputs["y"].sqnr_db or 0) > 15


CAP = "a = Div (scores, cap) b = Tanh (a) c = Mul (b, cap) p = Softmax <axis = -1> (c)"
BEHIND = "a = Add (scores, added) b = Mul (a, four) p = Softmax <axis = -1> (b)"
PLAIN = "p = Softmax <axis = -1> (scores)"
NO_FORM = {
    "soft capping": (CAP, "", {}, "Tanh"),
    "a factor behind the mask": (BEHIND, ADDED, {}, "a mask or a factor behind it"),
    "fp32": (PLAIN, "", {"high": None}, "--high-precision-dtype fp16"),
    "kept by the user": (PLAIN, "", {"nodes_to_exclude": ["y"]}, "was excluded"),
}


@pytest.mark.parametrize(("between", "extra", "how", "says"), NO_FORM.values(), ids=NO_FORM)
def test_an_attention_that_cannot_be_one_operator_is_refused(tmp_path, between, extra, how, says):
    out = tmp_path / "m.onnx"
    with refused(UsageError, "FG233", "must fuse", says):
        fused(attention(between, extra=extra), output=out, **how)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "says"), [("2,2,16,16", "fewer than 32 keys"), ("1,1,32,16", "batch x heads is 1"), ("1,2,32,264", "264")]
)
def test_shapes_that_do_not_fuse_are_told_before_the_build(shape, says):
    with refused(UsageError, "FG233", says):
        fused(attention(PLAIN, shape=shape))


def test_a_target_without_the_operator_is_refused():
    proto = corpus()["long_attention"]
    with refused(UsageError, "FG233", "reference"):
        fp8graph.optimize(proto, target="reference", data="random", attention="must-fuse")


def test_a_model_without_attention_is_told():
    with refused(UsageError, "FG233", "the model has no attention"):
        fused("(float[2,64] x, float[64,64] w) => (float[2,64] y) { y = MatMul (x, w) }")
