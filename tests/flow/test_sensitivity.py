"""`sensitivity`: what it ranks, what it writes, and what it refuses."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.cli.main import main
from fp8graph.data import recipe as recipes
from tests.small import feeds, model, refused

# The second product reads numbers of very different sizes, of which FP8 loses many; the third hardly matters.
CHAIN = """(float[4,32] x, float[32,32] w_a, float[32,32] w_b, float[32,32] w_c) => (float[4,32] y) {
    a = MatMul(x, w_a)
    b = MatMul(a, w_b)
    c = MatMul(x, w_c)
    y = Add(b, c)
}"""

# Repairs make all operators better at once.
BARE = replace(recipes.load("fp8-default"), repairs=())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    small = random.standard_normal((32, 32)) * 1e-3
    proto = model(CHAIN, w_c=small)
    onnx.save(proto, "m.onnx")
    np.savez("d.npz", x=np.stack([feed["x"] for feed in feeds(proto, 24)]))
    fp8graph.optimize("m.onnx", output="o.onnx", data="d.npz", target="reference", recipe=BARE)
    return proto


def ranked(*words: str, capsys) -> dict:
    capsys.readouterr()
    status = main(["sensitivity", "m.onnx", "--plan", "o.onnx.plan.json", "--data", "d.npz", "--json", *words])
    said = json.loads(capsys.readouterr().out)
    return {"status": status, **(said["result"] or {}), "error": said["error"]}


def test_what_costs_nothing_comes_last_and_parts_add_up(here, capsys):
    found = ranked("--exact", capsys=capsys)
    assert [op["key"] for op in found["ops"]][-1] == "c"
    assert sum(op["share"] for op in found["ops"]) == pytest.approx(1, abs=1e-4)
    for op in found["ops"]:
        assert op["weight"] == 1 and set(op["inputs"]) == {"0", "1"}
        assert sum(op["inputs"].values()) == pytest.approx(op["cost"], rel=0.3)


def test_alone_is_what_the_plan_with_that_op_alone_is_worth(here, capsys):
    found = ranked("--exact", capsys=capsys)
    for op in found["ops"]:
        others = [item["key"] for item in found["ops"] if item["key"] != op["key"]]
        done = fp8graph.optimize(
            "m.onnx", data="d.npz", target="reference", recipe=BARE, nodes_to_exclude=[f"key:{key}" for key in others]
        )
        assert done.comparison.outputs["y"].sqnr_db == pytest.approx(op["sqnr_db"], abs=0.05)


@pytest.mark.parametrize("metric", ["sqnr", "cosine", "max-abs", "own.py:loss"])
def test_every_metric_gives_a_ranking_twice_the_same(here, metric, capsys):
    Path("own.py").write_text(
        "import numpy as np\n"
        "def loss(pairs):\n"
        "    return -sum(float(np.square(outputs['y']).sum()) for feeds, outputs in pairs)\n"
    )
    found = ranked("--metric", metric, capsys=capsys)
    assert found["status"] == 0 and len(found["ops"]) == 3
    assert found == ranked("--metric", metric, "--jobs", "1", capsys=capsys)


def test_a_keep_list_holds_what_it_is_kept_for(here, capsys):
    whole = fp8graph.compare("m.onnx", "o.onnx", data="d.npz").outputs["y"].sqnr_db
    bound = whole + 2
    found = ranked("-o", "keep.toml", "--keep-until", f"sqnr>={bound}", capsys=capsys)
    assert found["status"] == 0 and 0 < len(found["keep"]) < 3 and found["reached"] >= bound
    (line,) = tomllib.loads(Path("keep.toml").read_text())["keep"][:1]
    assert line["ops"][0] == f"key:{found['keep'][0]}"
    done = fp8graph.optimize("m.onnx", data="d.npz", target="reference", recipe="keep.toml")
    assert done.comparison.outputs["y"].sqnr_db >= found["reached"] - 1e-3  # and repairs come on top


def test_a_keep_list_has_as_many_ops_as_were_asked_for(here, capsys):
    assert len(ranked("--top", "2", "-o", "keep.toml", capsys=capsys)["keep"]) == 2
    assert len(ranked("-o", "keep.toml", "--force", capsys=capsys)["keep"]) in (1, 2)


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (["--metric", "psnr"], "FG101", 2),
        (["--metric", "none.py:f"], "FG101", 2),
        (["--metric", "bad.py:f"], "FG123", 3),
        (["--metric", "bad.py:g"], "FG101", 2),
        (["--keep-until", "sqnr<=3"], "FG100", 2),
        (["--keep-until", "sqnr>=500"], None, 0),
        (["-o", "d.npz", "--force"], "FG103", 2),
    ],
)
def test_wrong_calls_are_told(here, words, code, status, capsys):
    Path("bad.py").write_text("def f(pairs):\n    raise ValueError('no')\n")
    found = ranked(*words, capsys=capsys)
    assert (found["status"], (found["error"] or {}).get("code")) == (status, code)


def test_the_text_names_the_costliest_and_the_way_on(here, capsys):
    capsys.readouterr()
    assert main(["sensitivity", "m.onnx", "--data", "d.npz", "--target", "reference", "-o", "k.toml"]) == 0
    text = capsys.readouterr().out
    assert "weight" in text and "keep" in text and "optimize m.onnx -o OUT --recipe k.toml" in text


def test_data_is_needed(here):
    with refused(UsageError, "FG120"):
        fp8graph.sensitivity("m.onnx", data=None)
