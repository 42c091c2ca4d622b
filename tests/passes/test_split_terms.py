"""Operands in two FP8 terms: what the graph computes, which channels are chosen, and what they gain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph import formats
from fp8graph.base.errors import InputError
from fp8graph.core import registry
from fp8graph.core.terms import joined, widened
from fp8graph.data.plan import Adjust, Plan
from fp8graph.numerics import cast, sidecar
from fp8graph.testing import outputs
from fp8graph_passes.split_terms import SplitTerms
from tests.small import feeds, model, refused

E4M3 = formats.get("e4m3fn")


def coded(array: np.ndarray, scale: Any = 1.0) -> np.ndarray:
    """What is left of an array in E4M3."""
    scale = np.asarray(scale, np.float32)
    return cast.decode(cast.encode(np.asarray(array, np.float32), E4M3, scale), E4M3, scale)


def with_terms(proto: onnx.ModelProto, plan: Plan, terms: dict[tuple[str, int], list[int]]) -> Plan:
    """The plan with chosen channels of operands in two terms."""
    ops, arrays = dict(plan.ops), dict(plan.arrays)
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}
    nodes = {node.output[0]: node for node in proto.graph.node}
    for (key, slot), channels in terms.items():
        array = np.asarray(channels, np.int64)
        other = nodes[key].input[1 - slot]
        digest = sidecar.weight_digest(weights[other]) if other in weights else ""
        found = Adjust("terms", slot, "split-terms", sidecar.reference(f"{key}.terms.{slot}", array), digest)
        ops[key] = replace(ops[key], adjust=(*ops[key].adjust, found))
        arrays[found.value.name] = array
    return replace(plan, ops=ops, arrays=arrays)


def split(proto: onnx.ModelProto, terms: dict[tuple[str, int], list[int]]) -> tuple[Plan, onnx.ModelProto, dict]:
    """Plan, model and one feed."""
    data = feeds(proto, 2)
    plan = fp8graph.optimize(proto, data=data, target="reference", plan_only=True).plan
    plan = with_terms(proto, plan, terms)
    return plan, fp8graph.optimize(proto, plan=plan).model, data[0]


def near(found: np.ndarray, wanted: np.ndarray, exact: float) -> None:
    """Equal but for the order in which float32 is added up."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=exact * float(np.abs(wanted).max()))


# Model, slot of the activation in two terms, how the operands' channels come first, and the product of such.
ONE = {
    "MatMul": ("(float[3,16] x, float[16,8] w) => (float[3,8] y) { y = MatMul(x, w) }", 0),
    "MatMul of rank 3": ("(float[2,3,16] x, float[16,8] w) => (float[2,3,8] y) { y = MatMul(x, w) }", 0),
    "weight first": ("(float[2,16,3] x, float[8,16] w) => (float[2,8,3] y) { y = MatMul(w, x) }", 1),
    "Gemm": (
        "(float[3,16] x, float[16,8] w, float[8] w_b) => (float[3,8] y) {"
        " y = Gemm <alpha = 0.5, beta = 2.0> (x, w, w_b) }",
        0,
    ),
    "Gemm, both turned": (
        "(float[16,3] x, float[8,16] w) => (float[3,8] y) { y = Gemm <transA = 1, transB = 1> (x, w) }",
        0,
    ),
    "Conv": (
        "(float[2,16,6,6] x, float[8,16,3,3] w, float[8] w_b) => (float[2,8,3,3] y) {"
        " y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, w_b) }",
        0,
    ),
    "Conv of one dimension": ("(float[2,16,9] x, float[8,16,3] w) => (float[2,8,7] y) { y = Conv(x, w) }", 0),
    "open sizes": ("(float[n,k,16] x, float[16,8] w) => (float[n,k,8] y) { y = MatMul(x, w) }", 0),
}


def axis_of(what: str) -> int:
    return {"Conv": 1, "Conv of one dimension": 1, "weight first": -2, "Gemm, both turned": 0}.get(what, -1)


