"""The bad inputs of ../shared/bench/hard/bad: who refuses each and in which words, written down beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph import InputError, UsageError
from tests.conftest import SHARED
from tests.hard.judging import fp8_products, left_behind, outputs, session, sqnr
from tests.small import contents

MAKE = SHARED / "bench" / "hard" / "make_bad.py"
Refusal = tuple[type[fp8graph.Fp8GraphError], str, str]


def model(*says: str, code: str = "FG106") -> tuple[Refusal, tuple[str, ...]]:
    """A model that is refused."""
    return (InputError, code, "model.onnx"), says


def data(*says: str, code: str = "FG108") -> tuple[Refusal, tuple[str, ...]]:
    """Calibration data that is refused: FG108 cannot be read, FG107 does not fit the model."""
    return (InputError, code, "calib.npz"), says


def call(*says: str, code: str) -> tuple[Refusal, tuple[str, ...]]:
    """A call that is wrong."""
    return (UsageError, code, ""), says


# Class, code and what `where` names; then what the message says beside it. What is sound is optimised: None.
CASES: dict[str, tuple[Refusal, tuple[str, ...]] | None] = {
    "control_good": None,
    "model_missing": model("does not exist"),
    "model_directory": model("it is a folder"),
    "model_empty": model("it is empty"),
    "model_truncated": model("does not parse", "truncated"),
    "model_text": model("does not parse", "not an ONNX model"),
    "model_zip": model("a zip archive"),
    "model_pickle": model("a pickle, which is never opened"),
    "model_no_graph": model("holds no graph"),
    "model_no_opset": model("imports no opset"),
    "model_ir_99": model("IR version 99 is not known"),
    "model_opset_999": model("opset 999 is not known"),
    "model_unreadable": model("Permission denied"),
    "graph_unknown_op": model("Frobnicate", "--custom-ops", code="FG133"),
    "graph_cycle": model("cycle", "'s' (Add)"),
    "graph_self_loop": model("depends on itself", "'n1' (Relu)"),
    "graph_duplicate_output": model("writes 'h'", "SSA"),
    "graph_output_is_input": model("writes 'x'", "already a graph input"),
    "graph_missing_input": model("reads 'ghost'"),
    "graph_output_unproduced": model("'nothing' is produced by nothing"),
    "graph_duplicate_initialiser": model("'W0'", "duplicate"),
    "graph_duplicate_node_names": None,
    "graph_shadowed_initialiser": model("'W0'", "shadows"),
    "graph_function_recursion": model("'my::F' calls itself"),
    "graph_nested_if_64": model("nested deeper"),
    "tensor_too_few_bytes": model("tensor 'W0'", "1024 bytes, it has 1000"),
    "tensor_too_many_bytes": model("tensor 'W0'", "1024 bytes, it has 1048"),
    "tensor_no_data": model("tensor 'W0'", "1024 bytes, it has 0"),
    "tensor_both_fields": model("tensor 'W0'", "holds its data twice"),
    "tensor_negative_dim": model("tensor 'W0'", "negative"),
    "tensor_dims_overflow": model("tensor 'W0'", "ask for 18889465931478580854784 bytes"),
    "tensor_huge_dims": model("tensor 'W0'", "ask for 4398046511104 bytes"),
    "tensor_dtype_undefined": model("tensor 'W0'", "data type 0"),
    "tensor_dtype_unknown": model("tensor 'W0'", "data type 999"),
    "shape_weight_disagrees": model("n2", "Incompatible dimensions", code="FG133"),
    "shape_output_disagrees": None,
    "shape_value_info_disagrees": model("output arg (h)", "does not match", code="FG133"),
    "shape_input_type_missing": data("'x'", "no tensor", code="FG107"),
    "ext_missing": model("'W0'", "'w.bin' is not there", code="FG104"),
    "ext_short": model("'W0'", "'w.bin' has 924", code="FG104"),
    "ext_dotdot": model("'../outside.bin' leads outside", code="FG104"),
    "ext_dotdot_inside": None,
    "ext_absolute": model("'/etc/passwd' leads outside", code="FG104"),
    "ext_symlink_out": model("'w.bin' leads outside", "through a link", code="FG104"),
    "ext_symlink_dir_out": model("'sub/w.bin' leads outside", "through a link", code="FG104"),
    "ext_symlink_inside": None,
    "ext_hardlink": model("'w.bin' has several hard links", code="FG104"),
    "ext_offset_beyond": model("'W0'", "offset", "'w.bin' has 1024", code="FG104"),
    "ext_offset_negative": model("'W0'", "offset -1024", "negative", code="FG104"),
    "ext_offset_text": model("'W0'", "offset", "no number", code="FG104"),
    "ext_length_negative": model("'W0'", "length -1", code="FG104"),
    "ext_length_huge": model("'W0'", "length is 1000000000000000000", code="FG104"),
    "ext_length_short": model("'W0'", "length is 512 bytes", "1024", code="FG104"),
    "ext_location_empty": model("'W0'", "location is empty", code="FG104"),
    "ext_location_absent": model("'W0'", "location is empty", code="FG104"),
    "ext_location_directory": model("'w.bin' is a folder", code="FG104"),
    "ext_location_model": model("'W0'", "length is 512", code="FG104"),
    "ext_nul_name": model("'W0'", "null character", code="FG104"),
    "ext_key_injection": model("'W0'", "a key", "twice", code="FG104"),
    "ext_raw_and_external": model("'W0'", "data of its own", code="FG104"),
    "ext_zero_length": None,
    "calib_missing": data("does not exist"),
    "calib_directory": data("a folder holds either"),
    "calib_empty_file": data("it is empty"),
    "calib_text": data("not a zip"),
    "calib_truncated": data("truncated"),
    "calib_is_npy": data("single array", ".npy"),
    "calib_bad_crc": data("CRC", "x.npy"),
    "calib_no_arrays": data("lacks the input 'x'", code="FG107"),
    "calib_wrong_name": data("array 'input'", "known: x", code="FG107"),
    "calib_extra_name": data("array 'z'", code="FG107"),
    "calib_wrong_shape": data("'x' has the wrong shape", "2x16", "2x15", code="FG107"),
    "calib_wrong_rank": data("'x' has rank 1", code="FG107"),
    "calib_scalar": data("'x' has rank 0", code="FG107"),
    "calib_dtype_float64": data("'x' has type float64", "astype('float32')", code="FG107"),
    "calib_dtype_int": data("'x' has type int32", code="FG107"),
    "calib_dtype_string": data("'x' has type <U3", code="FG107"),
    "calib_dtype_complex": data("'x' has type complex64", code="FG107"),
    "calib_big_endian": None,
    "calib_fortran_order": None,
    "calib_nan": data("'x' holds a NaN", "sample 2", code="FG107"),
    "calib_all_nan": data("'x' holds a NaN", "sample 0", code="FG107"),
    "calib_inf": data("infinity", "sample 2", code="FG107"),
    "calib_overflow": ((InputError, "FG107", "output 'y'"), ("the model itself overflows",)),
    "calib_zero_samples": data("no sample", code="FG107"),
    "calib_pickled_object": data("pickled objects, which are never opened"),
    "calib_mismatched_counts": data("x: 4, x2: 3", code="FG107"),
    "calib_missing_input": data("lacks the input 'x2'", code="FG107"),
    "calib_claims_10gb": data("the file is too short"),
    "calib_zip_claims_4gb": data("claims a size of 4026531840 bytes"),
    "calib_deflate_bomb_1gb": data("claims a size of 1073741952 bytes"),
    "calib_duplicate_key": data("one name twice"),
    "calib_path_key": data("'../evil'", code="FG107"),
    "calib_header_code": data("the header of an array"),
    "calib_npy_version_9": data("version (9, 9)"),
    "calib_negative_shape": data("(-4, 2, 16)"),
    "calib_ids_out_of_range": model("sample 0", "Gather", "out of data bounds", code="FG133"),
    "out_is_input": call("overwrite an input", code="FG103"),
    "out_is_calib": call("overwrite an input", code="FG103"),
    "out_is_directory": call("the output is a folder", code="FG102"),
    "out_parent_missing": call("does not exist", "mkdir -p", code="FG112"),
}
OUTPUTS = {
    "out_is_input": "model.onnx",
    "out_is_calib": "calib.npz",
    "out_is_directory": "../out",
    "out_parent_missing": "../out/no/such/OUT.onnx",
}
# FP8 checkpoints are read by a later version.
CHECKPOINTS = 28
pytestmark = pytest.mark.shared


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, those that no checkout can hold (links, modes, a bomb) included."""
    folder = tmp_path_factory.mktemp("bad") / "cases"
    subprocess.run(
        [sys.executable, "-W", "ignore", str(MAKE), str(folder)], check=True, stdout=subprocess.DEVNULL, timeout=300
    )
    return folder


