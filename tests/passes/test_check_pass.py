"""`check_pass` itself: each broken promise is seen, and said in words that name the pass and the model."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph.testing as suite
from fp8graph.base.errors import InputError, UsageError
from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exact, Offer, Opinion, PlanRule, Repair, RewritePass, Stage, Ulps
from fp8graph.data.plan import Adjust
from fp8graph.graph import edit, tensors, walk
from fp8graph.numerics import sidecar
from fp8graph.testing import check_pass, corpus, difference, from_text, planned, random_feeds
from fp8graph_passes.balance_rounding import BalanceRounding
from fp8graph_passes.fold_batchnorm import FoldBatchnorm
from tests.small import model

DENSE = "(float[2,16] x, float[16,8] w) => (float[2,8] y) { a = MatMul(x, w) y = Relu(a) }"


@dataclass(frozen=True)
class Rewriting(RewritePass):
    """Changes each MatMul's weight by a factor, and counts that."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Any] = Approximate("for a test")
    factor: float = 1.5

    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        found = [place.node for place in walk.walk(work) if place.node.op_type == "MatMul"]
        for node in found:
            self.scale(node)
        return len(found)

    def scale(self, node: ir.Node) -> None:
        weight = node.inputs[1]
        if weight is None or not isinstance(weight.graph, ir.Graph) or not tensors.is_constant(weight):
            return
        made = tensors.lazy_from(weight, f"{weight.name}_scaled", self.change)
        weight.graph.register_initializer(made)
        node.replace_input_with(1, made)
        edit.drop_unused_initializer(weight)

    def change(self, array: Any) -> Any:
        with np.errstate(over="ignore"):
            return array * np.float32(self.factor)


@dataclass(frozen=True)
class Raises(Rewriting):
    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        raise KeyError("nothing")


@dataclass(frozen=True)
class Refuses(Rewriting):
    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        raise InputError("not this one", code="FG106")


@dataclass(frozen=True)
class RenamesTheOutput(Rewriting):
    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        work.graph.outputs[0].name = "renamed"
        return 1


@dataclass(frozen=True)
class CountsNothing(Rewriting):
    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        super().rewrite(work, ctx)
        return 0


@dataclass(frozen=True)
class CountsWhatItSaw(Rewriting):
    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        return sum(1 for place in walk.walk(work) if place.node.op_type == "MatMul")


@dataclass(frozen=True)
class ReturnsNone(Rewriting):
    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        super().rewrite(work, ctx)
        return None  # type: ignore[return-value]


