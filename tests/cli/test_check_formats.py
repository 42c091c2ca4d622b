"""`check` for machines: SARIF, workflow commands, --select, --fix; the whole command, on real files."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from fp8graph.base.codes import CODES
from tests.small import contents, model

# A list of one on a Conv's activation, a Cast up behind DQ, a pair that nobody reads, one name twice.
BROKEN = """(float[1,4,8,8] x, float16[2,8] z, float[1] w_s, float16 w_h, float w_t, float8e4m3fn[8,4,3,3] w,
        float8e4m3fn[8,4] w_m) => (float[1,8,6,6] y, float[2,4] v) {
    [n] q = QuantizeLinear <output_dtype = 17> (x, w_s)
    d = DequantizeLinear (q, w_s)
    u = DequantizeLinear (w, w_t)
    [twice] y = Conv (d, u)
    p = QuantizeLinear <output_dtype = 17> (z, w_h)
    e = DequantizeLinear (p, w_h)
    c = Cast <to = 1> (e)
    m = DequantizeLinear (w_m, w_t)
    [twice] v = MatMul(c, m)
    o = QuantizeLinear <output_dtype = 17> (v, w_t)
    f = DequantizeLinear (o, w_t)
}"""
NUMBERS = {"w_s": np.array([0.5]), "w_h": np.array(0.5), "w_t": np.array(0.25)}


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "theirs.onnx"
    onnx.save(model(BROKEN, **NUMBERS), path)
    return path


def test_sarif_has_what_its_schema_wants(cli, broken):
    done = cli("check", broken, "--output-format", "sarif")
    log = json.loads(done.out)
    assert done.status == 1 and log["version"] == "2.1.0" and "sarif" in log["$schema"]
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "fp8graph" and driver["version"][0].isdigit()
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(ids) == len(set(ids)) and set(ids) <= set(CODES)
    assert all(rule["shortDescription"]["text"] == CODES[rule["id"]].title for rule in driver["rules"])
    assert run["results"]
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note") and result["message"]["text"]
        (location,) = result["locations"]
        uri = location["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.endswith("theirs.onnx") and "\\" not in uri and " " not in uri


def test_sarif_of_a_clean_model_has_no_result(cli, tmp_path):
    path = tmp_path / "plain.onnx"
    onnx.save(model("(float[2,4] x, float[4,4] w) => (float[2,4] y) { y = MatMul(x, w) }"), path)
    done = cli("check", path, "--output-format", "sarif")
    assert done.status == 0 and json.loads(done.out)["runs"][0]["results"] == []
    assert cli("check", path, "--output-format", "github").out.strip() == ""


def test_workflow_commands_are_one_line_each_and_escaped(cli, broken):
    done = cli("check", broken, "--output-format", "github")
    lines = done.out.splitlines()
    assert done.status == 1 and lines
    for line in lines:
        head, _, text = line.partition("::")[2].partition("::")
        kind, _, properties = head.partition(" ")
        assert kind in ("error", "warning", "notice") and properties.startswith("file=") and text
        assert dict(item.split("=", 1) for item in properties.split(","))["title"] in CODES


@pytest.mark.parametrize(("word", "near"), [("FG999", "FG90"), ("301", "FG301"), ("XY1", "FG")])
def test_a_code_that_is_not_there_is_a_wrong_call(cli, broken, word, near):
    for option in ("--select", "--ignore"):
        done = cli("check", broken, option, word)
        assert done.status == 2 and f"'{word}'" in done.err and near in done.err


def test_fix_writes_a_model_in_which_what_can_be_mended_is(cli, broken, tmp_path):
    before, out = contents(tmp_path), tmp_path / "mended.onnx"
    done = cli("check", broken, "--fix", "-o", out, "--json")
    result = done.json
    assert done.status == 0, result["findings"]
    assert {item["code"] for item in result["result"]["fixed"]} >= {"FG307", "FG312", "FG322", "FG323"}
    assert [item["severity"] for item in result["findings"] if item["severity"] != "info"] == []
    assert [item["path"] for item in result["files"]] == [str(out)]
    assert {name: digest for name, digest in contents(tmp_path).items() if name != "mended.onnx"} == before
    onnx.checker.check_model(str(out), full_check=True)
    assert cli("check", out).status == 0
    assert len(onnx.load(out).graph.node) == 8
    again = cli("check", out, "--fix", "-o", tmp_path / "again.onnx", "--json").json
    assert again["result"]["done"] == [] and again["result"]["fixed"] == []


@pytest.mark.parametrize("nodes", ["r = Relu(d)", ""], ids=["what cannot be mended", "nothing found"])
def test_fix_that_finds_nothing_to_fix_writes_nothing_and_keeps_the_status(cli, tmp_path, nodes):
    text = f"""(float[2,32] x, float w_s, float8e4m3fn[32,16] w) => (float[2,16] y) {{
        q = QuantizeLinear <output_dtype = 17> (x, w_s) d = DequantizeLinear (q, w_s)
        u = DequantizeLinear (w, w_s) {nodes} y = MatMul({"r" if nodes else "d"}, u) }}"""
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    made = model(text, w_s=np.array(0.5))
    for node in made.graph.node:
        node.name = f"n/{node.output[0]}"
    onnx.save(made, path)
    before, plain = contents(tmp_path), cli("check", path)
    done = cli("check", path, "--fix", "-o", out)
    assert done.status == plain.status == bool(nodes), done.out
    assert done.out.count(str(out)) == 1, "its name stands in no finding"
    assert f"nothing to fix was found: {out} is not written" in done.out
    result = cli("check", path, "--fix", "-o", out, "--json").json
    assert result["files"] == [] and result["result"]["output"] is None and result["status"] == plain.status
    assert str(out) not in cli("check", path, "--fix", "-o", out, "--output-format", "sarif").out
    assert contents(tmp_path) == before


def test_fix_writes_casts_to_fp8_as_pairs(cli, tmp_path):
    text = """(float[2,32] x, float w_s, float8e4m3fn[32,16] w) => (float[2,16] y) {
        v = Div(x, w_s) c = Cast <to = 17> (v) b = Cast <to = 1> (c) m = Mul(b, w_s)
        u = Cast <to = 1> (w) t = Mul(u, w_s) y = MatMul(m, t) }"""
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(model(text, opset=19, w_s=np.array(0.3)), path)
    result = cli("check", path, "--fix", "-o", out, "--json").json
    assert {item["code"] for item in result["result"]["fixed"]} == {"FG317", "FG318"}
    assert result["findings"] == [] and cli("check", out).status == 0
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert kinds == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"]


def test_fix_says_what_is_left(cli, tmp_path):
    text = """(float[2,32] x, float w_s, float8e4m3fn[32,16] w) => (float[2,16] y) {
        q = QuantizeLinear <output_dtype = 17> (x, w_s) d = DequantizeLinear (q, w_s)
        u = DequantizeLinear (w, w_s) r = Relu(d) y = MatMul(r, u) }"""
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(model(text, w_s=np.array(0.5)), path)
    done = cli("check", path, "--fix", "-o", out)
    assert done.status == 1 and "FG306" in done.out and "0 fixed" in done.out and out.exists()
    assert cli("check", path, "--fix", "-o", out).status == 2, "it is there already"
    assert cli("check", path, "--fix", "-o", out, "--force", "--exit-zero").status == 0


@pytest.mark.parametrize(
    "words", [["--fix"], ["-o", "OUT"], ["--fix", "-o", "SELF", "--force"], ["--fix", "-o", "nowhere/o.onnx"]]
)
def test_fix_and_its_output_go_together_and_never_onto_an_input(cli, broken, tmp_path, words):
    before = contents(tmp_path)
    words = [{"OUT": str(tmp_path / "o.onnx"), "SELF": str(broken)}.get(word, word) for word in words]
    assert cli("check", broken, *words).status == 2
    assert contents(tmp_path) == before
