"""A product taken apart into rows: rows of the activation times rows of the weight are what onnx.reference computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from fp8graph.core.products import product_of
from tests.small import feeds, model

thorough = settings(max_examples=40, deadline=None, derandomize=True)


def summed(proto) -> tuple[np.ndarray, np.ndarray]:
    """The result of the only node: from rows, and by onnx.reference; both [rows, output channels]."""
    work = ir.from_proto(proto)
    node = next(iter(work.graph))
    product = product_of(node)
    assert product is not None
    feed = feeds(proto, 1)[0]
    weight = work.graph.initializers["w"].const_value.numpy()
    rows, held = product.window.rows(feed["x"]), product.rows(weight)
    assert np.array_equal(product.back(held, weight.shape), weight)
    step = len(held) // len(rows)
    found = np.concatenate([part @ held[i * step : (i + 1) * step].T for i, part in enumerate(rows)], 1)
    (y,) = ReferenceEvaluator(proto).run(None, feed)
    axis = 1 if node.op_type == "Conv" else y.ndim - 1 if product.weight else max(y.ndim - 2, 0)
    return found, np.moveaxis(y, axis, -1).reshape(-1, y.shape[axis])


@st.composite
def convolutions(draw: st.DrawFn) -> str:
    """A Conv of one or two dimensions that has some output."""
    rank, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))

    def some(low: int, high: int, count: int = rank) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(count)]

    kernel, strides, dilations, pads = some(1, 3), some(1, 3), some(1, 2), some(0, 2, 2 * rank)
    inside, outside, batch = (draw(st.integers(1, 2)) for _ in range(3))
    sizes = [
        max(1, (kernel[i] - 1) * dilations[i] + 1 - pads[i] - pads[i + rank]) + draw(st.integers(0, 3))
        for i in range(rank)
    ]
    made = [
        (size + pads[i] + pads[i + rank] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i, size in enumerate(sizes)
    ]

    def shape(*dims: int) -> str:
        return f"float[{','.join(map(str, dims))}]"

    return (
        f"({shape(batch, inside * group, *sizes)} x, {shape(outside * group, inside, *kernel)} w)"
        f" => ({shape(batch, outside * group, *made)} y) {{ y = Conv <group = {group}, kernel_shape = {kernel},"
        f" strides = {strides}, dilations = {dilations}, pads = {pads}> (x, w) }}"
    )


@thorough
@given(text=convolutions(), seed=st.integers(0, 9))
def test_rows_times_rows_are_the_convolution(text, seed):
    found, wanted = summed(model(text, seed=seed))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


MATRICES = {
    "MatMul": "(float[2,3,8] x, float[8,4] w) => (float[2,3,4] y) { y = MatMul(x, w) }",
    "weight first": "(float[2,8,3] x, float[4,8] w) => (float[2,4,3] y) { y = MatMul(w, x) }",
    "a vector": "(float[8] x, float[8,4] w) => (float[4] y) { y = MatMul(x, w) }",
    "a vector behind the weight": "(float[8] x, float[4,8] w) => (float[4] y) { y = MatMul(w, x) }",
    "Gemm": "(float[3,8] x, float[8,4] w) => (float[3,4] y) { y = Gemm(x, w) }",
    "Gemm transA": "(float[8,3] x, float[8,4] w) => (float[3,4] y) { y = Gemm <transA = 1> (x, w) }",
    "Gemm transB": "(float[3,8] x, float[4,8] w) => (float[3,4] y) { y = Gemm <transB = 1> (x, w) }",
    "Gemm both, weight first": (
        "(float[3,8] x, float[8,4] w) => (float[4,3] y) { y = Gemm <transA = 1, transB = 1> (w, x) }"
    ),
}


@pytest.mark.parametrize("text", MATRICES.values(), ids=MATRICES)
def test_rows_times_rows_are_the_matrix_product(text):
    found, wanted = summed(model(text))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [4, 5, 6])
@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_that_follows_from_the_size_is_that_of_onnx(pad, size, stride):
    text = f"(float[1,3,{size},7] x, float[4,3,3,4] w) => (float y) "
    text += f'{{ y = Conv <auto_pad = "{pad}", strides = [{stride}, 2]> (x, w) }}'
    found, wanted = summed(model(text))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


NONE = {
    "two activations": "(float[2,3] x, float[3,2] z) => (float[2,2] y) { y = MatMul(x, z) }",
    "two constants": "(float[1] x, float[2,3] w, float[3,2] w_b) => (float[2,2] y) { y = MatMul(w, w_b) }",
    "a weight of rank 3": "(float[2,3] x, float[2,3,4] w) => (float[2,2,4] y) { y = MatMul(x, w) }",
    "the constant is what a Conv reads": (
        "(float[4,3,1,1] z, float[1,3,5,5] w) => (float[1,4,5,5] y) { y = Conv(w, z) }"
    ),
    "no product": "(float[2,3] x, float[2,3] w) => (float[2,3] y) { y = Add(x, w) }",
    "another domain's": "(float[2,3] x, float[3,2] w) => (float[2,2] y) { y = MatMul <a = 1> (x, w) }",
}


@pytest.mark.parametrize("what", NONE)
def test_what_is_no_product_of_one_constant_is_none(what):
    node = next(iter(ir.from_proto(model(NONE[what])).graph))
    if what == "another domain's":
        node.domain = "acme"
    assert product_of(node) is None