@dataclass(frozen=True)
class Random(Rewriting):
    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        return replace(self, factor=random.random()).scale_all(work)

    def scale_all(self, work: ir.Model) -> int:
        return Rewriting(self.factor).rewrite(work, None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class WritesAnUnknownOp(Rewriting):
    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        found = [place.node for place in walk.walk(work) if place.node.op_type == "Relu"]
        for node in found:
            node.op_type = "Rellu"
        return len(found)


@dataclass(frozen=True)
class DropsTheRelu(Rewriting):
    exact: ClassVar[Any] = Exact()

    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        found = [place.node for place in walk.walk(work) if place.node.op_type == "Relu"]
        for node in found:
            node.op_type = "Identity"
        return len(found)


@dataclass(frozen=True)
class ScalesAndSaysExact(Rewriting):
    exact: ClassVar[Any] = Exact()
    factor: float = 1.0 + 2**-20

    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        return self.once(work)

    def once(self, work: ir.Model) -> int:
        """Idempotent: a weight that was scaled is left alone."""
        count = 0
        for place in list(walk.walk(work)):
            weight = place.node.inputs[1] if place.node.op_type == "MatMul" else None
            if weight is not None and not (weight.name or "").endswith("_scaled"):
                self.scale(place.node)
                count += 1
        return count


@dataclass(frozen=True)
class ScalesWithinUlps(ScalesAndSaysExact):
    exact: ClassVar[Any] = Ulps(8)


@dataclass(frozen=True)
class ScalesBeyondUlps(ScalesAndSaysExact):
    exact: ClassVar[Any] = Ulps(1)


@dataclass(frozen=True)
class Overflows(ScalesAndSaysExact):
    exact: ClassVar[Any] = Approximate("it says")
    factor: float = 1e38


@dataclass(frozen=True)
class CannotBeWritten(ScalesAndSaysExact):
    def change(self, array: Any) -> Any:
        raise ZeroDivisionError("too late")


@dataclass(frozen=True)
class LosesAnOp(Rewriting):
    stage: ClassVar[Stage] = Stage.FOLD

    def rewrite(self, work: ir.Model, ctx: Context) -> int:
        found = [p.node for p in walk.walk(work) if p.node.op_type == "MatMul" and p.node.name != "lost"]
        for node in found:
            node.metadata_props[walk.KEY] = "elsewhere"
            node.name = "lost"  # metadata alone is no change
        return len(found)


BROKEN = {
    Raises: (suite.CrashError, "KeyError: 'nothing'"),
    Refuses: (suite.CrashError, "not this one"),
    RenamesTheOutput: (suite.InterfaceError, "inputs or outputs"),
    CountsNothing: (suite.CountError, "returned 0, and the model changed"),
    CountsWhatItSaw: (suite.CountError, "returned 1, and the model did not change"),
    ReturnsNone: (suite.CountError, "returned None"),
    Random: (suite.DeterminismError, "two runs"),
    Rewriting: (suite.IdempotenceError, "a second run made 1 changes"),
    WritesAnUnknownOp: (suite.ValidityError, "Rellu"),
    DropsTheRelu: (suite.ExactnessError, "output 'y'"),
    ScalesAndSaysExact: (suite.ExactnessError, "`exact` declares none"),
    ScalesBeyondUlps: (suite.ExactnessError, "1 units in the last place allow"),
    Overflows: (suite.ExactnessError, "not finite where it was"),
    CannotBeWritten: (suite.CrashError, "cannot be written: ZeroDivisionError: too late"),
    LosesAnOp: (suite.PlanError, "'a' is gone"),
}


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_promise_is_seen_and_the_message_names_pass_and_model(cls):
    error, words = BROKEN[cls]
    weight = np.full((16, 8), 5.0, np.float32) if cls is Overflows else None
    named = {"small": model(DENSE, **({"w": weight} if weight is not None else {}))}
    with pytest.raises(AssertionError) as raised:
        check_pass(cls, named, highs=("keep",))
    assert type(raised.value) is error
    text = str(raised.value)
    assert words in text
    assert text.startswith(f"{cls().name} on small")


def test_a_pass_that_keeps_its_promises_passes_and_tells_what_it_did():
    assert check_pass(ScalesWithinUlps, {"small": model(DENSE)}) == {"small": 1, "small, in its place": 1}


def test_a_pass_that_finds_nothing_says_so_by_zeros():
    assert set(check_pass(FoldBatchnorm(), [model(DENSE)]).values()) == {0}


def test_metadata_is_no_change():
    @dataclass(frozen=True)
    class Signs(Rewriting):
        def rewrite(self, work: ir.Model, ctx: Context) -> int:
            for place in walk.walk(work):
                place.node.metadata_props["signed"] = "yes"
                for value in place.node.outputs:
                    value.metadata_props["signed"] = "yes"
            work.metadata_props["signed"] = "yes"
            return 0

    assert set(check_pass(Signs, [model(DENSE)]).values()) == {0}


@dataclass(frozen=True)
class Rule(PlanRule):
    """About MatMul; `code` and `text` of its opinion."""

    code: str = "FG206"
    text: str = "for a test"

    def decide(self, op, ctx):
        return Opinion("keep", self.code, self.text) if op.node.op_type == "MatMul" else None


class Fickle(Rule):
    count: ClassVar[list[int]] = [0]

    def decide(self, op, ctx):
        self.count[0] += 1
        return Opinion("keep", "FG206", f"asked {self.count[0]} times")


class Edits(Rule):
    def decide(self, op, ctx):
        op.node.name = "mine"


class Breaks(Rule):
    def decide(self, op, ctx):
        return op.node.inputs[7]


RULES = {
    "an unknown code": (Rule(code="FG299"), suite.PurityError, "no code 'FG299'"),
    "no code at all": (Rule(code="because"), suite.PurityError, "no code 'because'"),
    "no text": (Rule(text=""), suite.PurityError, "no opinion with a text"),
    "two answers": (Fickle(), suite.PurityError, "asked 1 times"),
    "a changed model": (Edits(), suite.PurityError, "changed the model"),
    "an exception": (Breaks(), suite.CrashError, "IndexError"),
}


@pytest.mark.parametrize("what", RULES)
def test_a_rule_that_gives_it_away_is_seen(what):
    rule, error, words = RULES[what]
    with pytest.raises(error, match=words):
        check_pass(rule, [model(DENSE)])


@pytest.mark.parametrize("code", ["FG206", "ACME12"])
def test_a_rule_may_use_known_codes_and_letters_of_its_own(code):
    assert check_pass(Rule(code=code), {"small": model(DENSE)}) == {"small": 1}


@dataclass(frozen=True)
class Repairing(Repair):
    """Balances rounding, and lies about what the class says."""

    lie: str = ""

    def needs(self, op, decision):
        return ["nowhere"] if self.lie == "needs" else []

    def solve(self, op, decision, ctx, weights):
        found = []
        for adjust, array in BalanceRounding().solve(op, decision, ctx, weights):
            adjust = replace(adjust, rule=self.name)
            if self.lie == "array":
                array = array[:1]
            if self.lie == "random":
                array = np.random.default_rng().integers(0, 9, array.shape).astype(np.uint8)
            if self.lie == "weight":
                adjust = replace(adjust, weight="00")
            if self.lie == "name":
                adjust = replace(adjust, value=sidecar.reference("codes", array))
            if self.lie == "rule":
                adjust = replace(adjust, rule="somebody")
            found.append((adjust, array))
        return found


REPAIRS = {
    "needs": "no such tensor",
    "array": "not the array",
    "random": "two things",
    "weight": "not bound",
    "name": "another array",
    "rule": "signed",
}


@pytest.mark.parametrize("lie", REPAIRS)
def test_a_repair_that_gives_it_away_is_seen(lie):
    text = """(float[2,16] x, float[16,16] w, float[16,16] w_b) => (float[2,16] y) {
        a = MatMul(x, w) y = MatMul(a, w_b) }"""
    with pytest.raises(suite.PurityError, match=REPAIRS[lie]):
        check_pass(Repairing(lie), [model(text)])
    assert check_pass(Repairing(), {"small": model(text)}) == {"small": 2}


@dataclass(frozen=True)
class Offering(Repair):
    """Splits an activation's channels, and lies about what the class says."""

    weighs: ClassVar[bool] = True
    lie: str = ""

    def offers(self, op, decision, ctx):
        cost = float(np.random.default_rng().random()) if self.lie == "random" else 1.0
        return [Offer(7 if self.lie == "slot" else 0, -1 if self.lie == "channel" else 3, 1.0, cost)]

    def solve(self, op, decision, ctx, weights):
        array = np.asarray(ctx.granted[op.key][0], np.int64)
        digest = "" if self.lie == "weight" else sidecar.weight_digest(weights(1))
        return [(Adjust("terms", 0, self.name, sidecar.reference(f"{op.key}.terms", array), digest), array)]


@pytest.mark.parametrize(
    ("lie", "says"),
    [("random", "other offers"), ("slot", "nothing that"), ("channel", "nothing that"), ("weight", "not bound")],
)
def test_a_repair_that_makes_offers_is_held_to_them(lie, says):
    with pytest.raises(AssertionError, match=says):
        check_pass(Offering(lie), [model(DENSE)])
    assert check_pass(Offering(), {"small": model(DENSE)}) == {"small": 1}


@dataclass(frozen=True)
class Learner(Repair):
    """Wants moments; has them."""

    learns: ClassVar[bool] = True

    def solve(self, op, decision, ctx, weights):
        moments = ctx.moments[op.key]
        array = (moments.sums.sum(0) * moments.unit).astype(np.float32)[:8]
        reference = sidecar.reference(f"{op.key}.bias", array)
        return [(Adjust("bias", 1, self.name, reference, sidecar.weight_digest(weights(1))), array)]


def test_a_repair_that_learns_is_told_moments():
    assert check_pass(Learner(), {"small": model(DENSE)}) == {"small": 1}


def test_what_is_no_pass_is_refused():
    with pytest.raises(UsageError, match="no RewritePass"):
        check_pass(object())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no model"):
        check_pass(Rule(), [])


F32 = np.float32
CASES = [
    ("equal", [1, 2], [1, 2], Exact(), True),
    ("NaN is NaN", [np.nan, 2], [np.nan, 2], Exact(), True),
    ("-0 is 0", [0.0], [-0.0], Exact(), True),
    ("one unit is not exact", [1.0], [np.nextafter(F32(1), F32(2))], Exact(), False),
    ("within 4 n units of the largest", [8.0, 0.0], [8.0, 4 * 2**-20], Ulps(1), True),
    ("beyond them", [8.0, 0.0], [8.0, 5 * 2**-20], Ulps(1), False),
    ("an infinity is no rounding", [1.0], [np.inf], Ulps(1000), False),
    ("finite is all that approximate says", [1.0, np.inf], [7.0, 3.0], Approximate("x"), True),
    ("it does say that", [1.0], [np.nan], Approximate("x"), False),
]


@pytest.mark.parametrize(("old", "new", "exact", "fine"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_counts_as_a_difference(old, new, exact, fine):
    text = difference(np.array(old, F32), np.array(new, F32), exact, 2.0**-23)
    assert (text == "") is fine, text


def test_another_type_or_shape_is_always_a_difference():
    array = np.zeros(3, np.float32)
    for other in (array.astype(np.float64), array.reshape(1, 3)):
        assert difference(array, other, Approximate("x"), 1.0)
    assert difference(np.array([1, 2]), np.array([1, 3]), Ulps(9), 1.0)


def test_weights_of_text_models_are_the_same_everywhere():
    text = """<ir_version: 10, opset_import: ["" : 21]>
    named (float[2,3] x, float[3] w_a, float[3] w_pos_b, bfloat16[3] w_c, bool c) => (float[2,3] y) {
        y = If (c) <then_branch = t () => (float[2,3] a) <float[3] w_own> { a = Add(x, w_own) },
                    else_branch = e () => (float[2,3] b) { b = Mul(x, w_pos_b) }>
    }"""
    proto = from_text(text)
    assert [value.name for value in proto.graph.input] == ["x", "c"]
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    np.testing.assert_array_equal(
        held["w_a"], np.float32([0.011045542545616627, -0.10366173088550568, 0.3062403202056885])
    )
    assert ((held["w_pos_b"] >= 0.5) & (held["w_pos_b"] < 1.5)).all()
    assert held["w_c"].dtype == ml_dtypes.bfloat16
    body = proto.graph.node[0].attribute[0].g
    assert [tensor.name for tensor in body.initializer] == ["w_own"]
    again = from_text(text.replace("named", "other"))
    assert onnx.numpy_helper.to_array(again.graph.initializer[0]).tolist() != held["w_a"].tolist()
    assert from_text(text).SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)


def test_feeds_have_both_signs_and_open_dimensions_are_not_1():
    work = ir.from_proto(model("(float[N,64] x, bool[N,64] c, int64[N] i) => (float[N,64] y) { y = Where(c, x, x) }"))
    feed = random_feeds(work)
    assert {name: array.shape for name, array in feed.items()} == {"x": (2, 64), "c": (2, 64), "i": (2,)}
    assert feed["x"].min() < 0 < feed["x"].max()
    assert set(np.unique(feed["i"])) <= {0, 1}
    assert feed["c"].dtype == np.bool_
    assert not np.array_equal(feed["x"], random_feeds(work, seed=1)["x"])


def test_a_folder_of_ones_own_is_a_corpus(tmp_path):
    (tmp_path / "mine.onnxtxt").write_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    )
    assert list(corpus(tmp_path)) == ["mine"]
    with pytest.raises(UsageError, match="no text models"):
        corpus(tmp_path / "empty")
    (tmp_path / "broken.onnxtxt").write_text("<ir_version: ten>")
    with pytest.raises(UsageError, match="cannot be read"):
        corpus(tmp_path)


def test_a_planned_model_is_quantized_as_far_as_asked():
    kinds = {}
    for until in (Stage.QUANTIZE, Stage.FOLD, None):
        prepared = planned(model(DENSE), until=until, high="fp16")
        kinds[until] = {node.op_type for node in prepared.model.graph}
    assert kinds[Stage.QUANTIZE] == {"MatMul", "Relu"}
    assert kinds[Stage.FOLD] == {"QuantizeLinear", "DequantizeLinear", "MatMul", "Relu", "Cast"}
    assert kinds[None] == kinds[Stage.FOLD]
    assert prepared.ctx.plan is not None and prepared.ctx.plan.settled


def test_a_model_may_have_feeds_of_its_own():
    text = """(float[N,16] x, float[M,16] z, float[16,8] w) => (float[K,8] y) {
        a = Concat <axis = 0> (x, z) y = MatMul(a, w) }"""
    own = [{"x": np.ones((1, 16), np.float32), "z": np.full((3, 16), 2.0, np.float32)}]
    for cls in (ScalesWithinUlps, Rule):
        assert set(check_pass(cls, {"small": model(text)}, feeds={"small": own}).values()) == {1}
    prepared = planned(model(text), feeds=own)
    assert prepared.feeds == tuple(own)
    scale = prepared.model.graph.initializers["a_scale"].const_value
    assert scale is not None and scale.numpy() == np.float32(2) / np.float32(448)
