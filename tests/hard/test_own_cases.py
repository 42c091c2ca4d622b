"""Hard models made here, each with one thing that breaks quantisers."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx
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
LOCAL = '<domain: "local", opset_import: ["" : 21, "local" : 1]>\n'


def optimized(proto: onnx.ModelProto, given: list[dict[str, Any]], floor: float = 18.0, **asked: Any) -> Optimized:
    """The model in FP8: its interface is the same, ONNX Runtime computes it, no output lies far from what it was."""
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
        """m (float[N,16] x, float[16,16] w_0) => (float[N,16] y, float[N,16] z) {
            y = MatMul(x, w_0) z = Gemm <transB = 1> (x, w_0)
        }""",
        2,
    ),
    "tied to an embedding": (
        """m (int64[N] ids, float[24,16] w_0) => (float[N,24] y, float[N,16] e) {
            e = Gather(w_0, ids) t = Transpose <perm = [1, 0]> (w_0) y = MatMul(e, t)
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
        """m (float[16,N] x, float[8,16] w_0) => (float[8,N] y) { y = MatMul(w_0, x) }""",
        1,
    ),
    "on the left in a batch": (
        """m (float[3,16,5] x, float[3,8,16] w_0) => (float[3,8,5] y) { y = MatMul(w_0, x) }""",
        1,
    ),
    "on both sides": ("""m (float[N,16] x, float[N,16,4] z) => (float[N,N,4] y) { y = MatMul(x, z) }""", 1),
    "a constant product": (
        """m (float[N,16] x, float[16,8] w_a, float[8,16] w_b) => (float[N,16] y) {
            w_0 = MatMul(w_a, w_b) y = MatMul(x, w_0)
        }""",
        1,
    ),
    "behind Constant nodes and Identity": (
        """m (float[N,16] x, float[16,16] w_0) => (float[N,16] y) {
            i = Identity(w_0) j = Identity(i) h = MatMul(x, j) k = Identity(j) y = MatMul(h, k)
        }""",
        2,
    ),
    "captured by bodies of If, Loop and Scan": (
        """m (float[2,16] x, float[3,2,16] steps, bool which, float[16,16] w_0) => (float[2,16] y, float[3,2,16] s)
        <int64 trips = {2}, bool yes = {1}> {
            h = MatMul(x, w_0)
            c = If (which) <
                then_branch = a () => (float[2,16] a_out) { a_out = MatMul(h, w_0) },
                else_branch = b () => (float[2,16] b_out) { b_in = Tanh(h) b_out = MatMul(b_in, w_0) }>
            y = Loop (trips, yes, c) <body = step (int64 i, bool go, float[2,16] v) => (bool goes, float[2,16] next) {
                goes = Identity(go) next_in = MatMul(v, w_0) next = Tanh(next_in) }>
            last, s = Scan <num_scan_inputs = 1, body = cell (float[2,16] p, float[2,16] t)
                => (float[2,16] q, float[2,16] o) { o = MatMul(t, w_0) sum = Add(p, o) q = Tanh(sum) }> (x, steps)
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
        {LOCAL} Dense (a, w_0) => (b) {{ p = MatMul(a, w_0) b = Tanh(p) }}""",
        2,
    ),
    "of a function inside a function inside a body": (
        f"""m (float[N,16] x, bool which, float[16,16] w_0) => (float[N,16] y) {{
            y = If (which) <then_branch = a () => (float[N,16] a_out) {{ a_out = local.Outer(x, w_0) }},
                            else_branch = b () => (float[N,16] b_out) {{ b_out = Relu(x) }}>
        }}
        {LOCAL} Outer (a, w_0) => (b) {{ p = local.Dense(a, w_0) b = local.Dense(p, w_0) }}
        {LOCAL} Dense (a, w_0) => (b) {{ p = MatMul(a, w_0) b = Tanh(p) }}""",
        2,
    ),
    "of nodes that are not sorted": (
        """m (float[N,16] x, float[16,16] w_a, float[16,16] w_b) => (float[N,16] y) {
            y = MatMul(r, w_b) r = Relu(h) h = MatMul(x, w_a)
        }""",
        2,
    ),
    "beside a head that is a graph output": (
        """m (float[N,16] x, float[16,16] w_0) => (float[16,16] w_0, float[N,16] h, float[N,16] y) {
            h = MatMul(x, w_0) y = MatMul(h, w_0)
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
    proto = from_text(HEAD + "m (float[2,16] x, float[16,16] w_0) => (float[2,16] y) { y = MatMul(x, w_0) }")
    proto.ir_version, proto.opset_import[0].version = 3, 9
    del proto.opset_import[1:]
    proto.graph.input.append(helper.make_tensor_value_info("w_0", TensorProto.FLOAT, [16, 16]))
    done = optimized(proto, [{"x": np.ones((2, 16), np.float32)}])
    assert [item.code for item in done.findings] == ["FG219", "FG240"] and done.planned == 1
    assert [value.name for value in done.model.graph.input] == ["x"]


def sparse(name: str, *shape: int) -> onnx.SparseTensorProto:
    flat = np.arange(0, math.prod(shape), 3, dtype=np.int64)
    made = onnx.SparseTensorProto(dims=shape)
    made.values.CopyFrom(numpy_helper.from_array(np.cos(flat).astype(np.float32), name))
    made.indices.CopyFrom(numpy_helper.from_array(flat, f"{name}_indices"))
    return made


def test_sparse_initialisers_are_quantised_or_stay_sparse():
    """In the main graph and in a body; the bias is no operand and is sparse again in the result."""
    text = """m (float[2,16] x, bool which, float[16,16] w_0) => (float[2,16] y) {
        p = MatMul(x, w_0) h = Add(p, w_0)
        y = If (which) <then_branch = a () => (float[2,16] a_out) { r = Relu(h) a_out = MatMul(r, w_0) },
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
    proto = from_text(HEAD + "m (float[2,16] x, float[16,16] w_0) => (float[2,16] y) { y = MatMul(x, w_0) }")
    del proto.graph.initializer[:]
    node = proto.graph.node.add(op_type="Constant", output=["w_0"])
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(
        sparse("", 16, 16)
    )
    proto.graph.node.insert(0, proto.graph.node.pop())
    assert len(fp8_products(optimized(proto, feeds(proto)).model)) == 1


def test_nodes_of_one_name_are_told_apart():
    """ONNX Runtime refuses two nodes of one name in a graph: it is valid ONNX, and the result loads."""
    proto = from_text(
        HEAD + "m (float[2,16] x, float[16,16] w_0) => (float[2,16] y) "
        "{ [n] a = MatMul(x, w_0) [n] b = Relu(a) [n] y = MatMul(b, w_0) }"
    )
    with pytest.raises(Exception, match="two nodes with same node name"):
        session(proto.SerializeToString())
    done = fp8graph.optimize(proto, data=feeds(proto))
    assert done.comparison is not None and done.comparison.problems == ()
    assert [node.name for node in products(done.model)] == ["n", "n_2"]
    session(done.model.SerializeToString())


VENDOR = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1, "acme" : 1]>\n'


@pytest.mark.parametrize("high", [None, "fp16"])
def test_types_behind_vendor_ops_are_asked_of_the_runtime(high):
    """onnx infers nothing behind BiasGelu; a product whose operand has no known type could not be quantised."""
    proto = from_text(
        VENDOR + "m (float[N,16] x, float[16] w_b, float[16,16] w_0, float[16,16] w_1) => (float[N,16] y) "
        "{ h = MatMul(x, w_0) g = com.microsoft.BiasGelu(h, w_b) r = Relu(g) y = MatMul(r, w_1) }"
    )
    done = optimized(proto, feeds(proto), high_precision_dtype=high)
    assert done.planned == 2 and [node.domain for node in done.model.graph.node].count("com.microsoft") == 1
    assert {item.domain for item in done.model.opset_import} == {"", "com.microsoft", "acme"}


def test_an_operator_without_its_library_is_told_what_to_give():
    proto = from_text(
        VENDOR + "m (float[N,16] x, float[16,16] w_0, float[16,16] w_1) => (float[N,16] y) "
        "{ h = MatMul(x, w_0) g = acme.Bend(h) y = MatMul(g, w_1) }"
    )
    with refused(InputError, "FG133", "acme:Bend", "--custom-ops"):
        fp8graph.optimize(proto, data=feeds(proto))
    with refused(InputError, "FG133", "a library of custom operators cannot be loaded", "none.so"):
        fp8graph.optimize(proto, data=feeds(proto), custom_ops=["none.so"])


def test_an_unknown_operator_is_a_boundary_where_no_run_is_needed():
    """With ranges nothing is run: Q/DQ stops at the operator, which stays as it is, attributes and all."""
    proto = from_text(
        VENDOR
        + "m (float[N,16] x, float[16,16] w_0, float[16,16] w_1) => (float[N,16] y) "
        "{ h = MatMul(x, w_0) g = acme.Bend <text = 'as is', ints = [3, 1]> (h) y = MatMul(g, w_1) }".replace("'", '"')
    )
    proto.graph.value_info.append(helper.make_tensor_value_info("g", TensorProto.FLOAT, ["N", 16]))
    seen = Stat.of(np.linspace(-2, 2, 9, dtype=np.float32))
    done = fp8graph.optimize(proto, ranges=Ranges("", "by hand", 1, {}, dict.fromkeys(("x", "h", "g"), seen)))
    bend = next(node for node in done.model.graph.node if node.op_type == "Bend")
    assert list(bend.attribute) == list(proto.graph.node[1].attribute) and list(bend.input) == ["h"]
    assert len(fp8_products(done.model)) == 2


def test_doubles_stay_and_floats_beside_them_are_quantised():
    text = "m (double[N,16] x, double[16,16] w_0, float[16,16] w_1) => (float[N,16] y) "
    proto = from_text(HEAD + text + "{ h = MatMul(x, w_0) c = Cast <to = 1> (h) y = MatMul(c, w_1) }")
    done = optimized(proto, feeds(proto))
    assert done.planned == 1 and done.plan.ops["h"].why.code == "FG215"
    with refused(UnmetError, "FG150", "DOUBLE"):
        fp8graph.optimize(proto, data=feeds(proto), nodes_to_exclude=["y"])


def held(proto: onnx.ModelProto, *names: str) -> list[bytes]:
    """Initialisers byte for byte."""
    by_name = {tensor.name: tensor.SerializeToString(deterministic=True) for tensor in proto.graph.initializer}
    return [by_name[name] for name in names]


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2])
def test_what_is_quantised_already_keeps_its_scales_and_the_rest_is_quantised(kind):
    text = """m (float[N,16] x, float[16,16] w_0, float[16,16] w_1) => (float[N,16] y) {
        q = QuantizeLinear(x, s, zero) d = DequantizeLinear(q, s, zero)
        wq = QuantizeLinear <axis = 1> (w_0, ws, wzero) wd = DequantizeLinear <axis = 1> (wq, ws, wzero)
        h = MatMul(d, wd) r = Relu(h) y = MatMul(r, w_1)
    }"""
    proto = from_text(HEAD + text)
    for name, shape in (("s", []), ("ws", [16])):
        number = np.full(shape, 0.01 if kind == TensorProto.INT8 else 0.005, np.float32)
        zero = TensorProto(name=name.replace("s", "zero"), data_type=kind, dims=shape, raw_data=bytes(max([1, *shape])))
        proto.graph.initializer.extend([numpy_helper.from_array(number, name), zero])
    done = optimized(proto, feeds(proto), floor=14)
    int8 = kind == TensorProto.INT8
    assert done.plan.ops["h"].why.code == "FG230" and done.planned == (1 if int8 else 2)
    came = [quant.scale.origin for quant in done.plan.ops["h"].inputs.values()]
    assert came == ([] if int8 else ["given", "given" if kind == TensorProto.FLOAT8E4M3FN else "computed"])
    if int8:
        assert held(done.model, "s", "ws") == held(proto, "s", "ws")
    # a weight behind Q is folded into its codes where they are FP8
    assert sum(node.op_type == "QuantizeLinear" for node in done.model.graph.node) == (3 if int8 else 2)
    again = fp8graph.optimize(done.model, allow_unquantized=True)  # nothing is left to be observed
    assert again.plan.ops["y"].inputs[0].scale.value == done.plan.ops["y"].inputs[0].scale.value
    with refused(UnmetError, "FG150", "FG230" if int8 else "FG203"):
        fp8graph.optimize(done.model, nodes_to_exclude=["y"] if int8 else ["y", "h"])


