"""Movement of a weight in front of a product goes into the weight; the bytes are those of the graph that moved it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from fp8graph.testing import planned
from fp8graph_passes.fold_weight_layout import FoldWeightLayout
from tests.passes.doing import run
from tests.small import model

INTS = "<int64[2] s = {8, -1}, int64[2] keep = {0, 4}, int64[2] ends = {0, 2}, int64[1] front = {0}>"
MOVES = {
    "Transpose": ("float[4,8] w", "Transpose(w)"),
    "Transpose perm": ("float[2,4,8] w", "Transpose <perm = [0, 2, 1]> (w)"),
    "Reshape": ("float[2,4,4] w", "Reshape(w, s)"),
    "Reshape 0": ("float[8,2,2] w", "Reshape(w, keep)"),
    "Squeeze": ("float[1,8,1,4] w", "Squeeze(w, ends)"),
    "Squeeze all": ("float[1,8,1,4] w", "Squeeze(w)"),
    "Unsqueeze": ("float[8,4] w", "Unsqueeze(w, front)"),
    "Flatten": ("float[8,2,2] w", "Flatten(w)"),
    "Flatten axis": ("float[2,4,4] w", "Flatten <axis = -1> (w)"),
    "Identity": ("float[8,4] w", "Identity(w)"),
    "Cast from fp16": ("float16[8,4] w", "Cast <to = 1> (w)"),
    "Cast from bf16": ("bfloat16[8,4] w", "Cast <to = 1> (w)"),
    "Cast from fp64": ("double[8,4] w", "Cast <to = 1> (w)"),
}


@pytest.mark.parametrize("name", MOVES)
def test_each_movement_goes_into_the_weight(name):
    weight, movement = MOVES[name]
    text = f"(float[3,8] x, {weight}) => (float y) {INTS} {{ moved = {movement} y = MatMul(x, moved) }}"
    proto = model(text)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    done = run(FoldWeightLayout(), proto)
    assert done.count == 1
    assert done.kinds == {"MatMul": 1}
    assert done.inputs("y") == ["x", "moved"]  # the name of what was moved is kept
    assert "w" not in done.constants
    assert done.same()


@pytest.mark.parametrize(("numpy", "number"), [(np.float16, 10), (ml_dtypes.bfloat16, 16)])
def test_a_cast_rounds_as_the_op_would_and_overflows_to_infinity(numpy, number):
    weight = np.array([[1 / 3, 1e30], [-1e30, 65519.9]], np.float32)
    kind = {10: "float16", 16: "bfloat16"}[number]
    text = f"({kind}[2,2] x, float[2,2] w) => ({kind}[2,2] y) {{ c = Cast <to = {number}> (w) y = MatMul(x, c) }}"
    done = run(FoldWeightLayout(), model(text, w=weight))
    assert done.count == 1
    with np.errstate(over="ignore"):
        expected = weight.astype(numpy)
    np.testing.assert_array_equal(done.constants["c"].astype(np.float32), expected.astype(np.float32))


def test_before_opset_13_the_axes_are_an_attribute():
    text = "(float[3,8] x, float[1,8,1] w) => (float[3,1] y) { m = Squeeze <axes = [0]> (w) y = MatMul(x, m) }"
    done = run(FoldWeightLayout(), model(text, opset=11, ir=7))
    assert done.count == 1
    assert done.constants["m"].shape == (8, 1)
    assert done.same()


def test_a_chain_folds_from_its_begin_to_its_end():
    text = f"""(float16[3,8] x, float[4,2,4] w) => (float16[3,4] y) {INTS} {{
        a = Reshape(w, keep) b = Transpose(a) c = Transpose <perm = [1, 0]> (b) d = Reshape(c, s)
        e = Cast <to = 10> (d) y = MatMul(x, e)
    }}"""
    proto = model(text.replace("float[4,2,4] w", "float[8,2,2] w"))
    done = run(FoldWeightLayout(), proto)
    assert done.count == 5
    assert {name for name, array in done.constants.items() if array.dtype.kind == "f"} == {"e"}
    assert done.same()


@pytest.mark.parametrize("product", ["Conv(x, m)", "ConvTranspose(x, m)"])
def test_weights_of_convolutions_are_moved_too(product):
    moved = "m = Transpose <perm = [3, 2, 1, 0]> (w)"
    proto = model(f"(float[2,4,5,5] x, float[2,2,4,4] w) => (float y) {{ {moved} y = {product} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    done = run(FoldWeightLayout(), proto)
    assert done.count == 1
    assert done.same()


STAYS = {
    "read by a sum": "(float[8,8] x, float[8,8] w) => (float[8,8] y) { m = Transpose(w) y = Add(x, m) }",
    "read by a product and a sum": """(float[8,8] x, float[8,8] w) => (float[8,8] y) {
        m = Transpose(w) p = MatMul(x, m) y = Add(p, m) }""",
    "a bias": """(float[2,8] x, float[8,8] w, float[8,1] w_bias) => (float[2,8] y) {
        m = Transpose(w_bias) y = Gemm(x, w, m) }""",
    "returned by the graph": """(float[8,8] x, float[8,8] w) => (float[8,8] y, float[8,8] m) {
        m = Transpose(w) y = MatMul(x, m) }""",
    "read by nothing": "(float[8,8] x, float[8,8] w) => (float[8,8] y) { m = Transpose(w) y = MatMul(x, w) }",
    "an activation": "(float[8,8] x, float[8,8] w) => (float[8,8] y) { m = Transpose(x) y = MatMul(m, w) }",
    "integers": """(float[8,8] x, int8[8,8] w) => (float[8,8] y) { m = Cast <to = 1> (w) y = MatMul(x, m) }""",
    "a shape that is computed": """(float[8,8] x, float[64] w) => (float[8,8] y) {
        s = Shape(x) m = Reshape(w, s) y = MatMul(x, m) }""",
}


@pytest.mark.parametrize("why", STAYS)
def test_another_movement_stays(why):
    done = run(FoldWeightLayout(), model(STAYS[why]))
    assert done.count == 0
    assert set(done.kinds) & {"Transpose", "Cast", "Reshape"}


def test_a_shared_weight_is_moved_for_one_reader_and_stays_for_the_other():
    text = """(int64[3] ids, float[20,8] w) => (float[3,20] y) {
        e = Gather(w, ids) t = Transpose(w) y = MatMul(e, t)
    }"""
    done = run(FoldWeightLayout(), model(text))
    assert done.count == 1
    assert done.constants["w"].shape == (20, 8)
    np.testing.assert_array_equal(done.constants["t"], done.constants["w"].T)
    assert done.same()


def test_a_weight_of_the_main_graph_may_be_moved_in_a_body():
    text = """(float[2,8] x, bool c, float[4,8] w) => (float[2,4] y) {
        y = If (c) <then_branch = t () => (float[2,4] a) { m = Transpose(w) a = MatMul(x, m) },
                    else_branch = e () => (float[2,4] b) { n = Transpose(w) b = MatMul(x, n) }>
    }"""
    done = run(FoldWeightLayout(), model(text))
    assert done.count == 2
    assert done.same()


def test_the_weight_is_moved_as_it_is_written_and_not_before():
    text = "(float[2,64] x, float[48,64] w) => (float[2,48] y) { m = Transpose(w) y = MatMul(x, m) }"
    done = run(FoldWeightLayout(), model(text))
    assert isinstance(done.model.graph.initializers["m"].const_value, ir.LazyTensor)


@pytest.mark.parametrize("movement", ["Transpose(w)", "Reshape(w, s)"])
def test_a_large_moved_weight_is_quantized_along_its_output_channels(movement):
    weight = "float[48,64] w" if "Transpose" in movement else "float[16,4,48] w"
    head = f"(float[2,64] x, {weight}) => (float[2,48] y) <int64[2] s = {{64, 48}}>"
    held = planned(model(f"{head} {{ m = {movement} y = MatMul(x, m) }}")).model.graph.initializers
    assert held["m_scale"].const_value.numpy().shape == (48,)
    assert held["m_fp8"].const_value.numpy().shape == (64, 48)
