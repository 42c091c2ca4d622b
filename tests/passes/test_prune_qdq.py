"""One Q/DQ pair serves all that read the same, and one that nobody reads goes."""

from __future__ import annotations

import pytest

from fp8graph_passes.prune_qdq import PruneQDQ
from tests.passes.doing import run
from tests.small import model

PAIRS = """(float[2,8] x, float w_s, float w_again, float8e4m3fn[8,4] w, float8e4m3fn[8,4] w_b)
        => (float[2,4] y, float[2,4] z) {
    q = QuantizeLinear <output_dtype = 17> (x, w_s)
    d = DequantizeLinear(q, w_s)
    p = QuantizeLinear <output_dtype = 17> (x, w_again)
    e = DequantizeLinear(p, w_again)
    v = DequantizeLinear(w, w_s)
    u = DequantizeLinear(w_b, w_s)
    y = MatMul(d, v)
    z = MatMul(e, u)
}"""
ALIKE = {"w_s": 0.5, "w_again": 0.5}


def test_pairs_that_are_alike_become_one():
    done = run(PruneQDQ(), model(PAIRS, **ALIKE))
    assert (done.count, done.kinds["QuantizeLinear"], done.kinds["DequantizeLinear"]) == (2, 1, 3)
    assert done.inputs("y")[0] == done.inputs("z")[0] == "d"
    assert done.same()


def test_a_pair_that_nothing_reads_goes_with_its_scale():
    text = PAIRS.replace("z = MatMul(e, u)", "z = MatMul(d, u)")
    done = run(PruneQDQ(), model(text, w_s=0.5, w_again=0.25))
    assert done.kinds["QuantizeLinear"] == 1 and "w_again" not in done.constants
    assert done.same()


def test_bodies_are_looked_at_and_not_merged_with_what_is_around():
    text = """(bool c, float[2,8] x, float w_s) => (float[2,8] z) {
        q = QuantizeLinear <output_dtype = 17> (x, w_s) d = DequantizeLinear(q, w_s)
        i = If (c) <then_branch = t () => (float[2,8] a) {
                        p = QuantizeLinear <output_dtype = 17> (x, w_s) e = DequantizeLinear(p, w_s) a = Relu(e)
                        o = QuantizeLinear <output_dtype = 17> (a, w_s) },
                    else_branch = f () => (float[2,8] b) { b = Relu(x) }>
        z = Add(i, d)
    }"""
    done = run(PruneQDQ(), model(text, w_s=0.5))
    assert (done.count, done.kinds["QuantizeLinear"]) == (1, 2)
    assert done.same()


@pytest.mark.parametrize(
    ("why", "numbers", "text"),
    [
        ("scales differ", {"w_s": 0.5, "w_again": 0.25}, PAIRS),
        ("formats differ", ALIKE, PAIRS.replace("17> (x, w_again)", "19> (x, w_again)")),
    ],
)
def test_it_stays_where(why, numbers, text):
    assert run(PruneQDQ(), model(text, **numbers)).count == 0


def test_a_result_that_is_an_output_stays():
    text = PAIRS.replace("z = MatMul(e, u)", "").replace("float[2,4] z)", "float[2,8] e)")
    done = run(PruneQDQ(), model(text, **ALIKE))
    assert done.kinds["QuantizeLinear"] == 1 and done.node("e").outputs[0].is_graph_output()
    assert done.same()