def test_strings_integers_and_booleans_come_in_as_they_are():
    text = """m (string[N] words, int32[N] ids, bool[N,1] mask, int64 offset, float[N,16] x, float[16,16] w_0)
        => (string[N] words_out, float[N,16] y, int64[N] best) <float zero = {0}> {
        words_out = Identity(words)
        wide = Cast <to = 7> (ids) moved = Add(wide, offset) row = Gather(w_0, moved)
        kept = Where(mask, x, zero) sum = Add(kept, row) y = MatMul(sum, w_0) best = ArgMax <axis = 1, keepdims = 0> (y)
    }"""
    proto = from_text(HEAD + text)
    given = feeds(proto)
    for feed in given:
        feed["words"], feed["offset"] = np.array(["a", "ßü"], object), np.array(1)
    done = optimized(proto, given)
    assert done.planned == 1
    assert done.comparison is not None and done.comparison.outputs["words_out"].equal


def test_samples_of_different_shapes_come_from_a_folder(tmp_path):
    proto = from_text(HEAD + "m (float[N,S,16] x, float[16,16] w_0) => (float[N,S,16] y) { y = MatMul(x, w_0) }")
    for index, shape in enumerate([(1, 3, 16), (2, 7, 16), (2, 7, 16), (5, 1, 16)]):
        np.savez(tmp_path / f"{index}.npz", x=np.full((1, *shape), index + 1, np.float32) * np.linspace(-1, 1, 16))
    with refused(InputError, "FG107", "'x' has type float64"):
        fp8graph.optimize(proto, data=tmp_path)
    for path in tmp_path.iterdir():
        np.savez(path, x=np.load(path)["x"].astype(np.float32))
    done = fp8graph.optimize(proto, data=tmp_path)
    profile = done.plan.shapes["x"]
    assert (profile.min, profile.opt, profile.max) == ((1, 1, 16), (2, 7, 16), (5, 7, 16))
    assert done.plan.ops["y"].inputs[0].scale.value == np.float32(4 / 448)
    assert done.comparison is not None and done.comparison.samples == 4 and not done.comparison.problems


