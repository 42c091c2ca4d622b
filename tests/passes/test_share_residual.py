"""A residual addition reads the rounded skip branch, where nobody else needs the exact one."""

from __future__ import annotations

import pytest

import fp8graph
from fp8graph_passes.share_residual import ShareResidual
from tests.passes.doing import planned_run
from tests.small import feeds, model

BLOCK = """(float[1,16,8,8] x, float[16,16,1,1] w_a, float[16,16,1,1] w_b) => (float[1,16,8,8] y{more}) {{
    h = Relu(x)
    a = Conv(h, w_a)
    b = Conv(a, w_b)
    s = {add}
    y = Relu(s)
    {body}
}}"""


@pytest.mark.parametrize("add", ["Add(b, h)", "Add(h, b)"])
@pytest.mark.parametrize("high", ["keep", "fp16", "bf16"])
def test_the_addition_reads_what_dequantize_yields(add, high):
    done = planned_run(ShareResidual(), model(BLOCK.format(add=add, more="", body="")), high=high)
    assert done.count == 1
    slot = 1 if add == "Add(b, h)" else 0
    assert done.at("s").inputs[slot].producer().op_type == "DequantizeLinear"
    assert [note.code for note in done.ctx.notes.items() if note.op == "s"] == ["FG223"]
    assert ShareResidual().rewrite(done.model, done.ctx) == 0


@pytest.mark.parametrize(
    ("more", "body"), [(", float[1,16,8,8] z", "z = Neg(h)"), (", float[1,16,8,8] h", "")], ids=["read", "returned"]
)
def test_a_tensor_that_others_need_exactly_stays_exact(more, body):
    assert planned_run(ShareResidual(), model(BLOCK.format(add="Add(b, h)", more=more, body=body))).count == 0


def test_no_recipe_does_it_unasked_and_the_option_does():
    proto = model(BLOCK.format(add="Add(b, h)", more="", body=""))
    plain = fp8graph.optimize(proto, data=feeds(proto))
    done = fp8graph.optimize(proto, data=feeds(proto), passes="share-residual")
    assert "FG223" not in {finding.code for finding in plain.findings}
    assert "FG223" in {finding.code for finding in done.findings}
    assert plain.model.SerializeToString() != done.model.SerializeToString()
