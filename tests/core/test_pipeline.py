"""The pipeline holds each pass to what its class promises, and names the one that breaks its word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import InputError, PassContractError
from fp8graph.core.context import Context
from fp8graph.core.passes import Exact, RewritePass, Stage, pass_name
from fp8graph.core.pipeline import Pipeline
from fp8graph.graph import tensors
from tests.small import feeds, model, refused

TEXT = """(float[2,8] x, float[8,8] w, float[8] w_b) => (float[2,8] y) {
    h = MatMul(x, w)
    b = Add(h, w_b)
    y = LeakyRelu <alpha = 0.5> (b)
}"""


@dataclass(frozen=True)
class Broken(RewritePass):
    """Breaks one promise; `stage` is set by each class below."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exact] = Exact()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        return self.harm(model)

    def harm(self, model: ir.Model) -> int:
        raise NotImplementedError


class RenamesInput(Broken):
    def harm(self, model):
        model.graph.inputs[0].name = "other"
        return 1


class ChangesOutputShape(Broken):
    def harm(self, model):
        model.graph.outputs[0].shape = ir.Shape([8, 2])
        return 1


class ChangesOutputType(Broken):
    def harm(self, model):
        model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
        return 1


class DropsInput(Broken):
    def harm(self, model):
        model.graph.inputs.pop()
        return 1


class SaysNothingOfAnOp(Broken):
    def harm(self, model):
        last = model.graph[-1]
        model.graph.insert_before(last, [ir.node("Relu", [last.inputs[0]])])
        return 0


class SaysNothingOfAnAttribute(Broken):
    def harm(self, model):
        model.graph[-1].attributes["alpha"] = ir.AttrFloat32("alpha", 0.25)
        return 0


class SaysNothingOfWiring(Broken):
    def harm(self, model):
        model.graph[-1].replace_input_with(0, model.graph[0].outputs[0])
        return 0


class SaysNothingOfAWeight(Broken):
    def harm(self, model):
        value = model.graph.initializers["w"]
        value.const_value = ir.tensor(tensors.read(value) * 2)
        return 0


class SaysNothingOfAnOpType(Broken):
    def harm(self, model):
        model.graph[1].op_type = "Sub"
        return 0


class Stumbles(Broken):
    def harm(self, model):
        raise KeyError("w")


BREACHES = [
    (RenamesInput, "inputs or outputs"),
    (ChangesOutputShape, "inputs or outputs"),
    (ChangesOutputType, "inputs or outputs"),
    (DropsInput, "inputs or outputs"),
    (SaysNothingOfAnOp, "says that it did not"),
    (SaysNothingOfAnAttribute, "says that it did not"),
    (SaysNothingOfWiring, "says that it did not"),
    (SaysNothingOfAWeight, "says that it did not"),
    (SaysNothingOfAnOpType, "says that it did not"),
    (Stumbles, "KeyError"),
]


@pytest.mark.parametrize(("cls", "says"), BREACHES, ids=[cls.__name__ for cls, _ in BREACHES])
def test_a_breach_is_an_error_that_names_the_pass(cls, says):
    name = pass_name(cls)
    with refused(PassContractError, "FG901", name, says):
        Pipeline([cls()])(model(TEXT))
    with refused(PassContractError, "FG901", name):
        fp8graph.optimize(model(TEXT), data=feeds(model(TEXT)), passes=[cls()])
    assert PassContractError.status == 5


@dataclass(frozen=True)
class LosesPlanned(RewritePass):
    stage: ClassVar[Stage] = Stage.FOLD
    exact: ClassVar[Exact] = Exact()

    def rewrite(self, model, ctx):
        node = next(node for node in model.graph if node.op_type == "MatMul")
        node.metadata_props.clear()
        node.outputs[0].name = "renamed"
        return 1


def test_a_planned_key_that_is_lost_is_an_error_that_names_pass_and_op():
    with refused(PassContractError, "FG901", "loses-planned", "'h'"):
        fp8graph.optimize(model(TEXT), data=feeds(model(TEXT)), passes=[LosesPlanned()])


@dataclass(frozen=True)
class Invalid(RewritePass):
    stage: ClassVar[Stage] = Stage.CLEAN
    exact: ClassVar[Exact] = Exact()

    def rewrite(self, model, ctx):
        model.graph[-1].attributes["nonsense"] = ir.AttrInt64("nonsense", 1)
        return 1


def test_verify_checks_the_model_after_every_pass():
    Pipeline([Invalid()])(model(TEXT))
    with refused(PassContractError, "FG901", "invalid", "no valid ONNX", "nonsense"):
        Pipeline([Invalid()])(model(TEXT), verify=True)
    proto = model(TEXT)
    assert fp8graph.optimize(proto, data=feeds(proto), verify=True).planned == 1


@dataclass(frozen=True)
class Refuses(RewritePass):
    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exact] = Exact()

    def rewrite(self, model, ctx):
        raise InputError("this model is not for me", code="FG106")


def test_an_error_of_ours_goes_through_a_pass_as_it_is():
    with refused(InputError, "FG106", "not for me"):
        Pipeline([Refuses()])(model(TEXT))


def recording(stage: Stage, name: str, seen: list[str]) -> RewritePass:
    """A pass of this stage that writes its name down."""

    def rewrite(self, model, ctx):
        seen.append(name)
        return 0

    body = {"stage": stage, "exact": Exact(), "rewrite": rewrite, "__annotations__": {}}
    made: RewritePass = dataclass(frozen=True)(type(name, (RewritePass,), body))()
    return made


def test_stages_run_in_order_and_passes_of_one_stage_keep_theirs():
    seen: list[str] = []
    wanted = [
        (Stage.CLEAN, "a"),
        (Stage.NORMALIZE, "b"),
        (Stage.FOLD, "c"),
        (Stage.NORMALIZE, "d"),
        (Stage.LEGALIZE, "e"),
    ]
    Pipeline([recording(stage, name, seen) for stage, name in wanted])(model(TEXT))
    assert seen == ["b", "d", "c", "e", "a"]


def test_facts_are_dropped_after_a_change():
    work = ir.from_proto(model(TEXT))
    ctx = Context(fp8graph.data.target.load("reference"), fp8graph.data.recipe.load("fp8-default"))
    ctx.facts = object()  # type: ignore[assignment]
    Pipeline([recording(Stage.CLEAN, "idle", [])]).run(work, ctx)
    assert ctx.facts is not None
    Pipeline([Invalid()]).run(work, ctx)
    assert ctx.facts is None


def test_what_is_no_pass_is_refused():
    with refused(PassContractError, "FG901", "int is no RewritePass"):
        Pipeline([5])  # type: ignore[list-item]
    with refused(PassContractError, "FG901", "KeepRouter is no RewritePass"):
        Pipeline(["keep-router"])


def test_a_pipeline_on_data_of_its_own_computes_the_same():
    from fp8graph.runners.onnxruntime import OnnxRuntime

    text = """(float[1,3,8,8] x, float[8,3,3,3] w, float[8] w_s, float[8] w_b, float[8] w_m, float[8] w_v)
        => (float[1,8,6,6] y) {
            h = Conv(x, w)
            y = BatchNormalization(h, w_s, w_b, w_m, w_v)
        }"""
    proto = model(text, w_v=np.linspace(0.5, 2, 8))
    made = Pipeline(["fold-batchnorm"])(proto)
    assert [node.op_type for node in made.graph.node] == ["Conv"]
    for feed in feeds(proto):
        one, other = (OnnxRuntime(ir.from_proto(p)).run(feed)["y"] for p in (proto, made))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
