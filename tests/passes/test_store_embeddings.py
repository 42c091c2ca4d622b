"""Embedding tables become codes with one scale; what is looked up is rounded to FP8 and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph_passes.store_embeddings import StoreEmbeddings
from tests.passes.doing import planned_run
from tests.small import feeds, model

LOOK_UP = """(int64[4] i, int64[2] j, float[9,8] w, float[8,8] w_a) => (float[4,8] y, float[2,8] z) {
    e = Gather(w, i)
    f = Neg(e)
    y = MatMul(f, w_a)
    z = Gather <axis = 0> (w, j)
}"""
OTHER = {
    "along columns": "(int64[2] i, float[9,8] w) => (float[9,2] y) { y = Gather <axis = 1> (w, i) }",
    "of integers": "(int64[2] i, int64[9,8] w) => (int64[2,8] y) { y = Gather(w, i) }",
    "of numbers": "(int64[2] i, float[9] w) => (float[2] y) { y = Gather(w, i) }",
    "computed": "(int64[2] i, float[9,8] x) => (float[2,8] y) { h = Neg(x) y = Gather(h, i) }",
}


@pytest.mark.parametrize("high", ["keep", "fp16", "bf16"])
def test_a_table_is_stored_once_with_one_scale(high):
    done = planned_run(StoreEmbeddings(), model(LOOK_UP), high=high)
    assert done.count == 2
    dequantize = {done.at(key).inputs[0].producer() for key in "ez"}
    assert len(dequantize) == 1
    (node,) = dequantize
    assert node.op_type == "DequantizeLinear"
    assert done.constants[node.inputs[1].name].shape == ()
    assert {note.code for note in done.ctx.notes.items()} >= {"FG224"}
    assert StoreEmbeddings().rewrite(done.model, done.ctx) == 0


def test_rows_are_within_half_a_step_of_what_they_were():
    done = planned_run(StoreEmbeddings(), model(LOOK_UP))
    old, new = done.outputs()
    apart = np.abs(old["z"] - new["z"])
    assert apart.max() > 0 and (apart <= np.maximum(np.abs(old["z"]) / 16, 4 / 448 * 2**-10)).all()


@pytest.mark.parametrize("case", OTHER)
def test_what_is_no_table_of_rows_stays(case):
    made = fp8graph.optimize(model(OTHER[case]), passes="store-embeddings", allow_unquantized=True)
    assert "DequantizeLinear" not in {node.op_type for node in made.model.graph.node}


def test_a_table_with_a_nan_stays():
    table = np.ones((9, 8))
    table[3, 3] = np.nan
    made = fp8graph.optimize(
        model("(int64[2] i, float[9,8] w) => (float[2,8] y) { y = Gather(w, i) }", w=table),
        passes="store-embeddings",
        allow_unquantized=True,
    )
    assert "DequantizeLinear" not in {node.op_type for node in made.model.graph.node}


def test_no_recipe_does_it_unasked_and_the_file_shrinks():
    proto = model(LOOK_UP)
    plain = fp8graph.optimize(proto, data=feeds(proto))
    done = fp8graph.optimize(proto, data=feeds(proto), passes="store-embeddings")
    types = [{item.data_type for item in made.model.graph.initializer if item.dims == [9, 8]} for made in (plain, done)]
    assert types == [{onnx.TensorProto.FLOAT}, {onnx.TensorProto.FLOAT8E4M3FN}]