def test_a_cache_of_past_keys_may_be_empty_at_first():
    text = """m (float[1,2,T,8] past, float[1,S,16] x, float[16,16] w_q, float[16,16] w_k, float[16,16] w_o)
        => (float[1,2,U,8] present, float[1,S,16] y) <int64[4] split = {1, -1, 2, 8}, int64[3] join = {1, -1, 16}> {
        q = MatMul(x, w_q) qs = Reshape(q, split) qt = Transpose <perm = [0, 2, 1, 3]> (qs)
        k = MatMul(x, w_k) ks = Reshape(k, split) kt = Transpose <perm = [0, 2, 1, 3]> (ks)
        present = Concat <axis = 2> (past, kt) pt = Transpose <perm = [0, 1, 3, 2]> (present)
        scores = MatMul(qt, pt) soft = Softmax <axis = -1> (scores) mixed = MatMul(soft, present)
        back = Transpose <perm = [0, 2, 1, 3]> (mixed) flat = Reshape(back, join) y = MatMul(flat, w_o)
    }"""
    proto = from_text(HEAD + text)
    draw = np.random.default_rng(5).standard_normal
    given = [
        {"past": draw((1, 2, past, 8)).astype(np.float32), "x": draw((1, new, 16)).astype(np.float32)}
        for past, new in ((0, 5), (5, 1), (6, 1))
    ]
    done = optimized(proto, given)
    assert {op for op in ("q", "k", "y") if done.plan.ops[op].do == "quantize"} == {"q", "k", "y"}
    assert done.plan.shapes["past"].min == (1, 2, 0, 8)


