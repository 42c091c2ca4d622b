"""How a recipe quantizes one operand: the axes that blocks run along, and where their scales come from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fp8graph.core import quants
from fp8graph.data import recipe as recipes
from fp8graph.data.recipe import TensorPolicy
from fp8graph.formats.spec import ScaleFormat
from fp8graph.graph.load import load
from tests.small import model

TEXTS = {
    "MatMul": "(float[2,6,64] x, float[64,32] w) => (float[2,6,32] y) { y = MatMul (x, w) }",
    "Gemm": "(float[6,64] x, float[64,32] w) => (float[6,32] y) { y = Gemm (x, w) }",
    "Gemm, both turned": """(float[64,6] x, float[32,64] w) => (float[6,32] y) {
        y = Gemm <transA = 1, transB = 1> (x, w) }""",
    "Conv": "(float[1,64,8,8] x, float[32,64,3,3] w) => (float[1,32,6,6] y) { y = Conv (x, w) }",
    "ConvTranspose": "(float[1,64,8,8] x, float[64,32,3,3] w) => (float[1,32,10,10] y) { y = ConvTranspose (x, w) }",
}


def node(kind: str) -> ir.Node:
    return next(iter(load(model(TEXTS[kind])).model.graph))


def policy(per: str, *block: int, scale: str = "amax", stored: ScaleFormat = ScaleFormat()) -> TensorPolicy:  # noqa: B008
    return TensorPolicy("e4m3fn", per, scale, block, stored)  # type: ignore[arg-type]


# Blocks of the weight, then of the activation per token and per block of 32.
ROWS = [
    ("MatMul", 2, ((1, 1),), ((0, 32), (1, 1)), ((0, 8), (1, 16)), 3, ((0, 1), (1, 1)), ((0, 1), (1, 1), (2, 32))),
    ("Gemm", 2, ((1, 1),), ((0, 32), (1, 1)), ((0, 8), (1, 16)), 2, ((0, 1),), ((0, 1), (1, 32))),
    ("Gemm, both turned", 2, ((0, 1),), ((0, 1), (1, 32)), ((0, 16), (1, 8)), 2, ((1, 1),), ((0, 32), (1, 1))),
    (
        "Conv",
        4,
        ((0, 1),),
        ((0, 1), (1, 32), (2, 1), (3, 1)),
        ((0, 16), (1, 8), (2, 1), (3, 1)),
        4,
        (),
        ((0, 1), (1, 32), (2, 1), (3, 1)),
    ),
    (
        "ConvTranspose",
        4,
        ((1, 1),),
        ((0, 32), (1, 1), (2, 1), (3, 1)),
        ((0, 8), (1, 16), (2, 1), (3, 1)),
        4,
        (),
        ((0, 1), (1, 32), (2, 1), (3, 1)),
    ),
]


@pytest.mark.parametrize(
    ("kind", "rank", "channel", "block", "square", "moving", "token", "parts"), ROWS, ids=[row[0] for row in ROWS]
)
def test_blocks_run_along_the_axis_that_is_summed_over(kind, rank, channel, block, square, moving, token, parts):
    op = node(kind)
    assert quants.weight_granularity(policy("channel"), op, 1, rank, "any").blocks == channel
    assert quants.weight_granularity(policy("block", 32), op, 1, rank, "any").blocks == block
    assert quants.weight_granularity(policy("block", 16, 8), op, 1, rank, "any").blocks == square
    assert quants.weight_granularity(policy("block", 16, 8), op, 1, rank, "channel").blocks == channel
    assert quants.weight_granularity(policy("channel"), op, 1, rank, "tensor").blocks == ()
    assert quants.activation_granularity(policy("token"), op, 0, moving).blocks == token
    assert quants.activation_granularity(policy("block", 32), op, 0, moving).blocks == parts


def test_the_right_operand_of_attention_has_its_tokens_along_the_last_axis():
    text = "(float[2,6,64] x, float[2,64,32] z) => (float[2,6,32] y) { y = MatMul (x, z) }"
    op = next(iter(load(model(text)).model.graph))
    assert quants.activation_granularity(policy("token"), op, 1, 3).blocks == ((0, 1), (2, 1))


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("fp8-default", {"activations": "static", "scales": "channel", "block": 0}),
        ("fp8-dynamic", {"activations": "dynamic", "scales": "channel", "block": 0}),
        ("fp8-dynamic-token", {"activations": "token", "scales": "channel", "block": 0}),
        ("fp8-weight-only", {"activations": "none", "scales": "channel", "block": 0}),
        ("fp8-block128", {"activations": "block", "scales": "block", "block": 128}),
        ("mxfp4", {"activations": "block", "scales": "block", "block": 32, "powers": True}),
        ("mxfp8", {"activations": "block", "scales": "block", "block": 32, "powers": True}),
        ("fp8-block128-ue8m0", {"activations": "block", "scales": "block", "block": 128}),
        ("nvfp4", {"activations": "block", "scales": "block", "block": 16}),
    ],
)
def test_what_rows_may_ask_of_a_recipe(name, facts):
    assert quants.policy_facts(recipes.load(name)) == facts


def test_where_scales_of_activations_come_from():
    blocks = quants.activation_granularity(policy("block", 16), node("MatMul"), 0, 3)
    none = quants.activation_granularity(policy("tensor"), node("MatMul"), 0, 3)
    above = policy("block", 16, scale="dynamic", stored=ScaleFormat("e4m3fn", outer=True))
    assert quants.activation_scale(policy("tensor"), none, "amax").origin == "observed"
    assert quants.activation_scale(policy("tensor", scale="dynamic"), none, "amax").origin == "dynamic"
    # the scale above the stored ones is observed, those are found in the graph
    assert quants.activation_scale(above, blocks, "amax").origin == "observed"


def test_probabilities_have_the_scale_that_maps_one_to_the_largest_code():
    assert quants.unit_scale("e4m3fn") == np.float32(1 / 448)
    assert quants.unit_scale("int8") == np.float32(1) / np.float32(127)


def test_a_target_that_takes_tokens_gets_tokens_for_blocks():
    block = policy("block", 128, scale="dynamic", stored=ScaleFormat("e8m0"))
    taken = quants.taken(block, "token")
    assert (taken.per, taken.block, taken.stored) == ("token", (), ScaleFormat())
    assert quants.taken(block, "any") == block