@pytest.mark.parametrize("channels", [[1], [0, 3, 4, 15], list(range(16))], ids=["one", "some", "all"])
@pytest.mark.parametrize("what", ONE)
def test_the_chosen_channels_are_there_as_high_and_low_part(what, channels):
    text, slot = ONE[what]
    proto = model(text)
    plan, made, feed = split(proto, {("y", slot): channels})
    onnx.checker.check_model(made, full_check=True)
    scale = plan.ops["y"].inputs[slot].scale.value
    x, axis = feed["x"], axis_of(what)
    high = coded(x, scale)
    low = coded(16 * np.take(x - high, channels, axis), scale)
    whole = joined(np.concatenate([high, low], axis), np.asarray(channels), axis)
    # The weight in FP8, for which the float model is run: w / 16 is a code again but below 2^-6 of the scale.
    single = fp8graph.optimize(proto, data=[feed], target="reference", compare=False).model
    held = {item.name: item for item in single.graph.initializer}
    codes, scales = held["w_fp8"], held["w_scale"]
    plain = ir.from_proto(codes).numpy().astype(np.float32)
    spread = onnx.numpy_helper.to_array(scales)
    wide = plain * spread.reshape(_spread(single, plain.ndim, spread))
    before = model(text, w=wide)
    wanted = outputs(ir.from_proto(before), {"x": whole})["y"]
    found = outputs(ir.from_proto(made), feed)["y"]
    near(found, wanted, 2e-4)
    if len(channels) == 16:  # with some, errors of the others may have made good what is gone now
        truth, one = (outputs(ir.from_proto(before), {"x": each})["y"] for each in (feed["x"], high))
        assert np.square(found - truth).sum() < 0.02 * np.square(one - truth).sum()


def _spread(made: onnx.ModelProto, rank: int, scale: np.ndarray) -> tuple[int, ...]:
    """The shape that a weight's scales have beside it."""
    node = next(n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == "w_fp8")
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % rank
    return tuple(scale.size if index == axis else 1 for index in range(rank))


def test_a_weights_channels_are_repeated_one_sixteenth_as_large():
    draw = np.random.default_rng(0)
    codes = cast.encode(draw.standard_normal((6, 4)).astype(np.float32) * 100, E4M3)
    longer = widened(codes, np.array([4, 1]), 0, E4M3)
    values = cast.decode(codes, E4M3)
    assert np.array_equal(longer[:6], codes)
    assert np.array_equal(cast.decode(longer[6:], E4M3), values[[4, 1]] / 16)
    tiny = cast.encode(np.full((2, 1), 0.017, np.float32), E4M3)  # a sixteenth of it is subnormal: rounded once more
    assert np.array_equal(
        cast.decode(widened(tiny, np.array([0]), 0, E4M3), E4M3)[2], coded(cast.decode(tiny, E4M3)[0] / 16)
    )


BOTH = """(float[2,4,16] x, float[2,16,8] z) => (float[2,4,8] y) { y = MatMul(x, z) }"""


