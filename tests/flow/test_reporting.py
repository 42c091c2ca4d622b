"""Report: documents of one model joined by op key, in four formats."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import fp8graph
from fp8graph.base.errors import InputError, UsageError
from fp8graph.data.attestation import Attestation, OpVerdict
from fp8graph.data.comparison import Comparison, OutputDifference
from tests.small import TWO_OPEN, contents, feeds, model, refused, sha, written


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """The plan of a small model: two products in FP8, a Relu between."""
    proto = model(TWO_OPEN)
    fp8graph.optimize(proto, output=tmp_path / "m.onnx", target="reference", data=feeds(proto, 2))
    return tmp_path / "m.onnx.plan.json"


def attestation(plan: str, verdict: str = "fell-back") -> Attestation:
    why = "" if verdict == "fp8" else "a | broken <b>kernel</b>"
    ops = {
        "h": OpVerdict("MatMul", "", "fp8", "fp8", macs=30, weight_bytes=10),
        "y": OpVerdict("MatMul", "", "fp8", verdict, why, macs=10, weight_bytes=10),  # type: ignore[arg-type]
    }
    return Attestation("e", "m", plan, "tensorrt-rtx 1.7.1.116", ("sm89",), 1, ops)


COMPARISON = Comparison({"y": OutputDifference(27.25, 0.999, 0.25)}, 4, ("the output 'z' is missing",))


@pytest.fixture
def files(plan: Path, tmp_path: Path) -> list[Path]:
    """A plan, an attestation of it, and a comparison."""
    said = written(tmp_path / "a.json", attestation(sha(plan)).to_json())
    return [plan, said, written(tmp_path / "c.json", COMPARISON.to_json())]


def test_documents_are_joined_by_key_in_the_order_of_the_plan(files):
    report = fp8graph.report(files).report
    assert [row.key for row in report.rows] == ["h", "r", "y"]
    rows = {row["key"]: row for row in report.to_json()["rows"]}
    assert (rows["h"]["planned"], rows["h"]["verdict"], rows["h"]["error"]) == ("fp8", "fp8", None)
    assert (rows["y"]["verdict"], rows["y"]["error"]["sqnr_db"]) == ("fell-back", 27.25)
    assert (rows["r"]["planned"], rows["r"]["verdict"]) == ("fp32", None) and rows["r"]["reason"]["text"]
    totals = report.to_json()["totals"]
    assert (totals["planned"], totals["verdicts"]) == ({"fp8": 2, "fp32": 1}, {"fp8": 1, "fell-back": 1})
    assert (totals["macs_fp8"], totals["samples"], totals["broken"]) == (0.75, 4, 1)
    assert report.notes == ()


@pytest.mark.parametrize("only", [0, 1, 2])
def test_each_document_alone_makes_a_report(files, only):
    done = fp8graph.report(files[only])
    assert done.report.told and done.text


def test_results_of_commands_are_taken_as_they_are_printed(files, tmp_path):
    plain = fp8graph.report(files).report
    envelopes = [
        ("attest", attestation(sha(files[0])).to_json()),
        ("build", {"engine": "m.engine", "attestation": attestation(sha(files[0])).to_json()}),
    ]
    for command, result in envelopes:
        said = {"schema": "fp8graph.result/1", "command": command, "status": 1, "result": result}
        assert fp8graph.report([files[0], written(tmp_path / "r.json", said), files[2]]).report == plain
    outputs = {name: item.to_json() for name, item in COMPARISON.outputs.items()}
    said = {"schema": "fp8graph.result/1", "command": "optimize", "status": 0, "result": {"comparison": outputs}}
    assert fp8graph.report([written(tmp_path / "o.json", said)]).report.rows[0].error == COMPARISON.outputs["y"]


def test_an_attestation_of_another_plan_is_refused_with_both_digests(files, tmp_path):
    other = written(tmp_path / "b.json", attestation("ab" * 32).to_json())
    for given in ([files[0], other], [other, files[0], files[2]]):
        with refused(UsageError, "FG114", "another plan", "ab" * 32, sha(files[0]), str(other)):
            fp8graph.report(given, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_attestation_without_a_plan_is_joined_by_names_or_refused_where_none_is_in_the_plan(files, tmp_path):
    done = fp8graph.report([files[0], written(tmp_path / "b.json", attestation("").to_json())])
    assert "names no plan" in done.report.notes[0] and "names no plan" in done.text
    said = attestation("")
    strange = replace(said, verdicts={f"strange/{key}": op for key, op in said.verdicts.items()})
    with refused(UsageError, "FG114", "none of its 2 operators", sha(files[0])):
        fp8graph.report([files[0], written(tmp_path / "c2.json", strange.to_json())])
    empty = written(tmp_path / "e.json", replace(said, verdicts={}).to_json())
    assert fp8graph.report([files[0], empty]).report.told, "a model without Q/DQ has nothing to contradict"


@pytest.mark.parametrize("format", ["text", "md", "html", "json"])
def test_every_format_tells_ops_verdicts_errors_and_problems(files, tmp_path, format):
    before = contents(tmp_path)
    done = fp8graph.report(files, format=format)
    for said in ("fell-back", "27.2", "FG201", "the output 'z'" if format != "html" else "the output &#x27;z"):
        assert said in done.text
    assert contents(tmp_path) == before and done.files == ()
    written_ = fp8graph.report(files, format=format, output=tmp_path / "out")
    assert (tmp_path / "out").read_text(encoding="utf-8").rstrip("\n") == done.text.rstrip("\n")
    assert written_.files[0].path == str(tmp_path / "out")
    with refused(UsageError, "FG102"):
        fp8graph.report(files, format=format, output=tmp_path / "out")
    assert fp8graph.report(files, format=format, output=tmp_path / "out", force=True).files
    with refused(UsageError, "FG103"):
        fp8graph.report(files, output=files[0], force=True)


def test_names_and_reasons_break_no_format(files):
    page = fp8graph.report(files, format="html").text
    assert "<b>kernel" not in page and "&lt;b&gt;kernel" in page
    opened = re.findall(r"<(table|tr|td|th|dl|dt|dd|h1|h2|html)\b", page)
    assert sorted(opened) == sorted(re.findall(r"</(table|tr|td|th|dl|dt|dd|h1|h2|html)>", page))
    lines = [line for line in fp8graph.report(files, format="md").text.splitlines() if line.startswith("| `")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert json.loads(fp8graph.report(files, format="json").text)["schema"] == "fp8graph.report/1"


def test_what_cannot_be_joined_is_refused(files, tmp_path):
    with refused(UsageError, "FG101", "did you mean 'html'?"):
        fp8graph.report(files, format="htm")
    with refused(UsageError, "FG100", "two files hold an attestation"):
        fp8graph.report([files[1], files[1]])
    ranges = written(tmp_path / "r.json", {"schema": "fp8graph.ranges/1"})
    with refused(InputError, "FG111", "fp8graph.ranges/1"):
        fp8graph.report([ranges])
    result = written(tmp_path / "x.json", {"schema": "fp8graph.result/1", "command": "check", "result": {}})
    with refused(InputError, "FG111", "a result of 'check'"):
        fp8graph.report([result])
    for outputs in ({"y": 5}, {"y": {"sqnr_db": "a"}}):
        broken = {"schema": "fp8graph.comparison/1", "samples": 1, "outputs": outputs, "problems": []}
        with refused(InputError, "FG111", "damaged"):
            fp8graph.report([written(tmp_path / "d.json", broken)])
