"""What `inspect` and `diff` take from an engine file and its manifest."""

from pathlib import Path

import engine_bytes as bytes_
import pytest

import fp8graph
from fp8graph.base.errors import UsageError


def engine(folder: Path, name: str, *programs: str, version: tuple[int, ...] = (1, 7, 1, 116)) -> Path:
    path = folder / name
    path.write_bytes(bytes_.engine(*(bytes_.program(text) for text in programs), version=version))
    return path


def test_an_engine_has_ops_by_kind_and_word_its_layers_and_its_bytes_by_type(tmp_path):
    found = fp8graph.inspect(engine(tmp_path, "m.engine", bytes_.FP8))
    assert found["ops"] == {"product": {"fp8": 1}}
    assert found["rows"] == [
        {"key": "mm", "op_type": "product", "name": "mm", "precision": "fp8", "detail": "fp8 x fp8"}
    ]
    assert found["weights"] == {"fp32": 4, "fp8": 8192}
    assert [layer["names"] for layer in found["layers"]] == [["x_Q"], ["mm", "x_DQ", "w_DQ"]]


@pytest.mark.parametrize("pattern", ["mm", "w_DQ", "name:mm", "re:m+"])
def test_patterns_narrow_layers_by_any_node_that_they_name(tmp_path, pattern):
    found = fp8graph.inspect(engine(tmp_path, "m.engine", bytes_.FP8), op=[pattern])
    assert [layer["names"] for layer in found["layers"]] == [["mm", "x_DQ", "w_DQ"]]
    assert found["chips"] == ["sm89"] and "weights" not in found
    with pytest.raises(UsageError, match="FG109"):
        fp8graph.inspect(tmp_path / "m.engine", op=["x_DQQ"])


def test_profiles_share_their_weights(tmp_path):
    second = bytes_.program(bytes_.FP8, inputs='"x [profile 1].1"')
    path = tmp_path / "m.engine"
    path.write_bytes(bytes_.engine(bytes_.program(bytes_.FP8), second))
    found = fp8graph.inspect(path)
    assert (found["profiles"], found["weights"]) == (2, {"fp32": 4, "fp8": 8192})


def test_two_engines_tell_which_ops_changed_types(tmp_path):
    one, other = engine(tmp_path, "a", bytes_.FP8), engine(tmp_path, "b", bytes_.HIGH)
    found = fp8graph.diff(one, other)
    (change,) = found.changed
    assert (change.a.key, change.a.detail) == ("mm", "fp8 x fp8")
    assert (change.b.precision, change.b.detail) == ("storage", "fp16 x fp16, a weight stored in fp8")
    assert found.moves == {"fp8 -> storage": 1} and found.weights == {"fp32": (4, 0)}
    assert fp8graph.diff(one, one).equal


def test_a_node_that_is_merged_into_another_kernel_is_told_where_it_was_a_product(tmp_path):
    alone = bytes_.FP8.replace("ONNX Layer: mm]", "ONNX Layer: scores]")
    found = fp8graph.diff(engine(tmp_path, "a", bytes_.ATTENTION), engine(tmp_path, "b", alone))
    assert [(one.a.key, one.a.detail, one.b.detail) for one in found.changed] == [
        ("scores", "fused attention on fp8 x fp8 x fp8", "fp8 x fp8")
    ]
    assert [op.key for op in found.removed] == ["mixed"] and found.added == ()


def test_the_version_alone_is_no_difference_and_an_unknown_one_is_not_known_to_be_none(tmp_path):
    one = engine(tmp_path, "a", bytes_.FP8)
    older = fp8graph.diff(engine(tmp_path, "o", bytes_.FP8, version=(1, 6, 1, 120)), one)
    assert older.equal and older.about["builder"] == ("tensorrt-rtx 1.6.1.120", "tensorrt-rtx 1.7.1.116")
    newer = fp8graph.diff(one, engine(tmp_path, "n", bytes_.FP8, version=(9, 9, 9, 9)))
    assert not newer.equal and "9.9.9.9" in newer.unknown["b"] and not newer.removed


def test_a_built_engine_and_its_manifest_agree(sound, tmp_path):
    engine, manifest = sound.engine, sound.engine.with_name("m.engine.json")
    found, listed = fp8graph.inspect(engine), fp8graph.inspect(manifest)
    assert found["ops"] == listed["ops"] and found["plan"] == listed["plan"] == "ab" * 32
    assert all(row["name"] and row["kind"] for row in (*found["layers"], *listed["layers"]))
    assert found["options"] == listed["options"]
    assert fp8graph.diff(engine, engine).equal
    alone = tmp_path / "m.engine"
    alone.write_bytes(engine.read_bytes())
    (tmp_path / "m.engine.json").write_text("{}")
    assert "cannot be read" in fp8graph.inspect(alone)["manifest"]
    assert fp8graph.diff(engine, alone).equal
