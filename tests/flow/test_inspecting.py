"""Inspect and diff: what is in files of every kind, and what two of a kind have otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import fp8graph
from fp8graph.base.errors import InputError, UsageError
from fp8graph.data.attestation import Attestation, OpVerdict
from tests.small import TWO_OPEN, feeds, model, refused, written


def test_inspecting_a_model_tells_inputs_ops_and_scales(made):
    found = fp8graph.inspect(made.out)
    assert (found["kind"], found["file"]) == ("model", "out.onnx")
    assert found["inputs"][0]["name"] == "image" and found["outputs"] == [
        {"name": "logits", "type": "float", "shape": found["outputs"][0]["shape"]}
    ]
    fp8 = sum(found["ops"].get(kind, {}).get("fp8", 0) for kind in ("Conv", "Gemm", "MatMul"))
    assert fp8 == made.done.planned
    assert found["scales"] and all(0 < row["least"] <= row["largest"] for row in found["scales"])
    assert json.loads(json.dumps(found))


@pytest.mark.parametrize(
    ("number", "opset", "word"),
    [(17, 21, "fp8"), (18, 21, "fp8"), (20, 21, "fp8"), (3, 21, "int8"), (22, 21, "int4"), (23, 23, "fp4")],
    ids=["e4m3fn", "e4m3fnuz", "e5m2fnuz", "int8", "int4", "e2m1"],
)
def test_inspecting_tells_products_of_every_format(tmp_path: Path, number: int, opset: int, word: str):
    """`number` is the format's TensorProto.DataType."""
    proto = model(
        f"""(float[2,8] x, float[8,8] w, float s) => (float[2,8] y)
{{ a = QuantizeLinear<output_dtype={number}>(x, s)
  b = DequantizeLinear(a, s)
  c = QuantizeLinear<output_dtype={number}>(w, s)
  d = DequantizeLinear(c, s)
  y = MatMul(b, d) }}""",
        opset=opset,
    )
    onnx.save(proto, tmp_path / "m.onnx")
    assert fp8graph.inspect(tmp_path / "m.onnx")["ops"]["MatMul"] == {word: 1}


def test_inspecting_a_plan_tells_every_op_with_its_reason(made):
    found = fp8graph.inspect(made.plan)
    assert (found["kind"], found["quantized"], found["settled"]) == ("plan", made.done.planned, True)
    assert [row["key"] for row in found["rows"]] == list(made.done.plan.ops)
    assert len(found["scales"]) == len({(quant.value, quant.format) for quant in made.done.plan.quants()})
    assert all(row["code"] and row["why"] for row in found["rows"])
    assert sum(found["ops"].get(kind, {}).get("fp8", 0) for kind in ("Conv", "Gemm", "MatMul")) == made.done.planned


def test_inspecting_ranges(tmp_path):
    proto = model("(float[n,8] x, float[8,8] w) => (float[n,8] y) { y = MatMul(x, w) }")
    fp8graph.calibrate(proto, data=feeds(proto, 3), output=tmp_path / "r.json")
    found = fp8graph.inspect(tmp_path / "r.json")
    assert (found["kind"], found["samples"]) == ("ranges", 3) and "x" in found["values"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "FG111"),
        (b"", "FG106"),
        (b"{", "FG111"),
        (b"{}", "FG111"),
        (b'{"schema": "acme/1"}', "FG111"),
        (b'{"schema": 5}', "FG111"),
        (b'{"schema": "fp8graph.plan/1"}', "FG111"),
        (b'{"schema": "fp8graph.plan/9"}', "FG111"),
        (b'{"schema": "fp8graph.ranges/1"}', "FG111"),
        (b'{"schema": "fp8graph.ranges/1", "values": 5}', "FG111"),
        (b"\x08\x0a", "FG106"),
        (b"text", "FG106"),
        (b"vtrt", "FG508"),
    ],
)
def test_inspecting_what_is_nothing_of_ours_is_refused(tmp_path, content, code):
    path = tmp_path / "f"
    if content is not None:
        path.write_bytes(content)
    with refused(InputError, code):
        fp8graph.inspect(path)


@pytest.mark.parametrize(
    ("name", "content", "said", "do"),
    [
        ("f.npz", b"PK\x03\x04 and so on", "it is a zip archive", "--data"),
        ("f.npy", b"\x93NUMPY and so on", "it is a NumPy array", "--data"),
        ("f.toml", b"extends = 'fp8-default'", "not an ONNX model", "recipes show"),
        ("f.txt", b"text", "this is not a model, plan, ranges", "check the path"),
        ("f.json", b'{"a": 1}', "it holds no 'schema'", "give a model, plan"),
    ],
)
def test_what_is_of_no_kind_is_called_what_it_is(tmp_path, name, content, said, do):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        fp8graph.inspect(tmp_path / name)
    assert said in str(caught.value) and do in caught.value.do and caught.value.status == 3


