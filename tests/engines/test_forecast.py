"""What `check` forecasts before a build, held against what the engine then does."""

from __future__ import annotations

from collections import Counter

import engine_models
import pytest
import random_models
from conftest import Build, Made

import fp8graph
from fp8graph.base.errors import BackendError
from fp8graph.core.forecast import forecast
from fp8graph.data import target as targets
from fp8graph.engines.attest import attest_engine
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types

pytestmark = pytest.mark.usefixtures("rtx")
# What no forecast can be held against: an engine leaves out what nobody needs, and merges what is alike.
SILENT = ("absent", "unknown", "folded")
MODELS = {
    "sound": engine_models.network(),
    "one pair is missing": engine_models.network(drop="a3"),
    "a pair before pooling": engine_models.network(early=True),
    "a weight in fp16": engine_models.network(high="w4"),
    "a kernel of 49": engine_models.network(kernel=7),
    "weight alone": engine_models.matmul(weight_only=True),
    "attention": engine_models.attention(),
    "attention without Softmax": engine_models.attention(softmax=False),
    "attention of one query": engine_models.attention(queries=1),
    "merged": engine_models.merged(),
    "branches": engine_models.branches(),
    "a broken branch": engine_models.branches(broken="then"),
    "loop": engine_models.loop(),
    "function": engine_models.function(),
}


def held(made: Made, chip: str = "sm89") -> Counter[tuple[str, str]]:
    """How often each forecast met each verdict."""
    model = load(made.model).model
    infer_types(model)
    said = {
        node.outputs[0].name: item.verdict
        for node, item in forecast(model, targets.load(f"tensorrt-rtx:{chip}")).items()
    }
    done = attest_engine(made.engine, made.model, None)
    found = {**done.verdicts, **done.others}
    return Counter((said[key.rpartition("/")[2]], op.verdict) for key, op in found.items())


def check(found: Counter[tuple[str, str]]) -> None:
    """No op wrongly forecast FP8; at least 95 % of those in FP8 forecast so."""
    wrong = {pair: n for pair, n in found.items() if pair[0] == "fp8" and pair[1] not in ("fp8", *SILENT)}
    assert not wrong, found
    real = sum(n for (_, verdict), n in found.items() if verdict == "fp8")
    assert found["fp8", "fp8"] >= 0.95 * real, found


@pytest.mark.parametrize("name", MODELS)
def test_the_forecast_of_each_form_comes_true(build: Build, name: str):
    found = held(build(MODELS[name]))
    assert sum(found.values()) > 0
    check(found)


def test_random_graphs_keep_to_the_forecast(build: Build):
    found = all_held(build, range(6))
    assert found["fp8", "fp8"] > 0
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["sm89", "sm120"])
def test_many_random_graphs_keep_to_the_forecast(build: Build, chip: str):
    check(all_held(build, range(100, 160), chip))


def all_held(build: Build, seeds: range, chip: str = "sm89") -> Counter[tuple[str, str]]:
    """Products and convolutions in turn; what is forecast to be refused is refused."""
    found: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        model = (random_models.products if seed % 2 else random_models.convolutions)(seed)
        if any(item.severity == "error" for item in fp8graph.check(model, target=f"tensorrt-rtx:{chip}")):
            with pytest.raises(BackendError):
                build(model, (chip,))
        else:
            found += held(build(model, (chip,)), chip)
    return found


def test_what_is_mended_runs_in_fp8_then(build: Build):
    g = engine_models.Graph("fp32", scales="fp16")
    low = g.op("Cast", [g.input("x", [32, 64])], "low", to=engine_models.TYPES["fp16"])
    pair = [g.op("Cast", [value], f"up{i}", to=1) for i, value in enumerate(_pair(g, low))]
    g.output(g.op("MatMul", pair, "mm"))
    model = g.model()
    assert [item.code for item in fp8graph.check(model, target="tensorrt-rtx:sm89")] == ["FG312", "FG312"]
    assert held(build(model))["fell-back", "fell-back"] == 1
    mended = fp8graph.check(model, target="tensorrt-rtx:sm89", fix=True)
    assert mended == () and [item.code for item in mended.fixed] == ["FG312", "FG312"]
    assert held(build(mended.model)) == {("fp8", "fp8"): 1}


def _pair(g: engine_models.Graph, value: str) -> list[str]:
    """An activation and a weight behind DQs that give fp16."""
    kind, g.kind = g.kind, "fp16"
    try:
        return [g.qdq(value, "a"), g.weight8([64, 128], "w")]
    finally:
        g.kind = kind
