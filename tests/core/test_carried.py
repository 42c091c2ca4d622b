"""What a plan promises is in the graph, or there is no result."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import PassContractError, UsageError
from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.data import recipe
from fp8graph.graph import walk
from tests.small import TWO, feeds, model, refused

DEFAULT = recipe.load("fp8-default")


@pytest.mark.parametrize("passes", [(), tuple(name for name in DEFAULT.passes if name != "insert-qdq")])
def test_a_recipe_that_inserts_no_pairs_is_refused_and_writes_nothing(tmp_path, passes):
    proto = model(TWO)
    with refused(UsageError, "FG141", "do not carry the plan out", "op h, input 0", "e4m3fn", "insert-qdq"):
        fp8graph.optimize(
            proto, recipe=replace(DEFAULT, passes=passes), data=feeds(proto), output=tmp_path / "out.onnx"
        )
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class DropPairs(RewritePass):
    """Takes the pair on one operand away."""

    stage: ClassVar[Stage] = Stage.FOLD
    exact: ClassVar[Exactness] = Approximate("a test")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        for place in walk.walk(model):
            dequantize = place.node.inputs[0].producer() if place.node.op_type == "MatMul" else None
            if dequantize is not None and dequantize.op_type == "DequantizeLinear":
                place.node.replace_input_with(0, dequantize.inputs[0].producer().inputs[0])
                return 1
        return 0


def test_a_pass_that_takes_a_pair_away_is_named():
    proto = model(TWO)
    with refused(PassContractError, "FG901", "drop-pairs", "op h, input 0", "there is none"):
        fp8graph.optimize(proto, passes=[DropPairs()], data=feeds(proto))


def test_another_format_than_planned_is_none(tmp_path):
    proto = model(TWO)
    plan = fp8graph.optimize(proto, data=feeds(proto), target="reference", plan_only=True).plan
    other = replace(plan, ops={key: replace(op) for key, op in plan.ops.items()})
    assert fp8graph.optimize(proto, plan=other).planned == 2

    @dataclass(frozen=True)
    class OtherCodes(RewritePass):
        stage: ClassVar[Stage] = Stage.FOLD
        exact: ClassVar[Exactness] = Approximate("a test")

        def rewrite(self, model: ir.Model, ctx: Context) -> int:
            for place in walk.walk(model):
                if place.node.op_type == "QuantizeLinear":
                    place.node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(ir.DataType.FLOAT8E5M2))
                    place.node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT8E5M2)
                    return 1
            return 0

    with refused(PassContractError, "FG901", "other-codes", re.escape("one of FLOAT8E5M2").replace("\\", "")):
        fp8graph.optimize(proto, passes=[OtherCodes()], data=feeds(proto))
