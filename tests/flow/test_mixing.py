"""Recipe `auto`: the format of each op by what it costs on the data; the plan replays without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.data import recipe as recipes
from fp8graph.data.plan import Plan
from tests.small import model, needs_rtx, refused

# `a` reads numbers that are alike, `z` some that are far larger than the others, and `e` is small, and loud.
PROTO = model(
    """(float[64,64] x, float[64,64] t, float[1,64] s, float[64,64] w_a, float[64,64] w_b, float[64,64] w_s)
    => (float[64,64] y, float[64,64] z) {
        e = MatMul (s, w_s) a = MatMul (x, w_a) y = Add (a, e) z = MatMul (t, w_b)
    }""",
    w_s=np.random.default_rng(5).standard_normal((64, 64)) * 4,
)


def data(count: int = 12) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            "x": random.uniform(-1, 1, (64, 64)).astype(np.float32),
            "t": (random.standard_normal((64, 64)) ** 7).astype(np.float32),
            "s": (random.standard_normal((1, 64)) ** 3).astype(np.float32),
        }
        for _ in range(count)
    ]


def optimized(proto: Any = PROTO, **asked: Any) -> Any:
    return fp8graph.optimize(proto, **{"recipe": "auto", "target": "reference", "data": data()} | asked)


def formats(plan: Plan) -> dict[str, str]:
    return {key: op.precision for key, op in plan.ops.items() if op.op_type in ("MatMul", "Conv", "Gemm")}


def test_each_op_has_the_format_that_costs_the_least_and_the_reason_has_both_numbers():
    plan = optimized().plan
    assert formats(plan) == {"e": "fp32", "a": "int8", "z": "fp8"}
    for key, code in (("a", "FG243"), ("z", "FG243"), ("e", "FG244")):
        why = plan.ops[key].why
        assert why.code == code and "auto" in why.by
        assert "FP8" in why.text and "INT8" in why.text and why.text.count(" dB") == 2
    assert "% of the noise for" in plan.ops["e"].why.text


def test_it_beats_each_of_the_formats_alone():
    done = {recipe: optimized(recipe=recipe).comparison for recipe in ("auto", "int8", "fp8-default")}
    noise = {name: sum(10 ** (-item.sqnr_db / 10) for item in found.outputs.values()) for name, found in done.items()}
    assert noise["auto"] < 0.8 * min(noise["int8"], noise["fp8-default"])


def test_the_plan_replays_byte_for_byte_without_data_and_the_same_call_gives_the_same(tmp_path):
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx")]
    for path in paths[:2]:
        optimized(output=path)
    fp8graph.optimize(PROTO, plan=tmp_path / "a.onnx.plan.json", output=paths[2])
    assert len({path.read_bytes() for path in paths}) == 1
    plans = [path.with_name(path.name + ".plan.json").read_bytes() for path in paths]
    assert len(set(plans)) == 1


@pytest.mark.parametrize("asked", [{}, {"plan_only": True}, {"data": "random"}, {"ranges": "r.json"}])
def test_without_samples_it_is_refused(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "ranges" in asked:
        fp8graph.calibrate(PROTO, recipe="auto", target="reference", data=data(), output="r.json")
    with refused(UsageError, "FG120", "auto"):
        fp8graph.optimize(PROTO, **{"recipe": "auto", "target": "reference"} | asked)


def test_ranges_hold_what_both_formats_need():
    ranges = fp8graph.calibrate(PROTO, recipe="auto", target="reference", data=data()).ranges
    assert {"x", "t", "s"} <= set(ranges.values)
    assert formats(optimized(ranges=ranges).plan) == formats(optimized().plan)


def test_what_the_user_asks_for_stays():
    plan = optimized(nodes_to_quantize=["key:e"], nodes_to_exclude=["key:a"]).plan
    assert formats(plan) == {"e": "int8", "a": "fp32", "z": "fp8"}
    assert plan.ops["a"].why.code == "FG203"


def warnings(done: Any) -> list[str]:
    return [finding.text for finding in done.findings if finding.code == "FG245"]


def test_where_fp8_computes_little_or_what_it_computes_is_little_is_said():
    assert not warnings(optimized())
    (text,) = warnings(optimized(nodes_to_exclude=["key:z"]))
    assert "0%" in text and "1x in INT8" in text
    (text,) = warnings(optimized(target="tensorrt-rtx"))
    assert "262,144 multiply-accumulates" in text


def test_a_target_without_the_other_format_keeps_to_the_recipes_own():
    plan = optimized(target="openvino:cpu").plan
    assert formats(plan)["a"] == formats(plan)["z"] == "fp8"


def test_an_op_that_the_target_runs_in_the_other_format_alone_has_that():
    proto = model(
        """(float[2,16,12,12] x, float[16,16,3,3] w_a, float[16,16,7,7] w_b) => (float[2,16,4,4] y) {
        a = Conv (x, w_a) r = Relu (a) y = Conv (r, w_b) }"""
    )
    random = np.random.default_rng(2)
    feeds = [{"x": (random.standard_normal((2, 16, 12, 12)) ** 7).astype(np.float32)} for _ in range(8)]
    plan = optimized(proto, data=feeds, target="tensorrt-rtx").plan
    assert formats(plan) == {"a": "fp8", "y": "int8"}  # of kernels over 32 elements none runs in FP8
    assert plan.ops["y"].why.text.count(" dB") == 1


def test_an_attention_is_in_one_format(digits: Path):
    done = optimized(digits / "vit.onnx", data=digits / "calibration.npz", samples=32, compare=False)
    groups: dict[str, set[str]] = {}
    for op in done.plan.ops.values():
        if op.group and op.op_type == "MatMul":
            groups.setdefault(op.group, set()).add(op.precision)
    assert groups and all(len(found) == 1 for found in groups.values())


@needs_rtx
def test_an_engine_runs_each_op_in_its_format(tmp_path):
    out, engine = tmp_path / "o.onnx", tmp_path / "o.engine"
    plan = optimized(output=out, target="tensorrt-rtx:sm89", high_precision_dtype="fp16", compare=False).plan
    fp8graph.build(out, output=engine, target="tensorrt-rtx:sm89")
    found = fp8graph.attest(engine, model=out).verdicts
    assert {key: op.verdict for key, op in found.items()} == {"a": "int8", "z": "fp8"}
    assert formats(plan) == {"e": "fp16", "a": "int8", "z": "fp8"}


def test_what_came_quantized_stays_as_it_came():
    proto = model(
        """(float[8,32] x, float[32,16] w) => (float[8,16] y) <float s = {0.01}> {
        q = QuantizeLinear <output_dtype = 17> (x, s) d = DequantizeLinear (q, s)
        p = QuantizeLinear <output_dtype = 17> (w, s) e = DequantizeLinear (p, s) y = MatMul (d, e) }"""
    )
    feeds = [{"x": np.random.default_rng(1).uniform(-1, 1, (8, 32)).astype(np.float32)} for _ in range(4)]
    assert formats(optimized(proto, data=feeds).plan) == {"y": "fp8"}


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text('extends = "fp8-default"\n' + text)
    return str(path)


def test_a_recipe_of_ones_own_names_other_formats(tmp_path):
    name = written(tmp_path, '[quantize]\ninstead = ["e5m2", "int8"]\n')
    assert recipes.load(name).instead == ("e5m2", "int8")
    plan = optimized(recipe=name).plan
    assert formats(plan)["a"] == "int8"
    assert all("FP8 " in plan.ops[key].why.text for key in ("a", "z", "e"))
    again = recipes.Recipe.from_mapping(plan.recipe, "plan")
    assert again.instead == ("e5m2", "int8") and again.to_json() == dict(plan.recipe)


@pytest.mark.parametrize(
    "text",
    [
        '[quantize]\ninstead = ["int7"]',
        '[quantize]\ninstead = ["e4m3fn"]',
        '[quantize]\ninstead = "int8"',
        '[quantize]\ninstead = ["int8"]\n[quantize.weights]\nper = "block"\nblock = [64]',
    ],
)
def test_a_format_that_is_none_or_the_recipes_own_is_refused(tmp_path, text):
    with refused(UsageError, "FG140", "instead"):
        recipes.load(written(tmp_path, text))
