"""Caches of keys and values in FP8: which inputs they are, what becomes of them, and that steps chain exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph import formats
from fp8graph.base.errors import InputError, UsageError
from fp8graph.core import caches
from fp8graph.data.plan import Cache, Plan
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.numerics import cast
from fp8graph.runners.reference import reference
from fp8graph.testing import corpus
from fp8graph_passes.hold_caches import HoldCaches
from tests.passes.doing import planned_run
from tests.small import model, refused

E4M3 = formats.get("e4m3fn")
FP8 = ir.DataType.FLOAT8E4M3FN
SIDES = ("key", "value")


def steps(lengths=(64, 100), queries=4, seed=0):
    random = np.random.default_rng(seed)
    return [
        {
            "x": random.standard_normal((2, queries, 64)).astype(np.float32),
            **{f"past_{side}": random.standard_normal((2, 2, n, 32)).astype(np.float32) for side in SIDES},
        }
        for n in lengths
    ]


@pytest.fixture(scope="module", params=["keep", "fp16", "bf16"])
def held(request, tmp_path_factory):
    """The cached attention of the corpus, its caches in FP8."""
    out = tmp_path_factory.mktemp("held") / "m.onnx"
    return fp8graph.optimize(
        corpus()["kv_cache"],
        data=steps(),
        output=out,
        kv_cache="fp8",
        high_precision_dtype=request.param,
        target="reference",
    )


def test_inputs_and_outputs_become_codes_and_say_what_they_stand_for(held):
    made = load(held.model).model
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    values = {value.name: value for value in (*made.graph.inputs, *made.graph.outputs)}
    kinds = {name: value.dtype for name, value in values.items()}
    assert kinds == {"x": 1, "y": 1} | {f"{when}_{side}": FP8 for when in ("past", "present") for side in SIDES}
    for side in SIDES:
        cache = held.plan.caches[f"past_{side}"]
        assert cache.output == f"present_{side}"
        for when in ("past", "present"):
            said = values[f"{when}_{side}"].metadata_props
            assert np.float32(said["fp8graph.scale"]) == np.float32(cache.quant.scale.value)
            assert said["fp8graph.stands_for"] == "fp32"


def test_the_scale_is_that_of_all_keys_past_and_present():
    done = planned_run(HoldCaches(), corpus()["kv_cache"], kv_cache="fp8", feeds=steps())
    assert done.count == 2
    whole = [reference(done.before).run(feed)["present_key"] for feed in steps()]
    amax = max(float(np.abs(array).max()) for array in whole)
    assert done.ctx.plan is not None
    assert done.ctx.plan.caches["past_key"].quant.scale.value == np.float32(amax) / np.float32(448)


def test_a_step_behind_a_step_keeps_the_older_codes(held):
    """What a deployment does: the codes that one step gives are fed to the next as they are."""
    runner = reference(held.files[0].path)._runner  # codes in, codes out
    first, second = steps((40,))[0], steps((44,), seed=1)[0]
    scales = {side: np.float32(held.plan.caches[f"past_{side}"].quant.scale.value) for side in SIDES}
    own = cast.ml_dtype(E4M3)
    coded = {f"past_{s}": cast.encode(first[f"past_{s}"], E4M3, np.asarray(scales[s])).view(own) for s in SIDES}
    one = runner.run({"x": first["x"], **coded})
    for side in SIDES:
        np.testing.assert_array_equal(one[f"present_{side}"][:, :, :40], coded[f"past_{side}"].view(np.uint8))
    two = runner.run({"x": second["x"], **{f"past_{s}": one[f"present_{s}"].view(own) for s in SIDES}})
    for side in SIDES:
        np.testing.assert_array_equal(two[f"present_{side}"][:, :, :44], one[f"present_{side}"])


def test_the_comparison_feeds_floats_and_reads_floats(held):
    assert held.comparison is not None
    assert not held.comparison.problems
    found = {name: item.sqnr_db for name, item in held.comparison.outputs.items()}
    assert set(found) == {"y", "present_key", "present_value"}
    assert found["present_key"] > 25 and found["present_value"] > 25 and found["y"] > 10


def test_a_plan_with_caches_replays_byte_for_byte(held, tmp_path):
    out = tmp_path / "again.onnx"
    fp8graph.optimize(corpus()["kv_cache"], plan=Plan.from_json(held.plan.to_json()), output=out)
    assert out.read_bytes() == Path(held.files[0].path).read_bytes()


def test_without_the_option_nothing_changes():
    done = planned_run(HoldCaches(), corpus()["kv_cache"], feeds=steps())
    assert done.count == 0 and done.same()


FORMS = {
    "joined by a scatter": ("both = ScatterND (past, at, k)", True),
    "returned behind a Cast": ("wide = Concat <axis = 1> (past, k) both = Identity (wide)", True),
    "not read by a product": ("both = Concat <axis = 1> (past, k) z = Relu (both)", False),
}


@pytest.mark.parametrize(("join", "reached"), FORMS.values(), ids=FORMS)
def test_what_a_cache_is(join, reached):
    read = "scores = MatMul (q, both)" if reached else "scores = MatMul (q, q)"
    text = f"""(float[2,N,16] past, float[2,N,16] k, float[2,4,N] q, int64[2,1] at)
      => (float[2,4,16] scores, float[2,M,16] both) {{ {join} {read} }}"""
    found = [(item.input.name, item.output.name) for item in caches.find(load(model(text)).model) if item.output]
    assert found == ([("past", "both")] if reached else [])


def test_keys_and_values_of_an_encoder_are_caches_without_an_output():
    text = """(float[2,2,4,32] q, float[2,2,48,32] past_k, float[2,2,48,32] past_v) => (float[2,2,4,32] y) {
      kt = Transpose <perm = [0, 1, 3, 2]> (past_k) s = MatMul (q, kt)
      p = Softmax <axis = -1> (s) y = MatMul (p, past_v) }"""
    done = planned_run(HoldCaches(), model(text), kv_cache="fp8")
    kinds = {value.name: value.dtype for value in done.model.graph.inputs}
    assert kinds["past_k"] == kinds["past_v"] == FP8


@pytest.mark.parametrize(
    ("scales", "given"),
    [
        (
            {"m.layers.0.attn.k_scale": 0.02, "m.layers.0.attn.v_scale": 0.03, "m.layers.1.attn.k_scale": 9},
            (0.02, 0.03),
        ),
        ({"layers.0.k_proj.k_scale": 0.02, "layers.0.q_proj.input_scale": 9}, (0.02, None)),
        ({"layers.0.attn.kv_scale": 0.02}, (0.02, 0.02)),
        ({"layers.1.attn.kv_scale": 0.02}, (None, None)),
    ],
)
def test_scales_that_came_with_a_checkpoint_are_those_of_its_layers(scales, given, tmp_path):
    proto = onnx.ModelProto.FromString(corpus()["kv_cache"].SerializeToString())
    renamed = {"past_key": "past.0.key", "past_value": "past.0.value"}
    for value in proto.graph.input:
        value.name = renamed.get(value.name, value.name)
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    onnx.helper.set_model_props(proto, {"fp8graph.given_scales": json.dumps(scales)})
    feeds = [{renamed.get(name, name): array for name, array in feed.items()} for feed in steps()]
    done = fp8graph.optimize(proto, data=feeds, kv_cache="fp8", target="reference")
    for side, number in zip(SIDES, given, strict=True):
        scale = done.plan.caches[f"past.0.{side}"].quant.scale
        readers = [
            op.inputs[1].scale for key, op in done.plan.ops.items() if key == {"key": "scores"}.get(side, "context")
        ]
        assert {one.value for one in readers} == {scale.value}
        assert scale.origin == ("given" if number else "observed")
        assert number is None or scale.value == np.float32(number)
    codes = [place.node for place in walk.walk(load(done.model).model) if place.node.op_type == "QuantizeLinear"]
    assert len(codes) == 8  # none quantizes a cache again


def test_a_model_without_caches_is_told(tmp_path):
    with refused(UsageError, "FG109", "no cache of keys and values", "--kv-cache fp8"):
        fp8graph.optimize(
            model("(float[2,16] x, float[16,8] w) => (float[2,8] y) { y = MatMul(x, w) }"), kv_cache="fp8"
        )


def test_a_plan_with_another_models_cache_is_refused(held):
    document = held.plan.to_json()
    document["caches"]["ghost"] = document["caches"].pop("past_key")
    with refused(InputError, "FG110", "ghost"):
        fp8graph.optimize(corpus()["kv_cache"], plan=Plan.from_json(document))


def test_a_cache_goes_through_a_document():
    quant = planned_run(HoldCaches(), corpus()["kv_cache"], kv_cache="fp8", feeds=steps()).ctx.plan
    assert quant is not None
    again = Plan.from_json(quant.to_json())
    assert again.caches == quant.caches and isinstance(again.caches["past_key"], Cache)


def test_a_cache_that_attention_in_high_precision_reads_is_what_the_plan_means_and_no_warning(tmp_path):
    """One query: the product stays in high precision, says so, and reads a cache in FP8 as was asked for."""
    feeds = steps(queries=1)
    out = tmp_path / "m.onnx"
    how = {"kv_cache": "fp8", "target": "tensorrt-rtx:sm89", "high_precision_dtype": "fp16"}
    done = fp8graph.optimize(corpus()["kv_cache"], data=feeds, output=out, **how)
    for key in ("scores", "context"):
        assert done.plan.ops[key].why.code == "FG304" and "in FP8 where that is held so" in done.plan.ops[key].why.text
    for findings in (done.findings, fp8graph.check(out, target="tensorrt-rtx:sm89")):
        assert {(item.severity, item.do) for item in findings if item.code == "FG305"} == {("info", "")}