@pytest.mark.parametrize("threshold", [None, 0])
def test_tensors_without_elements_have_no_range_and_load(tmp_path, threshold):
    text = """m (float[N,16] x, float[M,16] none, float[16,16] w_0, float[0,16] w_none, float w_scalar)
        => (float[K,16] y, float[M,16] z, float sum) {
        both = Concat <axis = 0> (x, none, w_none) h = Mul(both, w_scalar) y = MatMul(h, w_0) z = MatMul(none, w_0)
        sum = ReduceSum <keepdims = 0> (y)
    }"""
    proto = from_text(HEAD + text)
    given = [{**feed, "none": np.zeros((0, 16), np.float32)} for feed in feeds(proto)]
    done = optimized(proto, given)
    assert done.planned == 1 and done.plan.ops["z"].why.code == "FG213"
    path = tmp_path / "out.onnx"
    fp8graph.optimize(proto, data=given, output=path, external_data_size_threshold=threshold)
    assert outputs(session(str(path)), given)["z"][0].shape == (0, 16)
    again = fp8graph.Pipeline([])(path)
    assert {t.name: list(t.dims) for t in again.graph.initializer}["w_none"] == [0, 16]


BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize("constant", [False, True], ids=["initialisers", "Constant nodes"])
def test_a_bf16_model_is_calibrated_and_compared_on_an_expanded_view(constant):
    """ONNX Runtime's CPU provider has no bf16 kernels: each op runs in fp32 and is rounded to bf16 after."""
    text = "m (bfloat16[N,16] x, bfloat16[16,16] w_0, bfloat16[16,16] w_1) => (bfloat16[N,16] y) "
    proto = from_text(HEAD + text + "{ h = MatMul(x, w_0) r = Relu(h) y = MatMul(r, w_1) }")
    weight = proto.graph.initializer.pop(0)
    if constant:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w_0"], value=weight))
    else:
        proto.graph.initializer.insert(0, weight)
    given = [{"x": np.random.default_rng(i).standard_normal((2, 16)).astype(BF16)} for i in range(4)]
    done = fp8graph.optimize(proto, data=given)
    assert done.planned == 2 and done.comparison is not None and not done.comparison.problems
    assert done.comparison.outputs["y"].sqnr_db is not None and done.comparison.outputs["y"].sqnr_db > 20
    assert interface(done.model) == interface(proto)
    assert done.default_session is not None and "bf16" in done.default_session.why
    wide = numpy_helper.to_array(weight).astype(np.float32)
    seen = max(float((feed["x"].astype(np.float32) @ wide).max()) for feed in given)
    scale = done.plan.ops["y"].inputs[0].scale.value
    assert scale is not None and abs(scale * 448 / seen - 1) < 0.01


