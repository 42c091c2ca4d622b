"""The plan is the product: it replays byte for byte, without data, and on no other model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fp8graph
from fp8graph.base.errors import InputError, UsageError
from fp8graph.data import recipe as recipes
from fp8graph.data.plan import Plan, Profile
from tests.small import contents, feeds, model, refused, sha

CHILD = """
import sys, fp8graph
model, output, data = sys.argv[1:]
fp8graph.optimize(model, output=output, target="tensorrt-rtx:sm89", data=data, compare=False)  # which writes nothing
"""


@pytest.mark.parametrize("threads", ["1", pytest.param("4", marks=pytest.mark.slow)])
def test_the_same_bytes_in_another_process_whatever_hash_seed_and_threads(tmp_path, made, calibration, threads):
    environment = {**os.environ, "PYTHONHASHSEED": threads, "OMP_NUM_THREADS": threads}
    out = tmp_path / "out.onnx"
    subprocess.run(
        [sys.executable, "-c", CHILD, str(made.source), str(out), str(calibration)], env=environment, check=True
    )
    assert contents(tmp_path) == contents(made.out.parent)


def test_a_plan_replays_byte_for_byte_without_data(tmp_path, made):
    for number, plan in enumerate((made.plan, str(made.plan), made.done.plan)):
        out = tmp_path / str(number) / "out.onnx"
        out.parent.mkdir()
        done = fp8graph.optimize(made.source, plan=plan, output=out)
        assert contents(out.parent) == contents(made.out.parent)
        assert done.plan == made.done.plan and done.comparison is None


def test_a_plan_without_numbers_replays_with_data(tmp_path, made, calibration):
    shapes = made.done.plan.shapes
    fp8graph.optimize(made.source, plan_only=True, output=tmp_path / "p", target="tensorrt-rtx:sm89", shapes=shapes)
    with refused(UsageError, "FG120", "activation tensors"):
        fp8graph.optimize(made.source, plan=tmp_path / "p.plan.json", output=tmp_path / "out.onnx")
    fp8graph.optimize(made.source, plan=tmp_path / "p.plan.json", output=tmp_path / "out.onnx", data=calibration)
    assert sha(tmp_path / "out.onnx") == sha(made.out)


def test_ranges_observed_before_give_the_same_bytes_as_data(tmp_path, made, calibration):
    ranges = fp8graph.calibrate(made.source, data=calibration, target="tensorrt-rtx:sm89", output=tmp_path / "r.json")
    out = tmp_path / "out" / "out.onnx"
    out.parent.mkdir()
    how = {"ranges": tmp_path / "r.json", "target": "tensorrt-rtx:sm89"}
    fp8graph.optimize(made.source, data=calibration, compare=False, output=out, **how)
    assert contents(out.parent) == contents(made.out.parent)
    # Alone they give what is learned of no samples.
    bare = replace(recipes.load("fp8-default"), repairs=())
    done = fp8graph.optimize(made.source, recipe=bare, **how)
    plain = fp8graph.optimize(made.source, data=calibration, recipe=bare, target=how["target"], compare=False)
    assert done.plan == plain.plan and done.model == plain.model
    assert done.comparison is None and ranges.ranges.samples == 256


def test_one_calibration_serves_every_target(tmp_path, digits, calibration):
    ranges = fp8graph.calibrate(digits / "cnn.onnx", data=calibration, samples=16).ranges
    for target in ("tensorrt-rtx:sm120", "onnxruntime"):
        assert fp8graph.optimize(digits / "cnn.onnx", ranges=ranges, target=target, plan_only=True).plan.settled


def test_ranges_of_another_model_are_refused(tmp_path, digits, calibration):
    fp8graph.calibrate(digits / "cnn.onnx", data=calibration, samples=4, output=tmp_path / "r.json")
    with refused(InputError, "FG110", "another model"):
        fp8graph.optimize(digits / "vit.onnx", ranges=tmp_path / "r.json", plan_only=True)


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_ranges_bind_to_the_weights_wherever_they_lie(tmp_path, where):
    text = (
        "(float[2,64] x, float[64,64] w, float[64,64] w_b) => (float[2,64] y) { h = MatMul(x, w) y = MatMul(h, w_b) }"
    )
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        path = tmp_path / str(seed) / "m.onnx"
        onnx.save(
            model(text, seed=seed), str(path), save_as_external_data=where == "beside", size_threshold=64, location="w"
        )
    one, other = tmp_path / "1" / "m.onnx", tmp_path / "2" / "m.onnx"
    ranges = fp8graph.calibrate(one, data=feeds(model(text))).ranges
    assert fp8graph.optimize(one, ranges=ranges, plan_only=True).plan.settled
    with refused(InputError, "FG110", "another model"):
        fp8graph.optimize(other, ranges=ranges, plan_only=True)


def fine_tuned(path: Path, to: Path) -> Path:
    """The model with every large float weight moved a little, as training would."""
    proto = onnx.load(str(path))
    random = np.random.default_rng(3)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 16:
            moved = array * (1 + 0.01 * random.standard_normal(array.shape)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    onnx.save(proto, str(to))
    return to


def test_a_plan_survives_fine_tuning(tmp_path, made):
    other = fine_tuned(made.source, tmp_path / "tuned.onnx")
    done = fp8graph.optimize(other, plan=made.plan, output=tmp_path / "out.onnx")
    old = {key: replace(op, adjust=()) for key, op in made.done.plan.ops.items()}
    assert replace(done.plan, arrays={}) == replace(made.done.plan, ops=old, arrays={})
    assert done.planned == made.done.planned
    (said,) = [item for item in done.findings if item.code == "FG248"]
    assert said.severity == "warning" and "left out" in said.text and "--data" in said.do
    assert sha(tmp_path / "out.onnx") != sha(made.out)
    before, after = (onnx.load(str(path)).graph for path in (made.out, tmp_path / "out.onnx"))
    assert [node.op_type for node in before.node] == [node.op_type for node in after.node]
    scales = {t.name: numpy_helper.to_array(t) for t in before.initializer if t.name.endswith("_scale")}
    moved = {t.name: numpy_helper.to_array(t) for t in after.initializer if t.name in scales}
    changed = {name for name in scales if not np.array_equal(scales[name], moved[name])}
    observed = {f"{q.value}_scale" for q in made.done.plan.quants() if q.scale.origin != "computed"}
    assert changed and not changed & observed  # scales of weights are derived anew, those of data stay
    assert {path.name for path in tmp_path.iterdir()} == {"tuned.onnx", "out.onnx", "out.onnx.plan.json"}


def test_what_repairs_have_found_is_found_anew_for_a_model_that_was_trained_on(tmp_path, made, calibration):
    other = fine_tuned(made.source, tmp_path / "tuned.onnx")
    done = fp8graph.optimize(other, plan=made.plan, data=calibration, compare=False)
    assert any(op.adjust for op in done.plan.ops.values())
    assert ["found anew" in item.text for item in done.findings if item.code == "FG248"] == [True]
    plain = fp8graph.optimize(other, plan=made.plan)
    new, old = (fp8graph.compare(other, each.model, data=calibration, samples=64) for each in (done, plain))
    name = next(iter(new.outputs))
    assert new.outputs[name].sqnr_db > old.outputs[name].sqnr_db


def test_a_plan_of_another_model_is_refused_and_says_what_differs(tmp_path, digits, made):
    other = digits / ("vit.onnx" if made.name == "cnn" else "cnn.onnx")
    with refused(InputError, "FG110", "made for another model", "the plan has an op '", "the model has none"):
        fp8graph.optimize(other, plan=made.plan, output=tmp_path / "out.onnx")
    assert contents(tmp_path) == {} and InputError.status == 3


BASE = "(float[2,8] x, float[8,8] w) => (float[2,8] y) { h = Relu(x) y = MatMul(h, w) }"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BASE.replace("h = Relu(x)", "g = Relu(x) h = Relu(g)"), "the model has an op 'g', the plan has none"),
        (
            BASE.replace("h = Relu(x) y = MatMul(h, w)", "y = MatMul(x, w)"),
            "the plan has an op 'h', the model has none",
        ),
        (BASE.replace("[2,8]", "[4,8]"), "shapes or attributes differ"),
        (BASE.replace("Relu", "Sigmoid"), "differ"),
    ],
)
def test_another_structure_is_refused_and_the_difference_is_named(text, says):
    plan = fp8graph.optimize(model(BASE), plan_only=True).plan
    with refused(InputError, "FG110", says):
        fp8graph.optimize(model(text), plan=plan, data=feeds(model(text)))


CONTRADICTIONS = [
    ({"target": "tensorrt-rtx:sm120"}, "--target contradicts the plan"),
    ({"recipe": "mine"}, "--recipe contradicts the plan"),
    ({"nodes_to_exclude": ["h"]}, "--nodes-to-exclude contradicts the plan"),
    ({"op_types_to_exclude": ["Conv"]}, "--op-types-to-exclude contradicts the plan"),
    ({"attention": "off"}, "--attention contradicts the plan"),
    ({"fp8_everywhere": True}, "--fp8-everywhere contradicts the plan"),
    ({"high_precision_dtype": "fp16"}, "--high-precision-dtype contradicts the plan"),
    ({"shapes": {"image": Profile((2, 1, 8, 8), (2, 1, 8, 8), (2, 1, 8, 8))}}, "--shapes contradicts the plan"),
]


@pytest.mark.parametrize(("asked", "says"), CONTRADICTIONS)
def test_an_option_that_contradicts_the_plan_is_a_wrong_call(tmp_path, made, asked, says):
    with refused(UsageError, "FG110", says, "leave the option out"):
        fp8graph.optimize(made.source, plan=made.plan, output=tmp_path / "out.onnx", **asked)
    assert contents(tmp_path) == {} and UsageError.status == 2


def test_options_that_repeat_the_plan_are_welcome(tmp_path, made):
    out = tmp_path / "out.onnx"
    fp8graph.optimize(
        made.source, plan=made.plan, output=out, target="tensorrt-rtx:sm89", recipe="fp8-default",
        shapes=made.done.plan.shapes,
    )  # fmt: skip
    assert sha(out) == sha(made.out)


def test_options_that_the_plan_was_made_with_are_no_contradiction():
    proto, asked = model(BASE), {"nodes_to_exclude": ["h"], "fp8_everywhere": True}
    plan = fp8graph.optimize(proto, data=feeds(proto), **asked).plan
    assert fp8graph.optimize(proto, plan=plan, **asked).plan == plan
    with refused(UsageError, "FG110", "--nodes-to-exclude"):
        fp8graph.optimize(proto, plan=plan, nodes_to_exclude=["y"])


def test_a_plan_edited_by_hand_is_carried_out_as_it_says(tmp_path, made):
    document = json.loads(made.plan.read_text())
    key = next(key for key, op in made.done.plan.quantized() if not op.group)
    op = document["ops"][key]
    op["do"], op["why"] = "keep", {"code": "FG203", "by": "me", "text": "by hand"}
    del op["inputs"]
    (tmp_path / "p.json").write_text(json.dumps(document))
    (tmp_path / "p.safetensors").write_bytes(made.plan.with_suffix(".safetensors").read_bytes())
    done = fp8graph.optimize(made.source, plan=tmp_path / "p.json")
    assert done.planned == made.done.planned - 1 and done.plan.ops[key].why.text == "by hand"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d["ops"].popitem(), "FG110"),
        (lambda d: d["ops"].update(more=next(iter(d["ops"].values()))), "FG110"),
        (lambda d: d.update(structure="sha256:0"), "FG110"),
        (lambda d: d.update(schema="fp8graph.plan/2"), "FG111"),
        (lambda d: d.pop("ops"), "FG111"),
        (lambda d: d["ops"]["y"]["inputs"]["0"].update(format="e9m9"), "FG111"),
        (lambda d: d["ops"]["y"]["inputs"].update({"7": d["ops"]["y"]["inputs"]["0"]}), "FG110"),
        (lambda d: d["ops"]["y"]["inputs"].update({"-1": d["ops"]["y"]["inputs"]["0"]}), "FG110"),
        (lambda d: d["ops"]["y"]["inputs"]["1"].update(granularity={"blocks": [[9, 1]]}), "FG110"),
        (lambda d: d["ops"]["y"]["inputs"]["0"].update(granularity={"blocks": [[1, 1]]}), "FG110"),
        (lambda d: d["ops"]["y"]["inputs"]["0"]["scale"].update(value=-1.0), "FG111"),
        (lambda d: d.update(target="none"), "FG111"),
        (lambda d: d.update(target="tensorrt-rtx:sm86"), "FG111"),
        (lambda d: d.update(recipe={}), "FG111"),
        (lambda d: d["asked"].update(passes=5), "FG111"),
        (lambda d: d["asked"].update(high_precision_dtype="fp64"), "FG111"),
    ],
)
def test_a_plan_that_was_damaged_is_refused_with_status_3(tmp_path, change, code):
    proto = model(BASE)
    plan = fp8graph.optimize(proto, data=feeds(proto)).plan
    document = json.loads(json.dumps(plan.to_json()))
    change(document)
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as raised:
        fp8graph.optimize(proto, plan=tmp_path / "p.json", output=tmp_path / "out.onnx")
    assert raised.value.code == code and set(contents(tmp_path)) == {"p.json"}


def test_a_plan_of_no_file_is_refused(tmp_path, digits):
    for name, content in (("none.json", None), ("torn.json", "{"), ("other.json", "[]")):
        if content is not None:
            (tmp_path / name).write_text(content)
        with refused(InputError, "FG111", name):
            fp8graph.optimize(digits / "cnn.onnx", plan=tmp_path / name)


def test_the_order_of_ops_in_a_plan_is_graph_order_and_data_is_stamped(made):
    assert list(made.done.plan.ops)[-1] == "logits"
    assert replace(made.done.plan, data="") != made.done.plan
    assert isinstance(made.done.plan, Plan) and made.done.plan.target == "tensorrt-rtx:sm89"


def test_a_plan_made_alone_is_carried_out_in_its_place(tmp_path, digits, calibration):
    out = tmp_path / "cnn.fp8.onnx"
    fp8graph.optimize(digits / "cnn.onnx", output=out, plan_only=True)
    plan = tmp_path / "cnn.fp8.onnx.plan.json"
    done = fp8graph.optimize(digits / "cnn.onnx", output=out, plan=plan, data=calibration, compare=False)
    assert done.plan.settled
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, plan.name, "cnn.fp8.onnx.plan.safetensors"]


@pytest.mark.parametrize("how", ["data", "ranges"])
def test_a_plan_made_without_data_is_carried_out_with_it_as_in_one_go(tmp_path, how):
    text = """(float16[1,2,n,32] q, float16[1,2,32,n] k, float16[1,2,n,32] v, float16[32,32] w)
        => (float16[1,2,n,32] y) {
        s = MatMul(q, k)
        p = Softmax <axis = -1> (s)
        c = MatMul(p, v)
        y = MatMul(c, w)
    }"""
    proto = model(text)
    sizes = {"q": (1, 2, 8, 32), "k": (1, 2, 32, 8), "v": (1, 2, 8, 32)}  # few keys: attention does not pay
    data = [
        {name: np.random.default_rng(seed).standard_normal(size).astype(np.float16) for name, size in sizes.items()}
        for seed in range(2)
    ]
    asked = {"target": "tensorrt-rtx:sm89"}
    alone = fp8graph.optimize(proto, plan_only=True, **asked).plan
    assert not alone.shapes and alone.ops["s"].do == "quantize"
    seen = {"data": data} if how == "data" else {"ranges": fp8graph.calibrate(proto, data=data, **asked).ranges}
    once = fp8graph.optimize(proto, **seen, **asked)
    then = fp8graph.optimize(proto, plan=alone, **seen)
    assert then.plan == once.plan
    assert then.plan.shapes["q"].opt == (1, 2, 8, 32) and then.plan.ops["s"].do == "keep"
    assert then.model.SerializeToString() == once.model.SerializeToString()


def test_what_a_reader_of_the_plan_has_changed_stays(tmp_path):
    proto = model(
        """(float[n,32] x, float[32,32] w_a, float[32,32] w_b) => (float[n,32] y) {
        h = MatMul(x, w_a) y = MatMul(h, w_b) }"""
    )
    alone = fp8graph.optimize(proto, plan_only=True).plan
    reason = replace(alone.ops["h"].why, code="FG203", text="mine")
    mine = replace(alone, ops={**alone.ops, "h": alone.ops["h"].kept(reason)})
    done = fp8graph.optimize(proto, plan=mine, data=feeds(proto))
    assert (done.plan.ops["h"].do, done.plan.ops["h"].why.text) == ("keep", "mine")
    assert done.plan.ops["y"].do == "quantize" and done.plan.shapes["x"].opt == (2, 32)