@pytest.fixture
def place(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a case is run: `out`, `here` (the working directory) and `temporary`, all of them empty."""
    for name in ("out", "here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def output(name: str, case: Path, place: Path) -> Path:
    """The output that is asked for: OUT.onnx in an empty folder but for the cases about outputs."""
    asked = OUTPUTS.get(name, "../out/OUT.onnx")
    return place / asked.removeprefix("../") if asked.startswith("../") else case / asked


def state(folder: Path) -> dict[str, str]:
    """Digests of all files that can be read, and where links lead."""
    links = {path.name: str(path.readlink()) for path in folder.rglob("*") if path.is_symlink()}
    return {**contents(folder), **links} if os.geteuid() == 0 else links


def test_every_case_has_a_row(corpus):
    folders = {path.name for path in corpus.iterdir() if path.is_dir() and (path / "calib.npz").exists()}
    models = {name for name in folders if not name.startswith("st_")} | {"calib_missing"}
    assert models <= CASES.keys() and len(CASES) + CHECKPOINTS == 129
    assert [name for name in CASES if not (corpus / name).is_dir()] == []


@pytest.mark.parametrize("name", [name for name, row in CASES.items() if row is not None])
def test_each_is_refused_in_words_and_leaves_nothing(name, corpus, place):
    if name == "model_unreadable" and os.geteuid() == 0:
        pytest.skip("root can read anything")
    case, row = corpus / name, CASES[name]
    assert row is not None
    (kind, code, where), says = row
    before = state(case)
    with pytest.raises(fp8graph.Fp8GraphError) as raised:
        fp8graph.optimize(case / "model.onnx", data=case / "calib.npz", output=output(name, case, place))
    error = raised.value
    assert (type(error), error.code) == (kind, code), str(error)
    assert error.what and error.do and where in error.where, str(error)
    text = str(error).replace(str(case), "").replace(str(place), "")  # names of folders must not say it for us
    assert [part for part in says if part not in text] == [], text
    assert state(case) == before
    assert left_behind(place) == ["here", "out", "temporary"]


@pytest.mark.parametrize("name", [name for name, row in CASES.items() if row is None])
def test_what_is_sound_is_optimised(name, corpus, place):
    case, out = corpus / name, place / "out" / "OUT.onnx"
    before = contents(case)
    fp8graph.optimize(case / "model.onnx", data=case / "calib.npz", output=out)
    assert len(fp8_products(onnx.load(str(out)))) == 2
    assert contents(case) == before
    assert left_behind(place / "here") == left_behind(place / "temporary") == []
    feeds = [{"x": np.load(corpus / "control_good" / "calib.npz")["x"][0]}]
    made = outputs(session(str(out)), feeds)
    if name not in ("graph_duplicate_node_names", "ext_zero_length"):  # those two ONNX Runtime itself does not load
        assert sqnr(outputs(session(str(case / "model.onnx")), feeds)["y"], made["y"]) > 20


# Status, and what the command's own words name.
COMMANDS = [
    ("control_good", 0, "OUT.onnx"),
    ("model_truncated", 3, "truncated"),
    ("model_pickle", 3, "pickle"),
    ("tensor_huge_dims", 3, "W0"),
    ("calib_claims_10gb", 3, "too short"),
    ("calib_deflate_bomb_1gb", 3, "claims a size"),
    ("calib_pickled_object", 3, "pickled"),
    ("out_is_input", 2, "overwrite"),
]


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory of a child is told by POSIX only")
@pytest.mark.parametrize(("name", "status", "says"), COMMANDS, ids=[row[0] for row in COMMANDS])
def test_the_command_says_the_same_in_little_memory(name, status, says, corpus, place):
    case = corpus / name
    argv = [sys.executable, "-m", "fp8graph", "optimize", str(case / "model.onnx"), "--data", str(case / "calib.npz")]
    argv += ["-o", str(output(name, case, place))]
    environment = {**os.environ, "TMPDIR": str(place / "temporary")}
    with (place / "words").open("w") as words:
        child = subprocess.Popen(argv, stdout=words, stderr=subprocess.STDOUT, cwd=place / "here", env=environment)
        _, found, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(found)
    text = (place / "words").read_text(encoding="utf-8")
    assert child.returncode == status and says in text and "Traceback" not in text, text
    assert left_behind(place / "here") == left_behind(place / "temporary") == []
    assert used.ru_maxrss < 1_000_000  # kB; the bombs are 1 GiB and more
    if status:
        assert left_behind(place / "out") == []
