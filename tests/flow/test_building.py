"""`build` beside the builder: what other shapes cost, what is checked before it starts, what the manifest holds."""

import json
import logging
from pathlib import Path
from typing import Any

import onnx
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.base.files import sha256_of
from fp8graph.data.plan import Profile
from tests.small import model, needs_rtx, refused

ATTENTION = """(float16[b,4,s,32] q, float16[b,4,s,32] k, float16[b,4,s,32] v) => (float16[b,4,s,32] y)
{ kt = Transpose<perm=[0,1,3,2]>(k)
  scores = MatMul(q, kt)
  p = Softmax<axis=-1>(scores)
  y = MatMul(p, v) }"""
NAMES = ("q", "k", "v")


def lengths(least: int, most: int = 256) -> dict[str, Profile]:
    """The same lengths for Q, K and V."""
    return dict.fromkeys(NAMES, Profile((1, 4, least, 32), (1, 4, max(64, least), 32), (1, 4, most, 32)))


def optimized(folder: Path, shapes: dict[str, Profile] | None, **options: Any) -> Path:
    path = folder / "m.fp8.onnx"
    fp8graph.optimize(
        model(ATTENTION), output=path, target="tensorrt-rtx:sm89", data="random", shapes=shapes, **options
    )
    return path


def found(path: Path, shapes: Any) -> list[tuple[str, str, str]]:
    """What `build` finds about the shapes; no builder is needed for it."""
    done = fp8graph.build(path, emit_script=path.with_suffix(".py"), shapes=shapes, force=True)
    return [(item.code, item.severity, item.op) for item in done.findings]


LOST = [("FG320", "warning", "scores"), ("FG320", "warning", "y")]
GAINED = [("FG321", "info", "scores"), ("FG321", "info", "y")]


@pytest.mark.parametrize(
    ("planned", "given", "expected"),
    [
        (32, None, []),
        (32, lengths(32), []),
        (32, lengths(64), []),
        (32, lengths(16), LOST),
        (32, [lengths(16)], LOST),
        (32, [lengths(64), lengths(8, 64)], LOST),
        (16, lengths(16), []),
        (16, lengths(64), GAINED),
    ],
    ids=["the plan's", "given alike", "longer", "shorter", "one profile", "the second profile", "kept", "kept, longer"],
)
def test_other_shapes_than_the_plans_say_what_they_cost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, planned: int, given: Any, expected: list[tuple[str, str, str]]
):
    path = optimized(tmp_path, lengths(planned), allow_unquantized=True)
    with caplog.at_level(logging.WARNING, "fp8graph"):
        assert found(path, given) == expected
    said = [record.getMessage() for record in caplog.records if "FG32" in record.getMessage()]
    assert len(said) == (1 if expected == LOST else 0)


@pytest.mark.parametrize(
    ("planned", "given", "expected"),
    [
        ((8, 64, 64), (1, 64, 64), []),
        ((1, 64, 64), (1, 64, 16), LOST),
        ((1, 64, 64), (1, 1, 64), LOST),
    ],
    ids=["a single query among others", "fewer keys beside it", "a single query alone"],
)
def test_other_numbers_of_queries_are_judged_as_planning_judges_them(
    tmp_path: Path, planned: tuple[int, int, int], given: tuple[int, int, int], expected: list[tuple[str, str, str]]
):
    """Queries: the least and the most of them; then the least number of keys."""

    def shapes(least: int, most: int, keys: int) -> dict[str, Profile]:
        query = Profile((1, 4, least, 32), (1, 4, most, 32), (1, 4, most, 32))
        return {"q": query} | dict.fromkeys("kv", Profile((1, 4, keys, 32), (1, 4, 256, 32), (1, 4, 256, 32)))

    text = ATTENTION.replace("b,4,s,32] q", "b,4,t,32] q").replace("b,4,s,32] y", "b,4,t,32] y")
    path = tmp_path / "m.fp8.onnx"
    fp8graph.optimize(model(text), output=path, target="tensorrt-rtx:sm89", data="random", shapes=shapes(*planned))
    assert found(path, shapes(*given)) == expected


def test_a_warning_about_shapes_names_both_and_what_to_type(tmp_path: Path):
    path = optimized(tmp_path, lengths(32))
    done = fp8graph.build(path, emit_script=tmp_path / "b.py", shapes=[lengths(64), lengths(16)])
    assert "keys 16, planned 32" in done.findings[0].text
    assert "(profile 1)" in done.findings[0].text
    assert "--min-shapes q:1x4x32x32 k:1x4x32x32 v:1x4x32x32" in done.findings[0].do


