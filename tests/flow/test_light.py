"""The repairs of the default recipe: those that cost nothing at run time, as far as they take little time to learn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.data import recipe as recipes
from fp8graph.flow.learning import FULL, LIGHT
from fp8graph.numerics.ranges import Ranges, Stat
from tests.learned import images, network, sqnr
from tests.small import model

HOW = {"batch": 16, "target": "reference", "compare": False}
BARE = "(float[n,{k}] x, float[{k},16] w_a, float[16,16] w_b) => (float[n,16] y) {{ h = MatMul(x, w_a) y = {y} }}"


def found(done: fp8graph.Optimized) -> dict[str, set[str]]:
    """What repairs have found, by op."""
    return {key: {item.kind for item in op.adjust} for key, op in done.plan.ops.items() if op.adjust}


def said(done: fp8graph.Optimized, code: str) -> list[str]:
    return [item.text for item in done.findings if item.code == code]


def rows(columns: int, count: int = 512) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(columns)
    mixed = draw.standard_normal((count, 12)) @ draw.standard_normal((12, columns))
    return {"x": mixed.astype(np.float32)}


# 1.7 dB were measured.
def test_the_default_recipe_repairs_where_there_are_samples():
    proto = network(3)
    plain = fp8graph.optimize(
        proto, data=images(192, 1), recipe=replace(recipes.load("fp8-default"), repairs=()), **HOW
    )
    done = fp8graph.optimize(proto, data=images(192, 1), **HOW)
    assert not found(plain) and set().union(*found(done).values()) == {"codes", "bias"}
    assert sqnr(proto, done) > sqnr(proto, plain) + 1.0
    assert [node.op_type for node in plain.model.graph.node] == [node.op_type for node in done.model.graph.node]


def test_without_samples_it_repairs_nothing_and_says_so_where_they_would_have_been_there(tmp_path):
    proto = network(1)
    how = {"target": "reference"}
    fp8graph.calibrate(proto, data=images(192, 1), output=tmp_path / "r.json", **how)
    seen = fp8graph.optimize(proto, ranges=tmp_path / "r.json", compare=False, **how)
    random = fp8graph.optimize(proto, data="random", samples=8, **HOW)
    assert not found(seen) and not found(random)
    assert said(seen, "FG240") and not said(random, "FG240")


@pytest.mark.parametrize(
    ("columns", "y", "solved", "count"),
    [
        (64, "MatMul(h, w_b)", {"h", "y"}, None),
        (3200, "MatMul(h, w_b)", {"y"}, "1 of 2"),
        (3200, "Relu(h)", set(), "1 of 1"),
    ],
    ids=["narrow", "one is wide", "all are wide"],
)
def test_wide_weights_are_left_out_and_it_is_said(columns, y, solved, count):
    done = fp8graph.optimize(model(BARE.format(k=columns, y=y)), data=rows(columns), **HOW)
    assert set(found(done)) == solved
    told = said(done, "FG247")
    assert not told if count is None else [count in text for text in told] == [True]


def test_of_a_large_model_nothing_is_learned():
    proto = model("(float[n,64] x, float[64,300000] w) => (float[n,300000] y) { y = MatMul(x, w) }")
    done = fp8graph.optimize(proto, data=rows(64, 9), **{**HOW, "batch": 1})
    assert not found(done) and ["1 of 1" in text for text in said(done, "FG247")] == [True]


@pytest.mark.slow
def test_repairs_that_are_named_leave_nothing_out():
    proto = model(BARE.format(k=3200, y="MatMul(h, w_b)"))
    done = fp8graph.optimize(proto, data=rows(3200), passes="reconstruct-weights", **HOW)
    assert set(found(done)) == {"h", "y"} and not said(done, "FG247")


def test_a_repair_that_is_named_too_has_the_options_that_it_is_named_with():
    proto, name, how = network(3), "reconstruct-weights", {**HOW, "batch": 8}
    same, other = (
        fp8graph.optimize(proto, data=images(192, 1), passes=passes, **how) for passes in (name, f"{name}{{ridge=1}}")
    )
    assert found(same) == found(other) and found(same)["b"] == {"codes", "bias"}
    assert any(not np.array_equal(array, other.plan.arrays[name]) for name, array in same.plan.arrays.items())
    assert all(len({item.kind for item in op.adjust}) == len(op.adjust) for op in other.plan.ops.values())


def test_data_may_come_in_another_order_each_time():
    draw, feeds = np.random.default_rng(0), [{"x": image[None]} for image in images(96, 1)["x"]]

    def shuffled():
        return iter([feeds[index] for index in draw.permutation(len(feeds))])

    how = {"target": "reference", "compare": False}
    assert found(fp8graph.optimize(network(3), data=shuffled, **how))


def test_an_input_with_a_value_of_its_own_is_fed_now_and_then():
    proto = onnx.ModelProto()
    proto.CopyFrom(model(BARE.format(k=64, y="MatMul(h, w_b)")))
    bias = onnx.numpy_helper.from_array(np.ones(64, np.float32), "s")
    proto.graph.initializer.append(bias)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [64]))
    proto.graph.node.insert(0, onnx.helper.make_node("Mul", ["x", "s"], ["m"]))
    proto.graph.node[1].input[0] = "m"
    fed = [{"x": row[None]} | ({"s": row[:64]} if index % 3 else {}) for index, row in enumerate(rows(64, 96)["x"])]
    assert found(fp8graph.optimize(proto, data=fed, target="reference", compare=False))


def test_samples_are_as_many_as_their_tensors_leave_room_for():
    def of(elements: int, samples: int = 10) -> Ranges:
        values = {str(index): Stat(count=elements * samples, min=0.0, max=1.0) for index in range(3)}
        return Ranges("", "", samples, {}, values)

    # Two models of three tensors in float32.
    assert LIGHT.samples_of(of(math.floor(LIGHT.bytes / (2 * 3 * 4 * 20)))) == 20
    assert LIGHT.samples_of(of(1)) == LIGHT.samples == 64 and LIGHT.samples_of(None) == 16
    assert LIGHT.samples_of(of(1 << 30)) == 4  # so that one can be held back
    assert FULL.samples_of(of(1 << 30)) == 256