def test_a_folder_is_refused_with_a_file_in_it(tmp_path):
    onnx.save(model(TWO_OPEN), str(tmp_path / "m.onnx"))
    with refused(InputError, "FG111", "this is a folder", "inspect " + str(tmp_path / "m.onnx")):
        fp8graph.inspect(tmp_path)


def a_verdict(name: str, verdict: str = "fp8") -> OpVerdict:
    return OpVerdict("MatMul", name, "fp8", verdict, "" if verdict == "fp8" else "the kernel", macs=64, weight_bytes=8)


def an_attestation(**verdicts: str) -> Attestation:
    ops = {key: a_verdict(f"/{key}", verdict) for key, verdict in verdicts.items()}
    return Attestation("e", "m", "p", "tensorrt-rtx 1.7.1.116", ("sm89",), 1, ops)


def test_an_attestation_opens_from_the_result_of_attest(tmp_path):
    said = an_attestation(y="fp8", h="fell-back").to_json()
    plain = fp8graph.inspect(written(tmp_path / "a.json", said))
    result = {"schema": "fp8graph.result/1", "command": "attest", "status": 1, "result": said}
    assert fp8graph.inspect(written(tmp_path / "r.json", result)) == plain
    assert plain["kind"] == "attestation" and plain["ops"] == {"MatMul": {"fell-back": 1, "fp8": 1}}
    narrow = fp8graph.inspect(tmp_path / "r.json", op=["h"])
    assert list(narrow["verdicts"]) == ["h"] and "counts" not in narrow


def test_a_result_that_is_no_document_shows_its_parts(tmp_path):
    files = [{"path": "o", "sha256": "0", "bytes": 1}]
    result = {"schema": "fp8graph.result/1", "command": "optimize", "status": 0, "files": files, "findings": []}
    found = fp8graph.inspect(written(tmp_path / "r.json", {**result, "result": {"kept": 3, "planned_by": {"fp8": 2}}}))
    assert found == {
        "kind": "result",
        "command": "optimize",
        "status": 0,
        "kept": 3,
        "files": files,
        "planned_by": {"fp8": 2},
    }


@pytest.mark.parametrize("section", ["io", "ops", "scales"])
def test_a_plan_and_a_model_have_every_section(made, section):
    for file in (made.plan, made.out):
        found = fp8graph.inspect(file, show=[section])
        assert len(found) > 1 and all(found.values()), found


def test_sections_are_those_that_exist(made):
    with refused(UsageError, "FG101", "did you mean 'scales'?"):
        fp8graph.inspect(made.plan, show=["scale"])


@pytest.mark.parametrize("kind", ["plan", "model", "ranges"])
def test_patterns_narrow_whatever_is_shown(made, calibration, tmp_path, kind):
    file = {"plan": made.plan, "model": made.out}.get(kind, tmp_path / "r.json")
    if kind == "ranges":
        fp8graph.calibrate(made.source, data=calibration, output=file)
    key = next(key for key, _ in made.done.plan.quantized() if kind != "ranges") if kind != "ranges" else "logits"
    full, found = fp8graph.inspect(file), fp8graph.inspect(file, op=[f"key:{key}"])
    rows = [row["key"] for row in found.get("rows", [])]
    assert rows == ([] if kind == "ranges" else [key])
    assert {row["key"] for row in found.get("scales", [])} <= {key}
    assert list(found.get("values", {})) == ([key] if kind == "ranges" else [])
    assert sum(sum(by.values()) for by in found.get("ops", {}).values()) == len(rows)
    assert len(json.dumps(found)) < len(json.dumps(full)) / 2
    with refused(UsageError, "FG109", "matches nothing"):
        fp8graph.inspect(file, op=[f"key:{key}", "none*"])


@pytest.mark.parametrize("function", [fp8graph.inspect, lambda file, op: fp8graph.diff(file, file, op=op)])
def test_a_broken_pattern_is_refused(made, function):
    with refused(UsageError, "FG100", "regular expression"):
        function(made.plan, op=["re:["])


