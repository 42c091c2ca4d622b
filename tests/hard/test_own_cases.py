"""Hard models made here, each with one thing that breaks quantisers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import fp8graph
from fp8graph import InputError, UnmetError
from fp8graph.flow import Optimized
from fp8graph.numerics.ranges import Ranges, Stat
from fp8graph.testing.models import from_text
from tests.hard.judging import fp8_products, interface, outputs, products, session, sqnr
from tests.small import feeds, refused

HEAD = '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>\n'
LOCAL = '<domain: "local", opset_import: ["" : 21]>\n'


def optimized(proto: onnx.ModelProto, given: list[dict[str, Any]], floor: float = 18.0, **asked: Any) -> Optimized:
    """The model in FP8: its interface is the same, ONNX Runtime computes it, and no output lies far from what it was."""
    was = proto.SerializeToString(deterministic=True)
    done = fp8graph.optimize(proto, data=given, **asked)
    assert proto.SerializeToString(deterministic=True) == was
    assert done.comparison is not None and done.comparison.problems == ()
    assert interface(done.model) == interface(proto)
    onnx.checker.check_model(done.model)
    first = outputs(session(proto.SerializeToString()), given)
    second = outputs(session(done.model.SerializeToString()), given)
    for name, arrays in first.items():
        if arrays[0].dtype.kind == "f":
            assert sqnr(arrays, second[name]) > floor, name
    return done


# Text, products in FP8, and what is special.
WEIGHTS: dict[str, tuple[str, int]] = {
    "shared by two axes": (
        """m (float[N,16] x, float[16,16] w) => (float[N,16] y, float[N,16] z) {
            y = MatMul(x, w) z = Gemm <transB = 1> (x, w)
        }""",
        2,
    ),
    "tied to an embedding": (
        """m (int64[N] ids, float[24,16] w) => (float[N,24] y, float[N,16] e) {
            e = Gather(w, ids) t = Transpose <perm = [1, 0]> (w) y = MatMul(e, t)
        }""",
        1,
    ),
    "transposed, reshaped and sliced": (
        """m (float[N,16] x, float[32,16] w_a, float[256] w_b) => (float[N,16] y)
        <int64[2] square = {16, 16}, int64[1] zero = {0}, int64[1] half = {16}> {
            cut = Slice(w_a, zero, half, zero) t = Transpose <perm = [1, 0]> (cut) h = MatMul(x, t)
            r = Reshape(w_b, square) y = MatMul(h, r)
        }""",
        2,
    ),
    "on the left": (
        """m (float[16,N] x, float[8,16] w) => (float[8,N] y) { y = MatMul(w, x) }""",
        1,
    ),
    "on the left in a batch": (
        """m (float[3,16,5] x, float[3,8,16] w) => (float[3,8,5] y) { y = MatMul(w, x) }""",
        1,
    ),
    "on both sides": ("""m (float[N,16] x, float[N,16,4] z) => (float[N,N,4] y) { y = MatMul(x, z) }""", 1),
    "a constant product": (
        """m (float[N,16] x, float[16,8] w_a, float[8,16] w_b) => (float[N,16] y) {
            w = MatMul(w_a, w_b) y = MatMul(x, w)
        }""",
        1,
    ),
    "behind Constant nodes and Identity": (
        """m (float[N,16] x, float[16,16] w) => (float[N,16] y) {
            i = Identity(w) j = Identity(i) h = MatMul(x, j) k = Identity(j) y = MatMul(h, k)
        }""",
        2,
    ),
    "captured by bodies of If, Loop and Scan": (
        """m (float[2,16] x, float[3,2,16] steps, bool which, float[16,16] w) => (float[2,16] y, float[3,2,16] s)
        <int64 trips = {2}, bool yes = {1}> {
            h = MatMul(x, w)
            c = If (which) <
                then_branch = a () => (float[2,16] a_out) { a_out = MatMul(h, w) },
                else_branch = b () => (float[2,16] b_out) { b_in = Tanh(h) b_out = MatMul(b_in, w) }>
            y = Loop (trips, yes, c) <body = step (int64 i, bool go, float[2,16] v) => (bool goes, float[2,16] next) {
                goes = Identity(go) next_in = MatMul(v, w) next = Tanh(next_in) }>
            last, s = Scan <num_scan_inputs = 1, body = cell (float[2,16] p, float[2,16] t) => (float[2,16] q, float[2,16] o) {
                o = MatMul(t, w) sum = Add(p, o) q = Tanh(sum) }> (x, steps)
        }""",
        5,
    ),
    "of bodies of their own": (
        """m (float[2,16] x, bool which) => (float[2,16] y) <int64 trips = {2}, bool yes = {1}> {
            c = If (which) <
                then_branch = a () => (float[2,16] a_out) <float[16,16] w_own> { a_out = MatMul(x, w_own) },
                else_branch = b () => (float[2,16] b_out) <float[16,16] w_own> { b_out = MatMul(x, w_own) }>
            y = Loop (trips, yes, c) <body = step (int64 i, bool go, float[2,16] v) => (bool goes, float[2,16] next)
                <float[16,16] w_loop> { goes = Identity(go) m = MatMul(v, w_loop) next = Tanh(m) }>
        }""",
        3,
    ),
    "of a function called twice": (
        f"""m (float[N,16] x, float[16,16] w_a, float[16,16] w_b) => (float[N,16] y) {{
            h = local.Dense(x, w_a) y = local.Dense(h, w_b)
        }}
        {LOCAL} Dense (a, w) => (b) {{ p = MatMul(a, w) b = Tanh(p) }}""",
        2,
    ),
    "of a function inside a function inside a body": (
        f"""m (float[N,16] x, bool which, float[16,16] w) => (float[N,16] y) {{
            y = If (which) <then_branch = a () => (float[N,16] a_out) {{ a_out = local.Outer(x, w) }},
                            else_branch = b () => (float[N,16] b_out) {{ b_out = Relu(x) }}>
        }}
        {LOCAL} Outer (a, w) => (b) {{ p = local.Dense(a, w) b = local.Dense(p, w) }}
        {LOCAL} Dense (a, w) => (b) {{ p = MatMul(a, w) b = Tanh(p) }}""",
        2,
    ),
    "of nodes that are not sorted": (
        """m (float[N,16] x, float[16,16] w_a, float[16,16] w_b) => (float[N,16] y) {
            y = MatMul(r, w_b) r = Relu(h) h = MatMul(x, w_a)
        }""",
        2,
    ),
    "beside a head that is a graph output": (
        """m (float[N,16] x, float[16,16] w) => (float[16,16] w, float[N,16] h, float[N,16] y) {
            h = MatMul(x, w) y = MatMul(h, w)
        }""",
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "count"), WEIGHTS.values(), ids=list(WEIGHTS))
def test_weights_are_quantised_wherever_they_lie(text, count):
    proto = from_text(HEAD + text)
    given = feeds(proto, 6)
    for index, feed in enumerate(given):
        feed.update({name: np.array(bool(index % 2)) for name in feed if name == "which"})
    done = optimized(proto, given)
    assert len(fp8_products(done.model)) == count == len(products(done.model))


def test_the_interface_of_ir_version_3_keeps_its_inputs(tmp_path):
    """Every initialiser is an input there; nobody gives data for it, and it stays no input."""
    proto = from_text(HEAD + "m (float[2,16] x, float[16,16] w) => (float[2,16] y) { y = MatMul(x, w) }")
    proto.ir_version, proto.opset_import[0].version = 3, 9
    del proto.opset_import[1:]
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 16]))
    done = optimized(proto, [{"x": np.ones((2, 16), np.float32)}])
    assert [item.code for item in done.findings] == ["FG219"] and done.planned == 1
    assert [value.name for value in done.model.graph.input] == ["x"]


def sparse(name: str, *shape: int) -> onnx.SparseTensorProto:
    flat = np.arange(0, math.prod(shape), 3, dtype=np.int64)
    made = onnx.SparseTensorProto(dims=shape)
    made.values.CopyFrom(numpy_helper.from_array(np.cos(flat).astype(np.float32), name))
    made.indices.CopyFrom(numpy_helper.from_array(flat, f"{name}_indices"))
    return made


def test_sparse_initialisers_are_quantised_or_stay_sparse():
    """In the main graph and in a body; the bias is no operand and is sparse again in the result."""
    text = """m (float[2,16] x, bool which, float[16,16] w) => (float[2,16] y) {
        p = MatMul(x, w) h = Add(p, w)
        y = If (which) <then_branch = a () => (float[2,16] a_out) { r = Relu(h) a_out = MatMul(r, w) },
                        else_branch = b () => (float[2,16] b_out) { b_out = Relu(h) }>
    }"""
    proto = from_text(HEAD + text)
    branch = proto.graph.node[2].attribute[0].g
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.extend([sparse("weight", 16, 16), sparse("bias", 16)])
    branch.sparse_initializer.append(sparse("inner", 16, 16))
    proto.graph.node[0].input[1], proto.graph.node[1].input[1], branch.node[1].input[1] = "weight", "bias", "inner"
    done = optimized(proto, [{"x": x["x"], "which": np.array(True)} for x in feeds(proto)])
    assert len(fp8_products(done.model)) == 2
    assert [item.values.name for item in done.model.graph.sparse_initializer] == ["bias"]
    assert done.model.graph.sparse_initializer[0] == proto.graph.sparse_initializer[1]
    assert "bias" not in {tensor.name for tensor in done.model.graph.initializer}


def test_a_sparse_constant_is_a_weight():
    proto = from_text(HEAD + "m (float[2,16] x, float[16,16] w) => (float[2,16] y) { y = MatMul(x, w) }")
    del proto.graph.initializer[:]
    node = proto.graph.node.add(op_type="Constant", output=["w"])
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(
        sparse("", 16, 16)
    )
    proto.graph.node.insert(0, proto.graph.node.pop())
    assert len(fp8_products(optimized(proto, feeds(proto)).model)) == 1


def test_nodes_of_one_name_are_told_apart():
    """ONNX Runtime refuses two nodes of one name in a graph: it is valid ONNX, and the result loads."""
    text = "m (float[2,16] x, float[16,16] w) => (float[2,16] y) { [n] a = MatMul(x, w) [n] b = Relu(a) [n] y = MatMul(b, w) }"
    proto = from_text(HEAD + text)
    with pytest.raises(Exception, match="not unique|same"):
        session(proto.SerializeToString())
    done = fp8graph.optimize(proto, data=feeds(proto))
    assert done.comparison is not None and done.comparison.problems == ()
    assert [node.name for node in products(done.model)] == ["n", "n_2"]
    session(done.model.SerializeToString())