def test_outputs_that_are_no_single_tensor_are_compared():
    """A map as classifiers return it (which onnx_ir cannot read), a ragged sequence, an empty optional."""
    text = """m (float[N,16] x, float[16,4] w_0) => (float[N,4] p, float[N,4] dummy) {
        h = MatMul(x, w_0) p = Softmax(h) z = ai.onnx.ml.ZipMap <classlabels_strings = ["a", "b", "c", "d"]> (p)
        twice = Concat <axis = 0> (h, h) many = SequenceConstruct(h, twice) dummy = Identity(h)
    }"""
    proto = from_text(HEAD.replace('"local" : 1', '"ai.onnx.ml" : 3') + text)
    maps = proto.graph.output.add(name="z").type.sequence_type.elem_type.map_type
    maps.key_type, maps.value_type.tensor_type.elem_type = TensorProto.STRING, TensorProto.FLOAT
    proto.graph.output.append(helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, None))
    done = optimized(proto, feeds(proto))
    assert done.comparison is not None and done.comparison.problems == ()
    for name in ("z", "many"):
        found = done.comparison.outputs[name]
        assert found.sqnr_db is not None and found.sqnr_db > 20 and not found.equal


def test_an_attribute_without_a_type_is_refused():
    """ONNX Runtime refuses it, too; onnx_ir would drop what it holds."""
    proto = from_text(
        HEAD + "m (float[N,16] x, float[16,16] w_0) => (float[N,16] y) { h = MatMul(x, w_0) y = Softmax(h) }"
    )
    proto.graph.node[1].attribute.add(name="axis", i=0)
    with refused(InputError, "FG106", "'y' (Softmax)", "'axis' has no type"):
        fp8graph.optimize(proto, data=feeds(proto))


