"""The table against other tools: what it asks of a search, what it says of tools that are not there, where it goes."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT

SCORE = """
import json, sys
class Bench:
    def __init__(self, root):
        self.root = root
"""


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "benchmarks" / "accuracy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module
    spec.loader.exec_module(module)
    return module


# Answers that one of two models alone has right; p of the exact test on 0 to 10 coins.
PAIRS = {(0, 0): 1.0, (1, 0): 1.0, (3, 3): 1.0, (5, 0): 2 / 32, (0, 5): 2 / 32, (8, 2): 112 / 1024, (10, 0): 2 / 1024}


@pytest.mark.parametrize(("pair", "value"), PAIRS.items())
def test_the_paired_test_is_exact(accuracy: ModuleType, pair: tuple[int, int], value: float):
    assert accuracy.p_value(*pair) == pytest.approx(value)


GOALS = {
    "above what leaves products out": ([(11, 24.96)], [25.5]),
    "not of full coverage, of none, or of what is exact": ([(20, 24.0), (0, 30.0), (11, float("inf"))], []),
    "close ones at once": ([(11, 24.96), (11, 25.2), (11, 27.0)], [25.7, 27.5]),
}


@pytest.mark.parametrize(("rows", "goals"), GOALS.values(), ids=GOALS)
def test_a_search_is_asked_for_more_than_others_reach(accuracy: ModuleType, rows: Any, goals: list[float]):
    found = [accuracy.Row("tool", (nodes, 20), sqnr_db=sqnr) for nodes, sqnr in rows]
    assert accuracy.goals(found, 0.5) == goals
    assert accuracy.goals([replace(row, error="it fell over") for row in found], 0.5) == []


def bench_of(accuracy: ModuleType, folder: Path, *tools: str) -> Any:
    row = {"entry": "net", "error": None, "metric": "top-1 accuracy %", "fp32": 80.4, "candidate": 79.6, "user_s": 5.8}
    row |= {"agreement": 97.2, "sqnr_db": "inf", "fp8_nodes": 11, "compute_nodes": 20}
    (folder / "score.py").write_text(SCORE)
    (folder / "entries.json").write_text('{"net": {}}')
    (folder / "baselines.json").write_text(json.dumps([row | {"tool": tool} for tool in tools]))
    (folder / "baselines").mkdir()
    (folder / "baselines" / "run.py").write_text("")
    return accuracy.Bench(folder)


class Maker:
    name = "net"

    def __init__(self, accuracy: ModuleType) -> None:
        self.accuracy = accuracy

    def peer(self, tool: str, python: str, bench: Any) -> Any:
        return self.accuracy.Row(tool)


def test_tools_are_made_anew_where_they_are_installed_and_else_the_table_says_so(accuracy: ModuleType, tmp_path: Path):
    bench = bench_of(accuracy, tmp_path, "ort", "ort_sym", "amax@modelopt", "modelopt_max", "nncf")
    pythons = {"ort": sys.executable, "amax": sys.executable, "modelopt": sys.executable}
    found = {row.tool: row for row in accuracy.peers(Maker(accuracy), bench, pythons)}
    assert {tool: row.made for tool, row in found.items()} == {
        "ort": "here",
        "ort_sym": "here",
        "amax@modelopt": "here",
        "modelopt_max": "recorded: nvidia-modelopt is not installed",
        "nncf": "recorded: not run",
    }
    cells = ["nncf", "11 of 20", "79.6", "97.2", "inf", "", "5.8", "recorded: not run"]
    assert found["nncf"].cells(1) == cells
    assert accuracy.goals(list(found.values()), 0.5) == []


def test_a_row_that_failed_says_why_below_the_table(accuracy: ModuleType):
    rows = [
        accuracy.Row("ort", error="it fell over", seconds=1.0),
        accuracy.Row("us", (1, 2), (90.0, 89.5), 99.0, 30.0),
    ]
    text = "\n".join(accuracy.text_of("net", [rows[0], replace(rows[1], paired=(3, 2))], [(2, 25.0), (1, 31.0)]))
    assert "| ort | failed |" in text and "ort failed: `it fell over`" in text
    assert "3 answers are right before alone, 2 after alone: p = 1.00" in text
    assert "Curve (FP8 nodes: dB): 2: 25.0, 1: 31.0." in text


def test_the_tables_go_between_the_marks_of_a_page(accuracy: ModuleType, tmp_path: Path):
    begin, end = accuracy.MARKS
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    accuracy.written(["new"], page)
    assert page.read_text() == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match="has no lines"):
        accuracy.written(["new"], page)
