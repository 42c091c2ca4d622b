"""`import` on the command line: its document, its files, its statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from fp8graph import import_plan
from fp8graph.base.errors import InputError
from tests.conftest import ROOT
from tests.importers.making import codes, entry, file_of, held, linear, write
from tests.small import contents, refused, sha

ONE = ("F32", np.float32(1))


def fp8graph(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fp8graph", *args]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """m.safetensors and the model of its architecture."""
    tensors = {"l.weight": ("F8_E4M3", codes((8, 16))), "l.weight_scale": ONE, "l.k_scale": ONE, "left": ONE}
    write(tmp_path / "m.safetensors", tensors)
    onnx.save(linear((8, 16)), tmp_path / "m.onnx")
    return tmp_path


CALL = ("import", "m.safetensors", "--model", "m.onnx", "-o", "o.onnx")


def test_the_document_says_what_was_done_and_what_is_left_over(folder: Path):
    done = fp8graph(folder, *CALL, "--allow-unmatched", "le*", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    weight = {"format": "e4m3fn", "granularity": "tensor", "initializer": "l.weight", "by": "name"}
    assert document["result"] == {
        "weights": {"l.weight": weight},
        "floats": 0,
        "rounded": [],
        "caches": {"l.k_scale": 1.0},
        "unmatched": {"checkpoint": ["left"], "model": []},
    }
    assert [(item["code"], item["op"]) for item in document["findings"]] == [("FG117", "left"), ("FG118", "l.k_scale")]
    size = (folder / "o.onnx").stat().st_size
    assert document["files"] == [{"path": "o.onnx", "sha256": sha(folder / "o.onnx"), "bytes": size}]


def test_people_read_a_table_and_the_same_call_gives_the_same_bytes(folder: Path):
    done = fp8graph(folder, *CALL, "--allow-unmatched", "left")
    assert done.returncode == 0
    for part in ("m.safetensors -> o.onnx", "e4m3fn   tensor", "found by   name 1", "no activation", "FG117"):
        assert part in done.stdout
    first = sha(folder / "o.onnx")
    assert fp8graph(folder, *CALL, "--allow-unmatched", "left").returncode == 2  # it exists
    assert fp8graph(folder, *CALL, "--allow-unmatched", "left", "--force").returncode == 0
    assert sha(folder / "o.onnx") == first


def test_what_is_left_over_is_status_3_and_leaves_nothing(folder: Path):
    before = contents(folder)
    done = fp8graph(folder, *CALL)
    assert done.returncode == 3
    assert "error[FG117]: 1 names of checkpoint and model found no counterpart" in done.stderr
    assert "--allow-unmatched 'left'" in done.stderr
    assert contents(folder) == before


def test_a_table_of_another_tool_becomes_a_plan(folder: Path):
    (folder / "calibration.json").write_text('{"x": [-3.5, 1.0]}')
    call = ("import", "calibration.json", "--model", "m.onnx", "-o", "p.json", "--target", "tensorrt-rtx:sm89")
    done = fp8graph(folder, *call)
    assert done.returncode == 0, done.stderr
    assert "scales of 1 activation are given" in done.stdout
    assert "optimize MODEL -o OUT --plan p.json" in done.stdout
    plan = json.loads((folder / "p.json").read_text())
    assert plan["target"] == "tensorrt-rtx:sm89"
    assert fp8graph(folder, "optimize", "m.onnx", "-o", "o.onnx", "--plan", "p.json").returncode == 0


def test_weights_can_lie_beside_the_model(folder: Path):
    call = (*CALL, "--allow-unmatched", "left", "--external-data-size-threshold", "64")
    assert fp8graph(folder, *call).returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "m.safetensors", "o.onnx", "o.onnx.data"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("import",), "import CHECKPOINT --model MODEL -o OUT.onnx"),
        (("import", "m.safetensors", "-o", "o.onnx"), "the model of its architecture"),
        (("import", "m.safetensors", "--model", "m.onnx"), "add -o OUT"),
        ((*CALL[:-1], "m.onnx"), "overwrite an input"),
        ((*CALL[:-1], "o.json"), "import writes no plan from this source"),
        ((*CALL, "--from", "qdq"), "import writes no model from this source"),
        ((*CALL, "--from", "trt"), "did you mean 'trt-cache'?"),
    ],
)
def test_a_wrong_call_is_status_2(folder: Path, args: tuple[str, ...], says: str):
    before = contents(folder)
    done = fp8graph(folder, *args)
    assert done.returncode == 2
    assert says in done.stderr
    assert contents(folder) == before


def index(folder: Path, shards: dict[str, str]) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": shards}))
    return path


SHARDS = {"l.weight": "a.safetensors", "l.weight_scale": "b.safetensors"}
BAD_FOLDERS = {
    "no file at all": ("FG115", "holds no .safetensors file"),
    "a pickle": ("FG115", "pickle"),
    "a missing shard": ("FG115", "the shard 'b.safetensors' is missing"),
    "a shard elsewhere": ("FG115", "leaves the checkpoint's folder"),
    "a shard with more": ("FG115", "holds 'more', which the index does not name"),
    "an index that is a list": ("FG115", "it is a JSON list"),
    "an index without a map": ("FG115", "'weight_map'"),
    "an index that is no JSON": ("FG115", "it is no JSON"),
    "two files with one name": ("FG115", "lies in a.safetensors and in b.safetensors"),
    "the second of two alone": ("FG115", "shard 2 of 3 is missing"),
    "two indices": ("FG115", "several indices"),
}


def spoil(case: str, folder: Path) -> None:
    a = write(folder / "a.safetensors", {"l.weight": ("F8_E4M3", codes((8, 16)))})
    b = write(folder / "b.safetensors", {"l.weight_scale": ONE})
    if case in ("no file at all", "a pickle"):
        a.unlink()
        b.unlink()
        if case == "a pickle":
            (folder / "pytorch_model.bin").write_bytes(b"PK\3\4")
    elif case == "a missing shard":
        b.unlink()
        index(folder, SHARDS)
    elif case == "a shard elsewhere":
        index(folder, SHARDS | {"l.weight": "../a.safetensors"})
    elif case == "a shard with more":
        write(b, {"l.weight_scale": ONE, "more": ONE})
        index(folder, SHARDS)
    elif case.startswith("an index"):
        text = {"is a list": "[]", "without a map": "{}", "is no JSON": "{"}
        index(folder, {}).write_text(next(value for key, value in text.items() if case.endswith(key)))
    elif case == "two files with one name":
        write(b, {"l.weight": ("F8_E4M3", codes((8, 16)))})
    elif case == "the second of two alone":
        a.rename(folder / "m-00001-of-00003.safetensors")
        b.rename(folder / "m-00003-of-00003.safetensors")
    elif case == "two indices":
        index(folder, SHARDS)
        (folder / "consolidated.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_is_no_checkpoint_is_refused(case: str, tmp_path: Path):
    folder = tmp_path / "c"
    folder.mkdir()
    spoil(case, folder)
    code, says = BAD_FOLDERS[case]
    before = contents(tmp_path)
    with refused(InputError, code, says):
        import_plan(folder, model=linear((8, 16)), output=tmp_path / "o.onnx")
    assert contents(tmp_path) == before


def test_a_folder_an_index_and_loose_shards_are_one_checkpoint(tmp_path: Path):
    spoil("", tmp_path)
    loose = import_plan(tmp_path, model=linear((8, 16))).model
    path = index(tmp_path, SHARDS)
    assert import_plan(path, model=linear((8, 16))).model == loose
    assert import_plan(tmp_path, model=linear((8, 16))).model == loose


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_a_great_checkpoint_is_streamed(tmp_path: Path):
    """256 MiB of codes, sparse on disk: memory holds some tensors, and not all."""
    size, count = 4096, 16
    header = {f"l{i}": entry("F8_E4M3", [size, size], i * size**2, (i + 1) * size**2) for i in range(count)}
    data = count * size**2
    header |= {f"l{i}_scale": entry("F32", [1], data + 4 * i, data + 4 * i + 4) for i in range(count)}
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(file_of(header))
        file.seek(data, 1)
        file.write(np.ones(count, np.float32).tobytes())
    nodes = "".join(f"h{i + 1} = MatMul(h{i}, l{i}) " for i in range(count))
    text = (
        f"<ir_version: 10, opset_import: ['' : 21]> g (float[1,{size}] h0) => (float[1,{size}] h{count}) {{ {nodes} }}"
    )
    proto = onnx.parser.parse_model(text.replace("'", '"'))
    (tmp_path / "w.bin").write_bytes(b"")
    with (tmp_path / "w.bin").open("r+b") as file:
        file.truncate(size * size * 4)
    for i in range(count):
        tensor = onnx.TensorProto(name=f"l{i}", dims=[size, size], data_type=1, data_location=1)
        for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(size * size * 4))):
            tensor.external_data.add(key=key, value=value)
        proto.graph.initializer.append(tensor)
    onnx.save(proto, tmp_path / "m.onnx")
    # Anonymous memory: pages of mapped files count to a process as long as the machine has room for them.
    code = """