def test_a_plan_opens_without_numpy_and_onnx(made):
    code = (
        "import sys, fp8graph; fp8graph.inspect(sys.argv[1]);"
        "print([name for name in ('numpy', 'onnx', 'onnx_ir', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made.plan)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def planned(folder: Path, name: str, **options: object) -> Path:
    """Two products in FP8, written with its plan."""
    proto = model(TWO_OPEN)
    out = folder / f"{name}.onnx"
    fp8graph.optimize(proto, output=out, target="reference", data=feeds(proto, 4), **options)
    return out


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """A model in FP8, and the same with its last product kept, each with its plan beside it."""
    return planned(tmp_path, "a"), planned(tmp_path, "b", nodes_to_exclude=["y"])


def beside(path: Path) -> Path:
    return path.with_name(path.name + ".plan.json")


@pytest.mark.parametrize("kind", ["plan", "model"])
def test_a_file_does_not_differ_from_itself(two, kind):
    file = two[0] if kind == "model" else beside(two[0])
    found = fp8graph.diff(file, file)
    assert found.equal and found.same and not found.moved and found.kind == kind
    assert json.loads(json.dumps(found.to_json()))["equal"] is True


def test_plans_tell_which_ops_changed_and_why(two):
    found = fp8graph.diff(*map(beside, two))
    (change,) = found.changed
    assert (change.a.key, change.a.precision, change.b.precision) == ("y", "fp8", "fp32")
    assert change.b.why.startswith("FG2") and change.a.why != change.b.why
    assert (found.moves, found.same, found.added, found.removed) == ({"fp8 -> fp32": 1}, 2, (), ())
    assert found.scales[:2] == (2, 0) and not found.moved and not found.equal
    back = fp8graph.diff(*map(beside, reversed(two)))
    assert back.moves == {"fp32 -> fp8": 1} and back.scales[:2] == (0, 2)


def test_models_tell_the_bytes_of_weights_by_type(two):
    found = fp8graph.diff(*two)
    (change,) = found.changed
    assert (change.a.key, change.a.weight, change.b.weight) == ("y", "fp8", "fp32")
    assert (change.a.weight_bytes, change.b.weight_bytes) == (1024, 4096)
    assert found.weights["fp8"][0] - found.weights["fp8"][1] == 1024
    assert found.weights["fp32"][1] > found.weights["fp32"][0]


def test_a_float_model_and_its_result_have_the_same_ops(two, tmp_path):
    onnx.save(model(TWO_OPEN), str(tmp_path / "m.onnx"))
    found = fp8graph.diff(tmp_path / "m.onnx", two[0])
    assert found.moves == {"fp32 -> fp8": 2} and (found.added, found.removed) == ((), ())
    assert found.to_json()["ops"]["changed"][0]["b"]["weight_bytes"] == 1024


def test_scales_that_moved_are_named_with_their_ratio(two, tmp_path):
    document = json.loads(beside(two[0]).read_text())
    document["ops"]["h"]["inputs"]["0"]["scale"]["value"] *= 2
    written(tmp_path / "moved.json", document)
    found = fp8graph.diff(beside(two[0]), tmp_path / "moved.json")
    (moved,) = found.moved
    assert moved.a.tensor == "x" and moved.ratio == pytest.approx(2.0) and not found.changed and not found.equal


def test_patterns_narrow_a_difference(two):
    assert fp8graph.diff(*map(beside, two), op=["h"]).equal
    assert len(fp8graph.diff(*map(beside, two), op=["type:MatMul"]).changed) == 1
    with refused(UsageError, "FG109"):
        fp8graph.diff(*map(beside, two), op=["none*"])


def test_attestations_and_ranges_are_laid_side_by_side(tmp_path):
    one = written(tmp_path / "a.json", an_attestation(y="fp8", h="fp8").to_json())
    other = written(tmp_path / "b.json", an_attestation(y="fp8", h="fell-back", z="fp8").to_json())
    found = fp8graph.diff(one, other)
    assert found.moves == {"fp8 -> fell-back": 1} and [op.key for op in found.added] == ["z"]
    proto = model(TWO_OPEN)
    ranges = fp8graph.calibrate(proto, data=feeds(proto, 2), output=tmp_path / "r.json").ranges
    values = {**ranges.values, "x": replace(ranges.values["x"], max=99.0)}
    (tmp_path / "s.json").write_text(json.dumps(replace(ranges, values=values).to_json()))
    (moved,) = fp8graph.diff(tmp_path / "r.json", tmp_path / "s.json").moved
    assert (moved.a.tensor, moved.b.largest) == ("x", 99.0)


def test_two_kinds_are_refused_with_what_to_do_instead(two, tmp_path):
    with refused(UsageError, "FG114", "model and plan", "two plans"):
        fp8graph.diff(two[0], beside(two[0]))
    result = written(tmp_path / "r.json", {"schema": "fp8graph.result/1", "command": "x", "result": {}})
    with refused(UsageError, "FG114", "hold no ops"):
        fp8graph.diff(result, result)
    with refused(InputError, "FG111"):
        fp8graph.diff(two[0], tmp_path / "none")