@needs_rtx
def test_the_warning_is_true(tmp_path: Path):
    """The engine for the plan's shapes has the fused kernel, the other has not."""
    path = optimized(tmp_path, lengths(32))
    kernels = []
    for name, shapes in (("planned", None), ("shorter", lengths(16))):
        done = fp8graph.build(path, output=tmp_path / name, shapes=shapes)
        kernels.append(sum("mha" in json.dumps(row) for row in done.manifest["layers"]))
    assert kernels[0] > 0
    assert kernels[1] == 0


@needs_rtx
def test_the_manifest_holds_digests_profiles_and_the_attestation(tmp_path: Path):
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(optimized(tmp_path, lengths(32))), path)
    (tmp_path / "m.fp8.onnx.plan.json").rename(tmp_path / "m.onnx.plan.json")
    shapes = [lengths(32), lengths(64)]
    done = fp8graph.build(path, output=tmp_path / "m.engine", shapes=shapes, attest=True)
    document = json.loads((tmp_path / "m.engine.json").read_text())
    assert document == done.manifest
    assert document["model"] == sha256_of(path)
    assert document["engine"] == sha256_of(tmp_path / "m.engine")
    assert document["plan"] == sha256_of(tmp_path / "m.onnx.plan.json")
    assert document["chips"] == ["sm89"]
    assert [profile["k"]["min"] for profile in document["profiles"]] == [[1, 4, 32, 32], [1, 4, 64, 32]]
    assert document["attestation"]["counts"]["fp8"] == 2
    assert document["attestation"]["not_as_planned"] == []
    assert list(document)[-1] == "layers"
    written = {Path(file.path).name: file.sha256 for file in done.files}
    assert written["m.engine.json"] == sha256_of(tmp_path / "m.engine.json")
    again = fp8graph.attest(tmp_path / "m.engine", model=path)
    assert again.to_json() == done.attestation.to_json()


@needs_rtx
def test_the_digest_of_a_data_file_is_in_the_manifest(tmp_path: Path):
    path = tmp_path / "big.onnx"
    proto = model("(float16[8,64] x, float16[64,64] w) => (float16[8,64] y) { y = MatMul(x, w) }")
    onnx.save(proto, path, save_as_external_data=True, location="big.data", size_threshold=64)
    done = fp8graph.build(path, output=tmp_path / "m.engine", target="tensorrt-rtx:sm89")
    assert done.manifest["data"] == {"big.data": sha256_of(tmp_path / "big.data")}


@needs_rtx
@pytest.mark.parametrize("name", ["m.engine", "m.engine.json", "b.py", "t.cache", "none/b.py", "m.fp8.onnx"])
def test_what_lies_in_the_way_is_said_before_anything_is_built(tmp_path: Path, name: str):
    path = optimized(tmp_path, lengths(32))
    target = tmp_path / name
    if target.parent.exists() and not target.exists():
        target.write_text("mine")
    outputs = {"output": "m.engine", "emit_script": "b.py", "save_timing_cache": "t.cache"}
    files = {option: tmp_path / file for option, file in outputs.items()}
    if name.endswith("b.py") or name == "m.fp8.onnx":
        files["emit_script"] = target
    with pytest.raises(UsageError) as caught:
        fp8graph.build(path, **files)
    assert caught.value.status == 2
    assert not (tmp_path / "m.engine").exists() or (tmp_path / "m.engine").read_text() == "mine"


@needs_rtx
def test_a_timing_cache_may_be_read_and_written_in_place(tmp_path: Path):
    path = optimized(tmp_path, lengths(32))
    (tmp_path / "t.cache").write_bytes(b"")
    cache = tmp_path / "t.cache"
    done = fp8graph.build(path, output=tmp_path / "m.engine", load_timing_cache=cache, save_timing_cache=cache)
    assert "no timing cache" in done.warnings[0]


def test_an_engine_for_inputs_that_are_always_empty_is_refused(tmp_path):
    proto = model("(float[N,8] x, float[8,4] w) => (float[N,4] y) { y = MatMul(x, w) }")
    onnx.save(proto, tmp_path / "m.onnx")
    with refused(UsageError, "FG100", "'x' would always be empty"):
        shapes = {"x": Profile((0, 8), (0, 8), (0, 8))}
        fp8graph.build(tmp_path / "m.onnx", output=tmp_path / "e", target="tensorrt-rtx:sm89", shapes=shapes)
    assert not (tmp_path / "e").exists()
