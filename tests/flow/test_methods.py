"""Calibration methods from end to end: recipes, options, range files with counts, plans that replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import InputError, Interrupted, UsageError
from fp8graph.cli.main import main
from fp8graph.numerics.ranges import Need, Ranges
from tests.small import BRANCHES, contents, feeds, model, refused

TEXT = """(float[n,32] x, float[32,32] w, float[32,16] w_b) => (float[n,16] y) {
    h = MatMul(x, w) r = Relu(h) y = MatMul(r, w_b)
}"""
PROTO = model(TEXT)
DATA = np.random.default_rng(0).standard_normal((9, 4, 32)).astype(np.float32)
METHODS = ("absmax", "percentile:90", "mse", "entropy", "pow2")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(PROTO.SerializeToString())
    np.savez(tmp_path / "d.npz", x=DATA)
    return tmp_path


def scales(plan: Any) -> list[tuple[str, float]]:
    return [(q.scale.rule, q.scale.value) for q in plan.quants() if q.scale.origin == "observed"]


def test_each_method_finds_other_scales_and_the_plan_says_which_and_replays(place):
    found = {}
    for method in METHODS:
        done = fp8graph.optimize("m.onnx", data="d.npz", calibration_method=method, output="o.onnx", force=True)
        found[method] = scales(done.plan)
        assert {rule for rule, _ in found[method]} == {"amax" if method == "absmax" else method}
        before = (place / "o.onnx").read_bytes()
        fp8graph.optimize("m.onnx", plan="o.onnx.plan.json", output="again.onnx", force=True)
        assert (place / "again.onnx").read_bytes() == before
    assert len({tuple(number for _, number in one) for one in found.values()}) == len(METHODS)
    assert all(np.log2(number) % 1 == 0 for _, number in found["pow2"])
    assert all(less < more for (_, less), (_, more) in zip(found["percentile:90"], found["absmax"], strict=True))


@pytest.mark.parametrize("method", ["mse", "entropy", "percentile:99"])
def test_shards_with_counts_join_to_the_bytes_of_one_run_and_make_the_same_model(place, method):
    whole = ["calibrate", "m.onnx", "--data", "d.npz", "--calibration-method", method]
    assert main([*whole, "-o", "all.json"]) == 0
    for index in range(3):
        assert main([*whole, "-o", f"r{index}.json", "--shard", f"{index}/3"]) == 0
    assert main(["calibrate", "--merge", "r2.json", "r0.json", "r1.json", "-o", "r.json"]) == 0
    for suffix in ("json", "safetensors"):
        assert (place / f"r.{suffix}").read_bytes() == (place / f"all.{suffix}").read_bytes()
    assert (place / "r.safetensors").stat().st_size < 10_000  # a few KB a tensor
    Path("bare.toml").write_text('extends = "fp8-default"\nrepairs = []\n')  # they learn of samples alone
    common = ["optimize", "m.onnx", "--calibration-method", method, "--recipe", "bare.toml"]
    assert (
        main([*common, "-o", "a.onnx", "--ranges", "r.json"]) == main([*common, "-o", "b.onnx", "--data", "d.npz"]) == 0
    )
    assert (place / "a.onnx").read_bytes() == (place / "b.onnx").read_bytes()
    assert main(["inspect", "r.json"]) == 0


def test_the_files_of_ranges_are_named_and_the_arrays_go_where_there_are_none(place, capsys):
    assert (
        main(["calibrate", "m.onnx", "-o", "r.json", "--data", "d.npz", "--calibration-method", "mse", "--json"]) == 0
    )
    files = json.loads(capsys.readouterr().out)["files"]
    assert [file["path"] for file in files] == ["r.json", "r.safetensors"]
    with refused(UsageError, "FG102", "r.json"):
        fp8graph.calibrate("m.onnx", data="d.npz", output="r.json")
    fp8graph.calibrate("m.onnx", data="d.npz", output="r.json", force=True)
    assert not (place / "r.safetensors").exists()
    (place / "r.safetensors").write_bytes(b"mine")
    (place / "r.json").unlink()
    with refused(UsageError, "FG102", "r.safetensors"):
        fp8graph.calibrate("m.onnx", data="d.npz", output="r.json", calibration_method="mse")


def stopping(after: int) -> Any:
    readings = []

    def read():
        readings.append(0)
        for index, array in enumerate(DATA):
            if len(readings) > 1 and index == after:
                raise KeyboardInterrupt
            yield {"x": array}

    return read


def test_an_interrupted_run_keeps_its_counts(place):
    fp8graph.calibrate(PROTO, data=stopping(99), output="whole.json", calibration_method="mse")
    with pytest.raises(Interrupted):
        fp8graph.calibrate(PROTO, data=stopping(6), output="r.json", calibration_method="mse")
    assert sorted(contents(place)) == ["d.npz", "m.onnx", "r.json.resume", "whole.json", "whole.safetensors"]
    with refused(InputError, "FG110", "other tensors"):  # with another method other things are counted
        fp8graph.calibrate(PROTO, data=stopping(99), output="r.json", resume=True)
    fp8graph.calibrate(PROTO, data=stopping(99), output="r.json", calibration_method="mse", resume=True)
    for suffix in ("json", "safetensors"):
        assert (place / f"r.{suffix}").read_bytes() == (place / f"whole.{suffix}").read_bytes()
    document = {"schema": "fp8graph.resume/1", "arrays": "?"}
    (place / "r.json.resume").write_text(json.dumps(document))
    with refused(InputError, "FG111", "r.json.resume"):
        fp8graph.calibrate(PROTO, data=stopping(99), output="r.json", resume=True, force=True)


def test_ranges_that_do_not_belong_together_are_refused(place):
    plain = fp8graph.calibrate("m.onnx", data="d.npz", output="plain.json").ranges
    counted = fp8graph.calibrate("m.onnx", data="d.npz", output="r.json", calibration_method="mse").ranges
    assert not plain.arrays() and counted.arrays()
    with refused(UsageError, "FG120", "x:histogram"):
        fp8graph.optimize("m.onnx", ranges="plain.json", calibration_method="mse", output="o.onnx")
    fp8graph.optimize("m.onnx", ranges="r.json", output="o.onnx")  # counts hold the extremes, too
    with refused(InputError, "FG110", "counted in one of them"):
        fp8graph.calibrate(merge=["plain.json", "r.json"])
    arrays = (place / "r.safetensors").read_bytes()
    for content in (arrays[:-1] + bytes([arrays[-1] ^ 1]), None):
        (place / "r.safetensors").unlink()
        if content is not None:
            (place / "r.safetensors").write_bytes(content)
        with refused(InputError, "FG105", "r.safetensors"):
            fp8graph.optimize("m.onnx", ranges="r.json", output="p.onnx")
        (place / "r.safetensors").write_bytes(arrays)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda item: item["counts"].update(dtype="float32"),
        lambda item: item["counts"].update(shape=[1]),
        lambda item: item.update(bins=item["counts"]),
        lambda item: item["counts"].update(array="none"),
        lambda item: item.pop("zeros"),
    ],
)
def test_damaged_counts_are_refused(place, spoil):
    fp8graph.calibrate("m.onnx", data="d.npz", output="r.json", calibration_method="mse")
    document = json.loads((place / "r.json").read_text())
    spoil(document["values"]["x"]["histogram"])
    (place / "r.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as raised:
        fp8graph.optimize("m.onnx", ranges="r.json")
    assert raised.value.code in ("FG111", "FG105")


def test_in_a_body_only_extremes_are_known_and_the_plan_says_so():
    proto = model(BRANCHES)
    data = [feed | {"c": np.array([index % 2 == 0])} for index, feed in enumerate(feeds(proto, 4))]
    plan = fp8graph.optimize(proto, data=data, calibration_method="mse", plan_only=True).plan
    assert [rule for rule, _ in scales(plan)] == ["amax", "amax"] and plan.settled


def recipe(place: Any, weights: str = "amax", activations: str = "amax", base: str = "fp8-amax") -> str:
    tables = {"weights": weights, "activations": activations}
    text = "\n".join(f'[quantize.{name}]\nscale = "{scale}"' for name, scale in tables.items())
    (place / "r.toml").write_text(f'extends = "{base}"\n{text}\n')
    return "r.toml"


def weight_error(proto: Any) -> float:
    """Squared error of the weights that a model holds."""
    held = {init.name: onnx.numpy_helper.to_array(init) for init in PROTO.graph.initializer}
    total, nodes = 0.0, {node.output[0]: node for node in proto.graph.node}
    inits = {init.name: onnx.numpy_helper.to_array(init) for init in proto.graph.initializer}
    for node in nodes.values():
        if node.op_type == "DequantizeLinear" and node.input[0] in inits:
            codes, scale = inits[node.input[0]].astype(np.float32), inits[node.input[1]]
            total += float(((codes * scale - held[node.input[0].removesuffix("_fp8")]) ** 2).sum())
    assert total
    return total


def test_a_recipe_says_how_the_scales_of_weights_and_activations_are_found(place):
    found = {}
    for weights in ("amax", "mse"):
        done = fp8graph.optimize(
            "m.onnx", data="d.npz", recipe=recipe(place, weights, "entropy"), output="o.onnx", force=True
        )
        found[weights] = weight_error(onnx.load("o.onnx"))
        assert {rule for rule, _ in scales(done.plan)} == {"entropy"}
        assert {q.scale.rule for q in done.plan.quants() if q.scale.origin == "computed"} == {weights}
        again = fp8graph.optimize("m.onnx", plan=done.plan, output="p.onnx", force=True)
        assert (place / "p.onnx").read_bytes() == (place / "o.onnx").read_bytes() and again.plan == done.plan
    assert found["mse"] < found["amax"] * 0.99


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"weights": "entropy"}, "amax, mse"),
        ({"weights": "mse*2"}, "amax, mse"),
        ({"activations": "kl"}, "percentile:P"),
        ({"activations": "percentile:30"}, "between 50 and 100"),
        ({"activations": "mse*2"}, "percentile:P"),
        ({"weights": "mse", "activations": "dynamic", "base": "mxfp8"}, "stored"),
    ],
)
def test_a_recipe_that_asks_for_what_is_not_there_is_refused(place, how, says):
    with refused(UsageError, "FG140", says):
        fp8graph.optimize("m.onnx", data="d.npz", recipe=recipe(place, **how))


@pytest.mark.parametrize(
    ("call", "code", "says"),
    [
        ({"calibration_method": "kl"}, "FG101", "percentile:P"),
        ({"calibration_method": "mse*2"}, "FG101", "headroom"),
        ({"calibration_method": 5}, "FG101", "5"),
        ({"calibration_method": "mse", "recipe": "fp8-dynamic"}, "FG100", "no scale of this recipe is observed"),
        ({"calibration_method": "mse", "recipe": "fp8-weight-only"}, "FG100", "leave --calibration-method out"),
        ({"calibration_method": "mse", "plan": "o.onnx.plan.json"}, "FG110", "asked mse, the plan has amax"),
    ],
)
def test_a_method_that_cannot_be_is_refused(place, call, code, says):
    fp8graph.optimize("m.onnx", data="d.npz", output="o.onnx")
    data = None if "plan" in call else "d.npz"
    with refused(UsageError, code, says):
        fp8graph.optimize("m.onnx", data=data, **call)


def test_a_plan_whose_rule_is_none_is_refused(place):
    fp8graph.optimize("m.onnx", output="o.onnx", plan_only=True)
    document = (place / "o.onnx.plan.json").read_text().replace('"rule": "amax"', '"rule": "guess"')
    (place / "o.onnx.plan.json").write_text(document)
    with refused(InputError, "FG111", "guess"):
        fp8graph.optimize("m.onnx", plan="o.onnx.plan.json", data="d.npz")


def test_what_a_repair_asks_for_is_in_the_ranges_of_its_context():
    from collections.abc import Sequence
    from dataclasses import dataclass
    from typing import ClassVar

    from fp8graph.core.passes import Repair

    told: list[Any] = []

    @dataclass(frozen=True)
    class Asking(Repair):
        """Wants counts and channels."""

        known: ClassVar[bool] = True

        def needs(self, op: Any, decision: Any) -> Sequence[str | Need]:
            return [Need(decision.inputs[0].value, "histogram", axis=1)]

        def solve(self, op: Any, decision: Any, ctx: Any, weights: Any) -> list[Any]:
            told.append(ctx.ranges.values[decision.inputs[0].value])
            return []

    fp8graph.optimize(PROTO, data=[{"x": array} for array in DATA], passes=[Asking()])
    assert len(told) == 2 and all(stat.histogram is not None for stat in told)
    assert np.allclose(told[0].channels[1].values, np.abs(DATA).max((0, 1)))
    assert isinstance(Ranges("", ""), Ranges)