import re, threading, time
from pathlib import Path
import fp8graph
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
fp8graph.import_plan("m.safetensors", model="m.onnx", output="o.onnx")
done.set()
thread.join()
print(peak)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 352 * 1024, done.stdout  # KiB; 257 MiB, and 16 more for each of the 16 tensors that stays
    assert (tmp_path / "o.onnx.data").stat().st_size >= data


def test_transformer_engines_scales_are_taken_out_by_the_sample(tmp_path: Path):
    """The arithmetic of the script, without torch: columns are input, weight, output of each GEMM."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("te", ROOT / "samples" / "transformer_engine_scales.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    history = np.float32([[1, 2, 9, 4, 0, 9], [3, 1, 9, 8, 0, 9]])
    state = {"amax_history_fwd": history, "scale_fwd": np.float32([100, 200, 1, 50, 1, 1])}
    found = script.scales_of(state, {"m.fc1_weight", "m.fc2_weight"}, "m.")
    assert {name: array.tolist() for name, array in found.items()} == {
        "m.fc1_weight_activation_amax_history": [1, 3],
        "m.fc1_weight_activation_scale": [np.float32(0.01)],
        "m.fc1_weight_amax_history": [2, 1],
        "m.fc1_weight_scale": [np.float32(0.005)],
        "m.fc2_weight_activation_amax_history": [4, 8],
        "m.fc2_weight_activation_scale": [np.float32(0.02)],
    }
    weights = {"m.fc1_weight": np.ones((8, 16), np.float32), "m.fc2_weight": np.ones((8, 16), np.float32)}
    save_file(weights | found, tmp_path / "te.safetensors")
    assert "m.fc1_weight_scale" in load_file(tmp_path / "te.safetensors")
    onnx.save(linear((8, 16), name="m.fc1_weight"), tmp_path / "m.onnx")
    call = ("import", "te.safetensors", "--model", "m.onnx", "-o", "o.onnx", "--allow-unmatched", "m.fc2_weight")
    done = fp8graph(tmp_path, *call)
    assert done.returncode == 0, done.stderr
    scales = held(onnx.load(tmp_path / "o.onnx"))
    assert {float(array) for array in scales.values()} == {float(np.float32(0.005)), float(np.float32(0.01))}
