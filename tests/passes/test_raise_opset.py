"""The opset is raised to what FP8 and the target want, and everything else stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fp8graph.base.errors import InputError
from fp8graph.data import target as targets
from fp8graph.testing import random_feeds
from fp8graph_passes.raise_opset import RaiseOpset
from tests.passes.doing import run
from tests.small import model, refused

SMALL = "(float[2,8] x, float[8,4] w) => (float[2,4] y) { [mul] a = MatMul(x, w) [act] y = Softmax <axis = 1> (a) }"


def opset(item: ir.Model) -> int:
    return item.graph.opset_imports[""]


@pytest.mark.parametrize("old", [9, 11, 13, 15, 17, 18, 19, 20])
def test_an_older_opset_is_raised_to_the_targets(old):
    done = run(RaiseOpset(), model(SMALL, opset=old, ir=8))
    assert done.count > 0
    assert opset(done.model) == targets.load("reference").opset == 21
    assert done.same()


@pytest.mark.parametrize("new", [21, 22, 23])
def test_a_higher_one_stays(new):
    done = run(RaiseOpset(), model(SMALL, opset=new))
    assert done.count == 0
    assert opset(done.model) == new


def test_bf16_wants_the_opset_whose_convolutions_take_it():
    assert opset(run(RaiseOpset(), model(SMALL, opset=13, ir=7), high="bf16").model) == 22
    assert opset(run(RaiseOpset(), model(SMALL, opset=21), high="bf16").model) == 22


@pytest.mark.parametrize(("old", "then"), [(7, 10), (9, 10), (10, 10), (11, 11), (13, 13)])
def test_the_ir_version_is_one_that_knows_the_opset(old, then):
    done = run(RaiseOpset(), model(SMALL, opset=18, ir=old))
    assert done.model.ir_version == then


def test_an_ir_version_that_runtimes_do_not_load_is_lowered_and_counted():
    done = run(RaiseOpset(), model(SMALL, opset=21, ir=14), target="onnxruntime")
    assert done.count == 1
    assert done.model.ir_version == targets.load("onnxruntime").ir_version == 13


def test_a_second_run_does_nothing():
    done = run(RaiseOpset(), model(SMALL, opset=13, ir=7))
    assert RaiseOpset().rewrite(done.model, done.ctx) == 0


def test_node_names_and_metadata_are_kept():
    work = ir.from_proto(model(SMALL, opset=13, ir=7))
    for node in work.graph:
        node.metadata_props["whose"] = node.name or ""
    done = run(RaiseOpset(), work)
    assert [(node.name, node.metadata_props["whose"]) for node in done.model.graph] == [("mul", "mul"), ("act", "act")]


def test_metadata_is_kept_in_bodies_too():
    text = """(float[2] x, bool c) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { [inner] a = Neg(x) },
                    else_branch = e () => (float[2] b) { b = Abs(x) }> }"""
    work = ir.from_proto(model(text, opset=13, ir=7))
    body = next(iter(work.graph)).attributes["then_branch"].as_graph()
    next(iter(body)).metadata_props["mine"] = "yes"
    done = run(RaiseOpset(), work)
    assert next(iter(done.node("y").attributes["then_branch"].as_graph())).metadata_props["mine"] == "yes"


def test_other_domains_stay_as_they_are():
    proto = model(SMALL, opset=13, ir=7)
    proto.opset_import.append(onnx.helper.make_opsetid("acme", 3))
    node = proto.graph.node.add(op_type="Shift", domain="acme", name="own", input=["a"], output=["b"])
    proto.graph.node.insert(1, node)
    del proto.graph.node[-1]
    done = run(RaiseOpset(), proto)
    assert done.model.graph.opset_imports == {"": 21, "acme": 3}
    assert (done.node("b").domain, done.node("b").op_type) == ("acme", "Shift")


def test_a_large_weight_is_carried_over_unread():
    proto = model("(float[2,64] x, float[64,64] w) => (float[2,64] y) { y = MatMul(x, w) }", opset=13, ir=7)
    done = run(RaiseOpset(), proto)
    assert done.model.graph.initializers["w"].const_value is done.before.graph.initializers["w"].const_value


def test_group_normalization_gets_a_scale_and_bias_for_each_channel():
    text = """(float[2,8,4,4] x, float[4] w_scale, float[4] w_bias) => (float[2,8,4,4] y) {
        y = GroupNormalization <num_groups = 4> (x, w_scale, w_bias) }"""
    done = run(RaiseOpset(), model(text, opset=18, ir=8))
    scale = done.constants[done.inputs("y")[1]]
    old = done.before.graph.initializers["w_scale"].const_value.numpy()
    np.testing.assert_array_equal(scale, np.repeat(old, 2))
    # onnxruntime up to 1.31 refuses the op at opset 18, so the old meaning is written out here
    feed = random_feeds(done.before)
    x = feed["x"].reshape(2, 4, -1).astype(np.float64)
    normed = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + 1e-5)
    bias = done.before.graph.initializers["w_bias"].const_value.numpy()
    expected = (normed * old[:, None] + bias[:, None]).reshape(2, 8, 4, 4)
    session = onnx.reference.ReferenceEvaluator(ir.to_proto(done.model))
    np.testing.assert_allclose(session.run(None, feed)[0], expected, rtol=1e-4, atol=1e-5)


def test_group_normalization_on_unknown_channels_is_refused():
    text = """(float[2,C,4,4] x, float[4] w_scale, float[4] w_bias) => (float[2,C,4,4] y) {
        y = GroupNormalization <num_groups = 4> (x, w_scale, w_bias) }"""
    with refused(InputError, "FG106", "GroupNormalization", "channels"):
        run(RaiseOpset(), model(text, opset=18, ir=8))


def test_an_op_that_cannot_be_converted_is_refused_with_advice():
    text = """(float[2,3,4,4] x, float[3] w_gain, float[3] w_b, float[3] w_m, float[3] w_v) => (float[2,3,4,4] y) {
        y, m, v, a, b = BatchNormalization(x, w_gain, w_b, w_m, w_v) }"""
    with refused(InputError, "FG106", "opset 9", "export"):
        run(RaiseOpset(), model(text, opset=9, ir=4))
