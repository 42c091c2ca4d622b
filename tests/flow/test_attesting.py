"""`attest`, and `build --attest`, which says the same."""

import json
from pathlib import Path

import pytest

import fp8graph
from fp8graph.cli.main import main
from fp8graph.data.attestation import Attestation
from fp8graph.flow.engine import Built
from tests.small import needs_rtx

pytestmark = needs_rtx
TARGET = "tensorrt-rtx:sm89"


def attested(built: Built) -> Attestation:
    assert built.attestation is not None
    return built.attestation


def test_of_a_model_that_promises_nothing_both_say_so(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, engine = digits / "cnn.onnx", tmp_path / "e"
    words = ["build", str(model), "-o", str(engine), "--target", TARGET, "--shapes", "image:1x1x8x8", "--attest"]
    assert main([*words, "--json"]) == 1
    first = json.loads(capsys.readouterr().out)
    assert main(["attest", str(engine), "--model", str(model), "--json"]) == 1
    second = json.loads(capsys.readouterr().out)
    assert first["result"]["attestation"] == second["result"]
    assert second["result"]["counts"] == {"fp8": 0}
    assert second["result"]["totals"]["macs"]["high"] > 0


def test_a_sound_engine_is_attested_alike_and_holds_what_was_forecast(made, tmp_path: Path):
    done = attested(fp8graph.build(made.out, output=tmp_path / "e", attest=True))
    assert done.honest and not done.findings
    assert done.counts == {"fp8": made.done.planned}
    assert done.to_json() == fp8graph.attest(tmp_path / "e", model=made.out).to_json()
    assert done.weights.excess is not None and abs(done.weights.excess) < 0.02
    assert {op.forecast for op in done.verdicts.values()} == {"fp8"}
    # the first Conv is kept: its few channels are padded, so that it does not count among what pays in FP8
    totals = done.totals("macs")
    assert done.share("macs") == 1 and 0.95 < totals["fp8"] / sum(totals.values()) < 1


def test_every_op_that_is_not_as_planned_is_a_finding_at_status_1(
    made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fp8graph.build(made.out, output=tmp_path / "e")
    (tmp_path / "e.json").unlink()
    (tmp_path / "m.onnx").write_bytes(made.source.read_bytes())
    assert (
        main(["attest", str(tmp_path / "e"), "--model", str(tmp_path / "m.onnx"), "--plan", str(made.plan), "--json"])
        == 1
    )
    document = json.loads(capsys.readouterr().out)
    told = {finding["op"] for finding in document["findings"] if finding["severity"] == "error"}
    bad = {key for key, op in document["result"]["verdicts"].items() if op["verdict"] != op["planned"]}
    assert bad and told == bad
    assert document["error"] is None
