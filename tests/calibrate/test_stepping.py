"""A model run piece by piece yields what it yields as a whole, whatever its shape, and holds no more than it needs."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph.calibrate.stepping import Steps, each
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types
from fp8graph.testing import corpus, outputs
from tests.small import CONCAT, feeds, model

SKIP = """(float[2,16] x, float[16,16] w_a, float[16,16] w_b, float[16,16] w_c) => (float[2,16] y, float[2,16] a) {
    a = MatMul(x, w_a) r = Relu(a) b = MatMul(r, w_b) s = Add(b, x) t = Sigmoid(s) c = MatMul(t, w_c)
    u = Add(c, r) y = Mul(u, a) }"""
PAIRS = """(float[2,16] x, float[16,16] w_a, float[16,8] w_b) => (float[2,8] y) <float s = {0.03125}> {
    q = QuantizeLinear <output_dtype = 17> (x, s) d = DequantizeLinear (q, s) a = MatMul(d, w_a)
    p = QuantizeLinear <output_dtype = 17> (a, s) e = DequantizeLinear (p, s) y = MatMul(e, w_b) }"""
MODELS: dict[str, tuple[onnx.ModelProto, list[list[str]]]] = {
    "skips": (model(SKIP), [["x"], ["r"], ["t"], ["u", "y"]]),
    "read again much later": (model(SKIP), [["a"], ["s"], ["b", "a"], ["y"]]),
    "in one": (model(SKIP), [["y", "b", "x"]]),
    "branches that join": (model(CONCAT), [["x"], ["f"], ["c", "g"], ["y", "z"]]),
    "codes between": (model(PAIRS), [["d"], ["e"], ["y"]]),
    "an If that reads from outside": (corpus()["if_captured"], []),
    "a Loop": (corpus()["loops"], []),
}


def typed(proto: onnx.ModelProto) -> ir.Model:
    """The model as it is behind normalizing: types are known."""
    work = load(proto).model
    infer_types(work)
    return work


def pieces(name: str) -> tuple[onnx.ModelProto, list[list[str]]]:
    """A model, and the tensors of each piece: where none are named, each node's of the main graph in turn."""
    proto, wanted = MODELS[name]
    if wanted:
        return proto, wanted
    nodes = [[out for out in node.output if out] for node in proto.graph.node]
    floats = {v.name for v in (*onnx.shape_inference.infer_shapes(proto).graph.value_info, *proto.graph.output)
              if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}  # fmt: skip
    return proto, [kept for names in nodes if (kept := [item for item in names if item in floats])]


def whole(proto: onnx.ModelProto, names: list[str], feed: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of one run of the whole model."""
    copy = typed(proto)
    known = {value.name: value for node in copy.graph for value in node.outputs}
    have = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(known[name] for name in dict.fromkeys(names) if name in known and name not in have)
    return {**feed, **outputs(copy, feed, by_reference=False)}


def alike(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for how ONNX Runtime fuses what it is given."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


def stepwise(proto: onnx.ModelProto, wanted: list[list[str]], data: list[dict[str, Any]]) -> list[list[Any]]:
    """What each piece yields of each sample, and what was left behind it."""
    steps = Steps([dict(feed) for feed in data])
    found = []
    for number, names in enumerate(wanted):
        later = [name for behind in wanted[number + 1 :] for name in behind]
        steps.prepare(typed(proto), names, later)
        found.append([steps.run(index) for index in range(len(data))])
    assert not any(steps.left)  # behind the last piece nothing is held
    return found


@pytest.mark.parametrize("name", MODELS)
def test_pieces_yield_what_the_whole_model_does(name):
    proto, wanted = pieces(name)
    assert wanted
    data = feeds(proto, 3)
    every = [item for names in wanted for item in names]
    truth = [whole(proto, every, feed) for feed in data]
    for names, found in zip(wanted, stepwise(proto, wanted, data), strict=True):
        for one, held in zip(found, truth, strict=True):
            assert set(one) == set(names)
            for item in names:
                alike(one[item], held[item])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    cuts=st.lists(st.sampled_from(["x", "a", "r", "b", "s", "t", "c", "u", "y"]), min_size=1, max_size=5, unique=True)
)
def test_any_tensors_in_the_order_of_the_graph_may_be_asked_for(cuts):
    order = "xarbstcuy"
    wanted = [[name] for name in sorted(cuts, key=order.index)]
    proto = model(SKIP)
    data = feeds(proto, 2)
    truth = [whole(proto, cuts, feed) for feed in data]
    for (name,), found in zip(wanted, stepwise(proto, wanted, data), strict=True):
        for one, held in zip(found, truth, strict=True):
            alike(one[name], held[name])


def test_each_node_runs_once_over_all_pieces():
    """Else a model of many layers would cost as many runs."""
    proto, wanted = pieces("skips")
    steps = Steps(feeds(proto, 1))
    ran: list[str] = []
    for number, names in enumerate(wanted):
        work = typed(proto)
        steps.prepare(work, names, [name for behind in wanted[number + 1 :] for name in behind])
        if steps._runner is not None:
            ran += [node.outputs[0].name or "" for node in work.graph]
        steps.run(0)
    assert sorted(ran) == sorted({*ran}) == sorted("arbstcuy")


def test_only_what_a_later_piece_reads_is_held():
    proto, wanted = pieces("skips")
    steps = Steps(feeds(proto, 1))
    held = []
    for number, names in enumerate(wanted):
        steps.prepare(typed(proto), names, [name for behind in wanted[number + 1 :] for name in behind])
        steps.run(0)
        held.append(set(steps.left[0]))
    assert held == [{"x"}, {"x", "r", "a"}, {"r", "a", "t"}, set()]


def test_codes_are_not_held_but_found_anew():
    proto, wanted = pieces("codes between")
    steps = Steps(feeds(proto, 1))
    for number, names in enumerate(wanted):
        steps.prepare(typed(proto), names, [name for behind in wanted[number + 1 :] for name in behind])
        steps.run(0)
        assert not {"q", "d", "p", "e"} & set(steps.left[0])


def test_samples_come_in_order_and_few_are_held():
    begun, lock = [0], threading.Lock()

    def one(index: int) -> int:
        with lock:
            begun[0] += 1
        return index

    most = 0
    for number, found in enumerate(each(100, one)):
        assert found == number
        most = max(most, begun[0] - number)
    assert begun[0] == 100 and most < 20
    assert list(each(0, one)) == []
    with pytest.raises(ZeroDivisionError):
        list(each(9, lambda index: 1 // (index - 5)))
