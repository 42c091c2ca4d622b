"""Pairs of one scale move in front of data movement and become one; numbers stay, bit by bit."""

from __future__ import annotations

import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.data import recipe
from fp8graph_passes.lift_pairs import LiftPairs
from tests.passes.doing import planned_run
from tests.small import CONCAT, feeds, model

HEAD = "(float[1,16,32] x, float[32,32] w_a, float[16,16] w_b) => (float[1,16,32] y, float[1,32,16] z)"
TURNED = "t = Transpose <perm = [0, 2, 1]> (h) z = MatMul(t, w_b)"
JOINED = {  # body, pairs on activations before and after
    "on a tensor and behind a movement of it": (f"h = Relu(x) y = MatMul(h, w_a) {TURNED}", 2, 1),
    "behind two movements of it": (
        "h = Relu(x) i = Identity(h) y = MatMul(i, w_a) t = Transpose <perm = [0, 2, 1]> (h) z = MatMul(t, w_b)",
        2,
        1,
    ),
    "behind a chain": (
        """h = Relu(x) y = MatMul(h, w_a) s = Constant <value_ints = [1, 32, 16]> ()
        t = Transpose <perm = [0, 2, 1]> (h) u = Reshape(t, s) v = Identity(u) z = MatMul(v, w_b)""",
        2,
        1,
    ),
}
STAYS = {
    "one pair alone": f"h = Relu(x) {TURNED} y = Neg(h)",
    "a movement that another reads": (
        "h = Relu(x) y = MatMul(h, w_a) t = Transpose <perm = [0, 2, 1]> (h) u = MatMul(t, w_b) z = Add(u, t)"
    ),
    "no movement": f"h = Relu(x) y = MatMul(h, w_a) g = Neg(h) {TURNED.replace('(h)', '(g)')}",
    "part of a tensor": (
        """h = Relu(x) y = MatMul(h, w_a) i = Constant <value_ints = [0]> () g = Gather <axis = 0> (h, i)
        t = Transpose <perm = [0, 2, 1]> (g) z = MatMul(t, w_b)"""
    ),
}


@pytest.mark.parametrize("high", ["keep", "fp16", "bf16"])
@pytest.mark.parametrize("case", JOINED)
def test_pairs_of_one_scale_become_one(case, high):
    body, before, after = JOINED[case]
    done = planned_run(LiftPairs(), model(f"{HEAD} {{ {body} }}"), high=high)
    assert done.count > 0
    assert sum(node.op_type == "QuantizeLinear" for node in done.before.graph) == before
    assert done.kinds["QuantizeLinear"] == after
    old, new = done.outputs()
    assert all((old[name] == new[name]).all() for name in old)
    assert LiftPairs().rewrite(done.model, done.ctx) == 0  # nothing is left to do


@pytest.mark.parametrize("case", STAYS)
def test_what_is_not_the_same_tensor_keeps_its_pair(case):
    done = planned_run(LiftPairs(), model(f"{HEAD} {{ {STAYS[case]} }}"))
    assert done.count == 0


def test_codes_that_are_the_same_are_computed_once():
    body = "h = Relu(x) y = MatMul(h, w_a) c = Constant <value_float = 0.125> () m = Mul(h, c)"
    done = planned_run(
        LiftPairs(), model(f"{HEAD} {{ {body} t = Transpose <perm = [0, 2, 1]> (m) z = MatMul(t, w_b) }}")
    )
    assert done.kinds["QuantizeLinear"] == 2  # the movement stands between
    done = planned_run(LiftPairs(), model(f"{HEAD.replace('32,16] z', '16,32] z')} {{ {body} z = MatMul(m, w_a) }}"))
    assert (done.count, done.kinds["QuantizeLinear"], done.kinds["DequantizeLinear"]) == (1, 1, 3)
    old, new = done.outputs()
    assert all((old[name] == new[name]).all() for name in old)


def test_no_pair_moves_out_of_a_body():
    text = """(float[2,32] x, bool[1] c, float[32,32] w_a, float[32,32] w_b) => (float[2,32] y, float[2,32] z) {
        h = Relu(x)
        z = MatMul(h, w_a)
        y = If(c) <then_branch = t () => (float[2,32] p) { i = Identity(h) p = MatMul(i, w_a) },
                   else_branch = e () => (float[2,32] q) { j = Identity(h) q = MatMul(j, w_b) }>
    }"""
    assert planned_run(LiftPairs(), model(text)).count == 0


@pytest.fixture
def concat(tmp_path):
    (tmp_path / "concat.toml").write_text('extends = "fp8-default"\n[quantize]\nconcat = true\n')
    return str(tmp_path / "concat.toml")


@pytest.mark.parametrize("high", ["keep", "fp16"])
def test_a_concat_and_its_operands_have_one_scale_and_a_pair_each(concat, high):
    proto = model(CONCAT)
    asked = {"data": feeds(proto), "high_precision_dtype": high, "target": "tensorrt-rtx:sm89"}
    plain = fp8graph.optimize(proto, **asked)
    done = fp8graph.optimize(proto, recipe=concat, **asked)
    scales = {key: {op.inputs[0].value: op.inputs[0].scale.value} for key, op in done.plan.quantized()}
    largest = max(plain.plan.ops[key].inputs[0].scale.value for key in "byz")
    assert scales["b"] | scales["y"] | scales["z"] == dict.fromkeys("fcg", largest)
    assert scales["a"] == {"x": plain.plan.ops["a"].inputs[0].scale.value}
    counts = [sum(n.op_type == "QuantizeLinear" for n in item.model.graph.node) for item in (plain, done)]
    assert counts == [4, 3]  # x, f, g, c before: c has none of its own any more
    concatenated = next(node for node in done.model.graph.node if node.op_type == "Concat")
    makers = {name: node for node in done.model.graph.node for name in node.output}
    for name in concatenated.input:
        while makers[name].op_type == "Cast":
            name = makers[name].input[0]
        assert makers[name].op_type == "DequantizeLinear"


def test_it_replays_without_data(concat):
    proto = model(CONCAT)
    done = fp8graph.optimize(proto, recipe=concat, data=feeds(proto))
    again = fp8graph.optimize(proto, plan=fp8graph.Plan.from_json(done.plan.to_json()))
    assert again.model.SerializeToString() == done.model.SerializeToString()


def test_concats_that_share_an_operand_have_one_scale(concat):
    text = """(float[2,32] x, float[32,32] w_a, float[64,32] w_b, float[64,32] w_c) => (float[2,32] y, float[2,32] z) {
        f = Relu(x) g = Mul(f, f) h = Add(g, f)
        c = Concat <axis = 1> (f, g) y = MatMul(c, w_b)
        d = Concat <axis = 1> (g, h) z = MatMul(d, w_c)
    }"""
    proto = model(text)
    plan = fp8graph.optimize(proto, recipe=concat, data=feeds(proto), plan_only=True).plan
    quants = [plan.ops[key].inputs[0] for key in "yz"]
    assert quants[0].scale.value == quants[1].scale.value
    assert [quant.scale.over for quant in quants] == [("d",), ("c",)]


@pytest.mark.parametrize("wrong", ["1", '"yes"'])
def test_the_key_is_true_or_false(tmp_path, wrong):
    path = tmp_path / "wrong.toml"
    path.write_text(f'extends = "fp8-default"\n[quantize]\nconcat = {wrong}\n')
    with pytest.raises(UsageError):
        recipe.load(str(path))