@pytest.mark.parametrize("slots", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("channels", [([1, 7], [0, 1, 9]), (list(range(16)),) * 2], ids=["some", "all"])
def test_of_two_activations_either_or_both_may_be_in_two_terms(slots, channels):
    proto = model(BOTH)
    picked = {slot: channels[slot] for slot in slots}
    plan, made, feed = split(proto, {("y", slot): picked[slot] for slot in slots})
    onnx.checker.check_model(made, full_check=True)
    scales = {slot: plan.ops["y"].inputs[slot].scale.value for slot in (0, 1)}
    exact, axes = {0: feed["x"], 1: feed["z"]}, {0: -1, 1: -2}
    high = {slot: coded(exact[slot], scales[slot]) for slot in (0, 1)}
    wanted = (high[0] @ high[1]).astype(np.float64)
    for slot in slots:
        at = picked[slot]
        lost = np.take(exact[slot] - high[slot], at, axes[slot])
        again = np.take(exact[1 - slot], at, axes[1 - slot])
        parts = {slot: coded(16 * lost, scales[slot]), 1 - slot: coded(again / 16, scales[1 - slot])}
        wanted += parts[0].astype(np.float64) @ parts[1]
    found = outputs(ir.from_proto(made), feed)["y"]
    near(found, wanted, 1e-5)
    errors = [np.square(each - exact[0] @ exact[1]).sum() for each in (found, high[0] @ high[1])]
    if len(slots) == 2 and len(channels[0]) == 16:
        assert errors[0] < 0.01 * errors[1]


SHARED = """(float[3,16] x, float[16,8] w_a, float[16,8] w_b, float[8,8] w_c)
    => (float[3,8] y, float[3,8] z, float[3,8] c) {
    y = MatMul(x, w_a) z = MatMul(x, w_b) c = MatMul(y, w_c) }"""


def test_readers_of_one_tensor_choose_apart_and_one_pair_serves_both():
    proto = model(SHARED)
    _, made, feed = split(proto, {("y", 0): [1, 2], ("z", 0): [2, 5, 6]})
    plain = fp8graph.optimize(proto, data=feeds(proto, 2), target="reference", compare=False).model
    truth, before, after = (outputs(ir.from_proto(each), feed) for each in (proto, plain, made))
    for name in ("y", "z"):
        assert np.square(after[name] - truth[name]).sum() < np.square(before[name] - truth[name]).sum()
    reading = [node for node in made.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x"]
    assert len(reading) == 1


def test_of_a_weight_that_two_ops_read_one_has_longer_codes():
    text = """(float[3,16] x, float[3,16] z, float[16,8] w) => (float[3,8] y, float[3,8] v) {
        y = MatMul(x, w) v = MatMul(z, w) }"""
    _, made, feed = split(model(text), {("y", 0): [0, 3]})
    sizes = sorted(tuple(item.dims) for item in made.graph.initializer if item.name.startswith("w_fp8"))
    assert sizes == [(16, 8), (18, 8)]
    plain = fp8graph.optimize(model(text), data=feeds(model(text), 2), target="reference", compare=False).model
    one, other = (outputs(ir.from_proto(each), feed)["v"] for each in (made, plain))
    assert np.array_equal(one, other)


def test_in_a_model_in_fp16_the_terms_are_too():
    proto = model("(float16[3,16] x, float16[16,8] w) => (float16[3,8] y) { y = MatMul(x, w) }")
    _, made, feed = split(proto, {("y", 0): list(range(16))})
    onnx.checker.check_model(made, full_check=True)
    plain = fp8graph.optimize(proto, data=feeds(proto, 2), target="reference", compare=False).model
    truth = feed["x"].astype(np.float64) @ onnx.numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float64)
    found, before = (outputs(ir.from_proto(each), feed)["y"] for each in (made, plain))
    assert found.dtype == np.float16
    assert np.square(found - truth).sum() < np.square(before - truth).sum()


def test_of_an_activation_of_unknown_rank_the_channels_are_found():
    text = """(float[2,4,16] x, float[r] like, int64[k] s) => (float[n,m,p] y) {
        t = Reshape(like, s) y = MatMul(x, t) }"""
    proto = model(text)
    draw = np.random.default_rng(0)
    feed = {
        "x": draw.standard_normal((2, 4, 16)).astype(np.float32),
        "like": draw.standard_normal(256).astype(np.float32),
        "s": np.array([2, 16, 8]),
    }
    plan = fp8graph.optimize(proto, data=[feed], target="reference", plan_only=True, fp8_everywhere=True).plan
    assert plan.ops["y"].do == "quantize", plan.ops["y"].why.text
    every = list(range(16))
    made = fp8graph.optimize(proto, plan=with_terms(proto, plan, {("y", 0): every, ("y", 1): every})).model
    plain = fp8graph.optimize(proto, plan=plan).model
    truth, before, after = (outputs(ir.from_proto(each), feed)["y"] for each in (proto, plain, made))
    assert np.square(after - truth).sum() < 0.01 * np.square(before - truth).sum()


def test_another_weight_is_refused():
    proto = model(ONE["MatMul"][0])
    plan, _, _ = split(proto, {("y", 0): [1]})
    with refused(InputError, "FG110", "split-terms", "another weight"):
        fp8graph.optimize(model(ONE["MatMul"][0], seed=5), plan=plan)


def test_its_share_is_an_option():
    assert registry.create("split-terms", {"share": 0.25}) == SplitTerms(share=0.25)
    with pytest.raises(fp8graph.Fp8GraphError, match="share"):
        registry.create("split-terms", {"share": 2.0})