def test_a_tensor_that_fp16_would_make_zero_stays_fp32():
    text = "m (float[N,16] x, float[16,16] w_0) => (float[N,16] y) <float tiny = {1e-30}, float huge = {1e30}> "
    proto = from_text(HEAD + text + "{ small = Mul(x, tiny) h = MatMul(small, w_0) y = Mul(h, huge) }")
    done = optimized(proto, feeds(proto), high_precision_dtype="fp16")
    # FG225: the Mul behind the product is no epilogue; FG240: repairs want more feeds
    assert {"FG214", "FG225", "FG240"} == {item.code for item in done.findings}
    assert done.plan.ops["h"].high == "fp32"


@pytest.mark.parametrize("high", ["fp16", "bf16"])
def test_a_mask_of_the_lowest_float_stays_finite(high):
    """0 * -inf would be NaN in every row: float32's lowest number is beyond bf16's."""
    text = """m (float[N,16] x, float[N,16] open, float[16,16] w_0) => (float[N,16] y)
        <float one = {1}, float lowest = {-3.4028234663852886e38}> {
        h = MatMul(x, w_0) shut = Sub(one, open) mask = Mul(shut, lowest) m = Add(h, mask) y = Softmax(m)
    }"""
    proto = from_text(HEAD + text)
    given = [{**feed, "open": (feed["open"] > 0).astype(np.float32)} for feed in feeds(proto)]
    done = fp8graph.optimize(proto, data=given, high_precision_dtype=high)
    assert done.comparison is not None and done.comparison.problems == ()


# Text, opset, IR version, and how many products are in FP8: valid, and unusual.
ODD: dict[str, tuple[str, int, int, int]] = {
    "opset 1": ("{ h = MatMul(x, w_0) y = Relu(h) }", 1, 10, 1),
    "opset 6": ("{ h = MatMul(x, w_0) y = Relu(h) }", 6, 3, 1),
    "opset 26": ("{ y = MatMul(x, w_0) }", 26, 13, 1),
    "IR version 14, which ONNX Runtime loads from 1.32 on": ("{ y = MatMul(x, w_0) }", 21, 14, 1),
    "a call that leaves out the last output": (
        f"{{ y = local.F(x, w_0) }}\n{LOCAL} F (a, w) => (b, c) {{ b = MatMul(a, w) c = Neg(b) }}",
        21,
        10,
        1,
    ),
    "a call that leaves out the last input": (
        f"{{ y = local.F(x, w_0) }}\n{LOCAL} F (a, w, lo) => (c) {{ b = MatMul(a, w) c = Clip(b, lo) }}",
        21,
        10,
        1,
    ),
    "a body inside a function": (
        f"""{{ yes = IsNaN(one) y = local.F(x, yes, w_0) }}\n{LOCAL} F (a, which, w) => (b) {{ b = If (which) <
            then_branch = p () => (p_out) {{ p_out = Relu(a) }},
            else_branch = q () => (q_out) {{ q_out = MatMul(a, w) }}> }}""",
        21,
        10,
        1,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "opset", "ir", "count"), ODD.values(), ids=list(ODD))
def test_the_unusual_is_optimised_and_compared(body, opset, ir, count):
    """Where ONNX Runtime does not load the model as it came, a tidied copy of it is what is compared with."""
    head = HEAD.replace("21", str(opset), 1)
    proto = from_text(f"{head}m (float[N,16] x, float[16,16] w_0) => (float[N,16] y) <float one = {{1}}> {body}")
    proto.ir_version = ir
    del proto.opset_import[1 if "local" not in body else 2 :]
    done = fp8graph.optimize(proto, data=feeds(proto))
    assert len(fp8_products(done.model)) == count
    assert done.comparison is not None and not done.comparison.problems
    assert (done.comparison.outputs["y"].sqnr_db or 0) > 20
    session(done.model.SerializeToString())


def test_a_dimension_of_minus_one_is_open():
    """Old exporters wrote that; ONNX Runtime takes any length there."""
    proto = from_text(HEAD + "m (float[N,16] x, float[16,16] w_0) => (float[N,16] y) { y = MatMul(x, w_0) }")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    done = optimized(proto, [{"x": np.ones((rows, 16), np.float32)} for rows in (1, 5)])
    assert done.plan.shapes["x"].max == (5, 16) and done.planned == 1
