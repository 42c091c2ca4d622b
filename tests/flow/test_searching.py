"""`optimize` for a goal: the plan with the most FP8 arithmetic that holds an accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import InputError, Interrupted
from fp8graph.calibrate.samples import Samples
from fp8graph.cli.main import main
from fp8graph.data.plan import Plan
from tests.small import chain, feeds, model, refused

# `a` costs much for little arithmetic: it is small, and everything goes through it.
MIXED = chain(4, 16, 32, 64, 64, 32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    proto = model(MIXED)
    onnx.save(proto, "m.onnx")
    np.savez("d.npz", x=np.stack([feed["x"] for feed in feeds(proto, 24)]))
    np.savez("e.npz", x=np.stack([feed["x"] for feed in feeds(proto, 16, seed=9)]))
    return proto


def run(*words: str, capsys, data=("--data", "d.npz")) -> dict:
    capsys.readouterr()
    status = main(["optimize", "m.onnx", "-o", "o.onnx", "--force", "--target", "reference", "--json", *data, *words])
    said = json.loads(capsys.readouterr().out)
    return {"status": status, "files": said["files"], "error": said["error"], **(said["result"] or {})}


def full_sqnr() -> float:
    done = fp8graph.optimize("m.onnx", data="d.npz", target="reference")
    return done.comparison.outputs["y"].sqnr_db


def test_a_goal_is_held_on_the_samples_that_were_held_back(here, capsys):
    goal = full_sqnr() + 3
    found = run("--min-sqnr", f"{goal}", capsys=capsys)
    assert found["status"] == 0 and 0 < found["planned"] < 4
    search = found["search"]
    assert search["reached"] >= goal and search["samples"] == 6 and search["scales_from"] == 18
    assert search["goal"] == {"min_sqnr": goal} and len(search["steps"]) >= 2
    plan = Plan.from_json(json.loads(Path("o.onnx.plan.json").read_text()))
    kept = [op.why for _, op in plan.kept() if op.why.code == "FG238"]
    assert len(kept) == 4 - found["planned"] and all("% of the noise" in why.text for why in kept)
    with np.load("d.npz") as data:
        np.savez("held.npz", x=data["x"][3::4])
    again = fp8graph.compare("m.onnx", "o.onnx", data="held.npz").outputs["y"].sqnr_db
    assert again == pytest.approx(search["reached"], abs=1e-3)


def test_no_plan_with_more_arithmetic_of_those_that_were_judged_holds(here, capsys):
    goal = full_sqnr() + 3
    search = run("--min-sqnr", f"{goal}", capsys=capsys)["search"]
    chosen = next(step for step in search["steps"] if step["value"] == search["reached"])
    assert not any(step["value"] >= goal and step["arithmetic"] > chosen["arithmetic"] for step in search["steps"])


def test_a_goal_that_everything_holds_keeps_nothing_more(here, capsys):
    found = run("--min-sqnr", "1", capsys=capsys)
    assert found["planned"] == 4 and len(found["search"]["steps"]) == 1


def test_a_goal_out_of_reach_is_status_1_names_the_best_and_writes_nothing(here, capsys):
    found = run("--min-sqnr", "150", capsys=capsys)
    assert (found["status"], found["error"]["code"]) == (1, "FG151")
    assert "reached" in found["error"]["why"]
    assert not list(Path().glob("o.onnx*"))


def test_the_plan_replays_without_data(here, capsys):
    run("--min-sqnr", f"{full_sqnr() + 3}", capsys=capsys)
    first = Path("o.onnx").read_bytes(), Path("o.onnx.plan.json").read_bytes()
    Path("o.onnx.plan.json").rename("p.json")
    for sidecar in Path().glob("o.onnx.plan.safetensors"):
        sidecar.rename("p.safetensors")
    fp8graph.optimize("m.onnx", output="again.onnx", plan="p.json")
    assert (Path("again.onnx").read_bytes(), Path("again.onnx.plan.json").read_bytes()) == first


def test_eval_data_is_judged_on_where_it_is_given(here, capsys):
    found = run("--min-sqnr", f"{full_sqnr() + 2}", "--eval-data", "e.npz", capsys=capsys)
    search = found["search"]
    assert (search["data"], search["samples"], search["scales_from"]) == ("e.npz", 16, 24)
    again = fp8graph.compare("m.onnx", "o.onnx", data="e.npz").outputs["y"].sqnr_db
    assert again == pytest.approx(search["reached"], abs=1e-3)


def test_a_metric_of_one_s_own_may_not_drop_further_than_was_said(here, capsys):
    Path("own.py").write_text(
        "import numpy as np\n"
        "REFERENCE = {}\n"
        "def near(pairs):\n"
        "    total = 0.0\n"
        "    for place, (feeds, outputs) in enumerate(pairs):\n"
        "        truth = REFERENCE.setdefault(place, outputs['y'])\n"
        "        total -= float(np.abs(outputs['y'] - truth).max() / np.abs(truth).max())\n"
        "    return total\n"
    )
    whole = run("--max-drop", "1e9", "--metric", "own.py:near", "--eval-data", "e.npz", capsys=capsys)
    most = -whole["search"]["reached"]
    found = run("--max-drop", f"{0.8 * most}", "--metric", "own.py:near", "--eval-data", "e.npz", capsys=capsys)
    assert found["status"] == 0 and -found["search"]["reached"] <= 0.8 * most
    assert found["planned"] < whole["planned"] == 4
    assert found["search"]["goal"] == {"max_drop": pytest.approx(0.8 * most), "metric": "own.py:near"}


def test_the_curve_is_data_and_a_picture(here, capsys):
    found = run("--min-sqnr", f"{full_sqnr() + 3}", "--curve", "c.svg", capsys=capsys)
    assert {"c.svg", "c.json"} <= {Path(file["path"]).name for file in found["files"]}
    curve = json.loads(Path("c.json").read_text())
    assert curve["metric"] == "SQNR, dB" and sum(point["chosen"] for point in curve["points"]) == 1
    quantized = {point["quantized"] for point in curve["points"]}
    assert {0, 4} <= quantized
    root = ElementTree.parse("c.svg").getroot()
    assert root.tag.endswith("svg")
    shown = [point for point in curve["points"] if point["value"] is not None]
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == len(shown)
    run("--curve", "c.csv", capsys=capsys)
    header, *lines = Path("c.csv").read_text().splitlines()
    assert header == "arithmetic,quantized,value,chosen" and lines[0].startswith("1.0,4,")


class _Stop:
    """A progress that is interrupted at its n-th step of the search."""

    def __init__(self, steps: int) -> None:
        self.left, self.what = steps, ""

    def start(self, what, total, unit):
        self.what = what

    def step(self, n=1):
        if self.what == "searching":
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    def done(self):
        pass


def test_an_interrupted_search_goes_on_behind_what_was_judged(here):
    goal = full_sqnr() + 3
    wanted = fp8graph.optimize("m.onnx", output="w.onnx", data="d.npz", target="reference", min_sqnr=goal)
    ask = {"output": "o.onnx", "data": "d.npz", "target": "reference", "min_sqnr": goal}
    with pytest.raises(Interrupted):
        fp8graph.optimize("m.onnx", **ask, progress=_Stop(2))
    left = json.loads(Path("o.onnx.resume").read_text())
    assert len(left["steps"]) == 2 and not Path("o.onnx").exists()
    with refused(InputError, "FG110", "not this one", "plan:"):
        fp8graph.optimize("m.onnx", **{**ask, "data": "e.npz"}, resume=True)
    done = fp8graph.optimize("m.onnx", **ask, resume=True)
    assert done.plan == wanted.plan and not Path("o.onnx.resume").exists()
    assert Path("o.onnx").read_bytes() == Path("w.onnx").read_bytes()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--min-sqnr", "30", "--max-drop", "1"], "FG100"),
        (["--max-drop", "1"], "FG100"),
        (["--max-drop", "-1", "--metric", "cosine"], "FG100"),
        (["--metric", "cosine"], "FG100"),
        (["--eval-data", "e.npz"], "FG100"),
        (["--resume"], "FG100"),
        (["--min-sqnr", "30", "--curve", "c.png"], "FG100"),
        (["--min-sqnr", "30", "--plan", "p.json"], "FG100"),
        (["--min-sqnr", "30", "--samples", "1"], "FG120"),
    ],
)
def test_wrong_calls_are_told_before_any_work(here, words, code, capsys):
    found = run(*words, capsys=capsys)
    assert (found["status"], found["error"]["code"]) == (2, code)


def test_a_goal_needs_data(here, capsys):
    found = run("--min-sqnr", "30", capsys=capsys, data=())
    assert (found["status"], found["error"]["code"]) == (2, "FG120")


@pytest.mark.parametrize(("count", "back"), [(2, [1]), (3, [2]), (4, [3]), (10, [3, 7])])
def test_every_fourth_sample_is_held_back(count, back):
    every = Samples("x", lambda: iter([{"i": np.array(i)} for i in range(count)]), count)
    learned, held = every.apart(4)
    assert [int(feed["i"]) for feed in held] == back and held.count == len(back)
    assert sorted([int(feed["i"]) for feed in learned] + back) == list(range(count))
