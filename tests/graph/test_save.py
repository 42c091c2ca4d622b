"""Saving: weights inside or beside, the same bytes each time, and no weight in memory longer than it takes to write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest

import fp8graph
from fp8graph.graph.load import DATA_DIGEST, load
from tests.small import contents, feeds, model, sha

TEXT = """(float[2,64] x, float[64,64] w_a, float[64,64] w_b, float[64] w_bias) => (float[2,64] y) {
    h = MatMul(x, w_a)
    s = Add(h, w_bias)
    y = MatMul(s, w_b)
}"""


def optimized(folder: Path, name: str = "out.onnx", **asked) -> Path:
    folder.mkdir(exist_ok=True)
    proto = model(TEXT)
    fp8graph.optimize(proto, data=feeds(proto), output=folder / name, **asked)
    return folder / name


def tensors(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(str(path), load_external_data=False).graph.initializer}


def test_weights_lie_inside_a_small_model(tmp_path):
    path = optimized(tmp_path)
    assert set(contents(tmp_path)) == {"out.onnx", "out.onnx.plan.json"}
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in tensors(path).values())
    assert tensors(path)["w_a_fp8"].data_type == onnx.TensorProto.FLOAT8E4M3FN
    assert len(tensors(path)["w_a_fp8"].raw_data) == 64 * 64


@pytest.mark.parametrize(("threshold", "beside"), [(0, 7), (1000, 2), (10**9, 0)])
def test_weights_lie_beside_where_that_is_asked_for(tmp_path, threshold, beside):
    path = optimized(tmp_path, external_data_size_threshold=threshold)
    outside = [name for name, tensor in tensors(path).items() if tensor.data_location]
    assert len(outside) == beside, outside
    wanted = {"out.onnx", "out.onnx.plan.json"} | ({"out.onnx.data"} if beside else set())
    assert set(contents(tmp_path)) == wanted
    source = load(path)
    digest = source.model.metadata_props.get(DATA_DIGEST)
    assert digest == (sha(tmp_path / "out.onnx.data") if beside else None)
    feed = feeds(model(TEXT))[0]
    inside = optimized(tmp_path / "inside")
    for one, other in zip(run(path, feed), run(inside, feed), strict=True):
        np.testing.assert_array_equal(one, other)


def run(path: Path, feed) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feed)


def test_weights_lie_beside_where_they_did_in_the_source(tmp_path):
    onnx.save(model(TEXT), str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=64)
    out = tmp_path / "out"
    out.mkdir()
    done = fp8graph.optimize(tmp_path / "m.onnx", data=feeds(model(TEXT)), output=out / "m.onnx")
    assert set(contents(out)) == {"m.onnx", "m.onnx.data", "m.onnx.plan.json"}
    assert {Path(file.path).name: file.sha256 for file in done.files} == contents(out)
    for tensor in tensors(out / "m.onnx").values():
        assert [e.value for e in tensor.external_data if e.key == "location"] in ([], ["m.onnx.data"])


@pytest.mark.parametrize("threshold", [None, 0])
def test_the_same_bytes_each_time(tmp_path, threshold):
    made = [optimized(tmp_path / name, external_data_size_threshold=threshold).parent for name in ("a", "b")]
    assert contents(made[0]) == contents(made[1])


def test_stored_codes_are_those_of_the_plans_scales(tmp_path):
    path = optimized(tmp_path, recipe="fp8-amax")
    stored = tensors(path)
    weight = onnx.numpy_helper.to_array(next(t for t in model(TEXT).graph.initializer if t.name == "w_a"))
    scale = onnx.numpy_helper.to_array(stored["w_a_scale"])
    np.testing.assert_array_equal(scale, (np.abs(weight).max(axis=0) / np.float32(448)).astype(np.float32))
    codes = np.frombuffer(stored["w_a_fp8"].raw_data, ml_dtypes.float8_e4m3fn).reshape(64, 64)
    np.testing.assert_array_equal(codes, (weight / scale).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn))


def test_metadata_doc_strings_and_the_interface_are_kept(tmp_path):
    proto = model(TEXT)
    proto.doc_string, proto.producer_name, proto.model_version = "about", "me", 7
    proto.graph.doc_string = "graph"
    onnx.helper.set_model_props(proto, {"author": "me"})
    proto.graph.node[0].doc_string = "first"
    proto.graph.input[0].doc_string = "an input"
    fp8graph.optimize(proto, data=feeds(proto), output=tmp_path / "o.onnx")
    made = onnx.load(str(tmp_path / "o.onnx"))
    assert (made.doc_string, made.model_version, made.graph.doc_string) == ("about", 7, "graph")
    assert {"author": "me"}.items() <= {item.key: item.value for item in made.metadata_props}.items()
    assert made.graph.input[0].doc_string == "an input"
    assert [value.type for value in made.graph.output] == [value.type for value in proto.graph.output]
    assert next(node for node in made.graph.node if node.output[0] == "h").doc_string == "first"


CHILD = """
import json, sys
from pathlib import Path
import fp8graph
_, model, output, kind, path = sys.argv
done = fp8graph.optimize(model, output=output, **{kind: path})
status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with what the parent process had
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
print(json.dumps({"peak": peak, "planned": done.planned, "compared": done.comparison is not None}))
"""
LAYERS, SIZE = 11, 3200  # ten weights of 41 MB


def large(folder: Path, layers: int, size: int) -> Path:
    """A chain of products whose weights, `size` x `size` each, lie in one file beside it."""
    names = [f"h{i}" for i in range(layers)]
    nodes = [
        onnx.helper.make_node("MatMul", [b, f"w{i}"], [a])
        for i, (a, b) in enumerate(zip(names[1:], names, strict=False))
    ]
    value = [onnx.helper.make_tensor_value_info(name, 1, [1, size]) for name in (names[0], names[-1])]
    graph = onnx.helper.make_graph(nodes, "large", value[:1], value[1:])
    row = np.random.default_rng(0).standard_normal((1, size)).astype(np.float32) / np.float32(size**0.5)
    block = np.tile(row, (size, 1)).tobytes()
    with (folder / "w.bin").open("wb") as file:
        for i in range(layers - 1):
            tensor = graph.initializer.add(name=f"w{i}", data_type=1, dims=[size, size], data_location=1)
            for key, said in (("location", "w.bin"), ("offset", i * len(block)), ("length", len(block))):
                tensor.external_data.add(key=key, value=str(said))
            file.write(block)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 410 MB with ranges and data for it."""
    folder = tmp_path_factory.mktemp("heavy")
    stat = {"count": SIZE, "nonfinite": 0, "min": -4.0, "max": 4.0}
    ranges = {"schema": "fp8graph.ranges/1", "source": "", "data": "made up", "samples": 1, "shapes": {}}
    ranges["values"] = {f"h{i}": stat for i in range(LAYERS - 1)}
    (folder / "r.json").write_text(json.dumps(ranges))
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((2, 1, SIZE)).astype(np.float32))
    return large(folder, LAYERS, SIZE)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("kind", "file", "share"), [("ranges", "r.json", 0.6), pytest.param("data", "x.npy", 2.0, marks=pytest.mark.slow)]
)
def test_weights_stream_one_at_a_time(heavy, tmp_path, kind, file, share):
    """Peak memory, all imports included: 149 MB from ranges to file, 660 MB where both models are run to compare them
    (x86-64, Python 3.11, 2026-11)."""
    whole, out = (heavy.parent / "w.bin").stat().st_size, tmp_path / "m.onnx"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(heavy), str(out), kind, str(heavy.parent / file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert whole > 400e6 and (said["planned"], said["compared"]) == (LAYERS - 1, kind == "data")
    assert said["peak"] < share * whole, f"{said['peak'] / 1e6:.0f} MB at peak"
    assert out.with_name("m.onnx.data").stat().st_size < whole / 3.9
