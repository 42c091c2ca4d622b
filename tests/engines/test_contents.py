"""What `inspect` and `diff` take from an engine file and its manifest."""

import json
from pathlib import Path

import engine_bytes as bytes_
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.engines.reading import keys
from fp8graph.engines.sites import sites
from fp8graph.engines.witness import EngineOp
from fp8graph.graph import walk
from tests.small import model


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


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("/layer/MatMul", "/layer/MatMul_output_0"),
        ("dense/MatMul", "dense/MatMul:0"),
        ("node_of_logits", "logits"),
        ("mm", "key:mm_output_0"),
        ("mm | then (then_branch) | if (If)", "if_o.then_branch/mm_output_0"),
        ("mm", "loop_o.body/inner_o.else_branch/mm:0"),
        ("node_of_y", "fn:acme::block/y"),
    ],
)
def test_an_engine_without_a_manifest_takes_a_key_for_the_node_that_is_called_after_it(tmp_path, name, key):
    path = engine(tmp_path, "m.engine", bytes_.FP8.replace("ONNX Layer: mm]", f"ONNX Layer: {name}]"))
    found = fp8graph.inspect(path, op=[key])
    assert [row["name"] for row in found["rows"]] == [name]
    assert [layer["names"] for layer in found["layers"]] == [[name, "x_DQ", "w_DQ"]]
    assert fp8graph.diff(path, path, op=[key]).same == 1
    with pytest.raises(UsageError, match=r"FG109.*\n.*\n.*manifest"):
        fp8graph.inspect(path, op=[key + "x"])


def test_the_manifest_tells_the_keys_of_nodes_however_they_are_called(sound, tmp_path):
    keys = json.loads(sound.engine.with_name("m.engine.json").read_text())["keys"]
    assert keys["mm"] == ["mm_o"] and keys["gemm"] == ["gemm_o"]
    for file in (sound.engine, sound.engine.with_name("m.engine.json")):
        found = fp8graph.inspect(file, op=["key:mm_o", "gemm_o"])
        assert [row["name"] for row in found["rows"]] == ["gemm", "mm"]
        assert {name for layer in found["layers"] for name in ("gemm", "mm") if name in layer["names"]} == {
            "gemm",
            "mm",
        }
    alone = tmp_path / "m.engine"
    alone.write_bytes(sound.engine.read_bytes())
    assert fp8graph.diff(alone, sound.engine, op=["mm_o"]).same == 1
    with pytest.raises(UsageError, match="FG109"):
        fp8graph.inspect(alone, op=["mm_o"])


def test_a_name_has_the_keys_of_a_part_and_its_whole_and_that_of_a_node_in_a_body():
    source = model("""(bool c, float[4,4] x, float[4,4] w) => (float[4,4] y) {
        a = If (c) <then_branch = then () => (float[4,4] t) { t = MatMul(x, w) },
                    else_branch = else () => (float[4,4] e) { e = Relu(x) }>
        y = MatMul(a, w)
    }""")
    graph = ir.from_proto(source)
    inner = next(body for _, body in walk.bodies(graph.graph[0]))[0]
    inner.name, graph.graph[0].name, graph.graph[1].name = "mm", "if", "mm"
    graph.graph[1].metadata_props[walk.KEY] = "attention~mix"
    ops = [
        EngineOp(0, "gemm", (name,), ("fp8", "fp8"), ()) for name in ("mm", "mm | then (then_branch) | if (If)", "z")
    ]
    found = keys("tensorrt-rtx", ops, sites(graph))
    assert found == {
        "mm": ["attention~mix", "attention"],
        "mm | then (then_branch) | if (If)": ["a.then_branch/t"],
    }


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
