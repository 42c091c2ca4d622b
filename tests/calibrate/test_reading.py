"""Files of samples: plain arrays are read, everything else is refused, and nothing in them is ever run."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import Fp8GraphError, InputError
from fp8graph.base.findings import Notes
from fp8graph.calibrate.readers import npz
from fp8graph.calibrate.samples import open_samples
from tests.small import model, refused

WORK = ir.from_proto(model("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }"))
TWO = ir.from_proto(model("(float[n,3] x, float[n,3] z) => (float[n,3] y) { y = Add(x, z) }"))
ARRAY = np.arange(15, dtype=np.float32).reshape(5, 3)


def count(data: Any, work: ir.Model = WORK) -> int:
    return sum(1 for _ in open_samples(data, work, Notes()))


def npy(array: np.ndarray[Any, Any], **how: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **how)
    return buffer.getvalue()


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_files_and_folders_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=ARRAY)
    np.savez_compressed(tmp_path / "b.npz", x=ARRAY[:2])
    np.save(tmp_path / "c.npy", ARRAY)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "x.npy", ARRAY[:3])
    many = tmp_path / "many"
    many.mkdir()
    for index in range(3):
        np.savez(many / f"{index}.npz", x=ARRAY[: index + 1])
    for data, wanted in (("a.npz", 5), ("b.npz", 2), ("c.npy", 5), ("folder", 3), ("many", 6)):
        assert count(tmp_path / data) == count(str(tmp_path / data)) == wanted
    assert count([tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "many"]) == 13


def test_files_of_a_folder_are_read_in_the_order_of_their_names_and_may_differ_in_shape(tmp_path):
    for name, rows in (("b", 2), ("a", 1), ("c", 4)):
        np.savez(tmp_path / f"{name}.npz", x=np.full((1, rows, 3), rows, np.float32))
    (tmp_path / "README.txt").write_text("about")
    assert [feed["x"].shape for feed in open_samples(tmp_path, WORK, Notes())] == [(1, 3), (2, 3), (4, 3)]


def test_a_folder_holds_one_array_for_each_input(tmp_path):
    np.save(tmp_path / "x.npy", ARRAY)
    with refused(InputError, "FG107", "lacks the input 'z'"):
        count(tmp_path, TWO)
    np.save(tmp_path / "z.npy", ARRAY)
    assert count(tmp_path, TWO) == 5
    np.savez(tmp_path / "more.npz", x=ARRAY)
    with refused(InputError, "FG108", "either one NAME.npy per input, or .npz"):
        count(tmp_path, TWO)
    (tmp_path / "empty").mkdir()
    with refused(InputError, "FG108", "empty"):
        count(tmp_path / "empty")


def test_an_npy_file_fits_a_model_with_one_input(tmp_path):
    np.save(tmp_path / "x.npy", ARRAY)
    with refused(InputError, "FG107", "one input", "this one has 2"):
        count(tmp_path / "x.npy", TWO)


def test_arrays_in_fortran_order_and_other_byte_orders_are_read_as_they_are_meant(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(ARRAY.astype(">f4")))
    found = np.concatenate([feed["x"] for feed in open_samples(tmp_path / "a.npz", WORK, Notes())])
    np.testing.assert_array_equal(found, ARRAY)


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["npz", "npy", "folder"])
def test_pickled_arrays_are_refused_and_never_opened(tmp_path, kind):
    marker = tmp_path / "was here"
    content = npy(np.array([Trap(marker)], object), allow_pickle=True)
    path = tmp_path / ("data" if kind == "folder" else f"data.{kind}")
    if kind == "npz":
        archive(path, {"x.npy": content})
    else:
        path.mkdir() if kind == "folder" else None
        (path / "x.npy" if kind == "folder" else path).write_bytes(content)
    with refused(InputError, "FG108", "pickled objects"):
        count(path)
    assert not marker.exists()


def header(shape: str, descr: str = "'<f4'", order: str = "False") -> bytes:
    """An array file whose header says whatever it likes; 12 bytes of data follow."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + b"\0" * 12


LIES = {
    "a shape beyond the file": header("(5, 3)"),
    "a shape beyond memory": header("(1099511627776, 1099511627776)"),
    "a negative dimension": header("(-1, 3)"),
    "two negative dimensions": header("(-1, -3)"),
    "dimensions that are none": header("(1.5, 3)"),
    "a dimension that is a truth": header("(True, 3)"),
    "no tuple": header("3"),
    "an unknown type": header("(1, 3)", "'<q9'"),
    "a structured type": header("(1,)", "[('a', '<f4'), ('b', '<f8')]"),
    "an object inside a structure": header("(1,)", "[('a', 'O')]"),
    "a type of no bytes": header("(5, 3)", "'V0'"),
    "code for a type": header("(1, 3)", "__import__('os').getcwd()"),
    "no order": header("(1, 3)", order="2"),
    "no dictionary": b"\x93NUMPY\1\0\x02\0{}" + b"\0" * 12,
    "an open string": b"\x93NUMPY\1\0\x08\0{'descr" + b"\0" * 24,
    "an open bracket": b"\x93NUMPY\1\0\x04\0((((" + b"\0" * 24,
    "a header longer than the file": b"\x93NUMPY\1\0\xff\xff{",
    "version 9": b"\x93NUMPY\x09\0" + b"\0" * 64,
    "no magic": b"NUMPY" * 10,
    "nothing": b"",
    "half a magic": b"\x93NUM",
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("inside", ["npz", "npy"])
def test_a_header_that_lies_is_refused(tmp_path, lie, inside):
    path = tmp_path / f"data.{inside}"
    if inside == "npz":
        archive(path, {"x.npy": LIES[lie]})
    else:
        path.write_bytes(LIES[lie])
    with pytest.raises(InputError) as raised:
        count(path)
    assert raised.value.code in ("FG107", "FG108") and path.name in raised.value.where
    assert "claims shape" in raised.value.why or lie != "a shape beyond memory"


def test_a_name_that_stands_there_twice_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", npy(ARRAY))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x.npy", npy(ARRAY * 2))
    with refused(InputError, "FG108", "one name twice"):
        count(path)


@pytest.mark.parametrize("name", ["x", "x.txt", "x.npy.exe", "folder/"])
def test_what_is_no_array_in_an_archive_is_refused(tmp_path, name):
    with refused(InputError, "FG108", "no array"):
        count(archive(tmp_path / "data.npz", {name: npy(ARRAY)}))


def test_a_path_in_an_archive_is_a_name_and_leads_nowhere(tmp_path):
    (tmp_path / "in").mkdir()
    with refused(InputError, "FG107", "'../../x'"):
        count(archive(tmp_path / "in" / "data.npz", {"../../x.npy": npy(ARRAY)}))


def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_refused(tmp_path):
    content = header("(100000000, 3)")[:-12] + b"\0" * (1 << 20)
    path = archive(tmp_path / "data.npz", {"x.npy": content}, zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"PK\1\2") + 24  # the size that the directory claims
    raw[at : at + 4] = (1_200_000_128).to_bytes(4, "little")
    path.write_bytes(raw)
    with refused(InputError, "FG108", "too large for this file"):
        count(path)


def test_an_archive_under_a_password_is_refused(tmp_path):
    path = archive(tmp_path / "data.npz", {"x.npy": npy(ARRAY)})
    raw = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        raw[raw.find(magic) + offset] |= 1
    path.write_bytes(raw)
    with refused(InputError, "FG108", "encrypted"):
        count(path)


def test_an_archive_cut_anywhere_is_refused(tmp_path):
    whole = archive(tmp_path / "whole.npz", {"x.npy": npy(ARRAY)}).read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with refused(InputError, "FG108", "cut.npz"):
            count(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_bytes_are_refused_or_change_nothing(tmp_path, compression):
    whole = archive(tmp_path / "whole.npz", {"x.npy": npy(ARRAY)}, compression).read_bytes()
    dice, path, refusals = random.Random(5), tmp_path / "hurt.npz", 0
    for _ in range(400):
        hurt = bytearray(whole)
        for _ in range(dice.randrange(1, 4)):
            hurt[dice.randrange(len(hurt))] = dice.randrange(256)
        path.write_bytes(hurt)
        try:
            arrays = npz.load(path)
        except Fp8GraphError:
            refusals += 1
        else:
            assert list(arrays) != ["x"] or np.array_equal(arrays["x"], ARRAY)
    assert refusals > 200


def test_damaged_arrays_are_refused_or_read_as_arrays(tmp_path):
    whole, path = npy(ARRAY), tmp_path / "hurt.npy"
    dice = random.Random(6)
    for _ in range(600):
        hurt = bytearray(whole)
        for _ in range(dice.randrange(1, 3)):
            hurt[dice.randrange(128)] = dice.choice(b"0123456789'(){}<>|,. \xff\n#\\")
        path.write_bytes(hurt)
        try:
            array = npz.load_npy(path)
        except Fp8GraphError:
            continue
        assert array.dtype.hasobject is False and array.nbytes <= len(whole)


@pytest.mark.parametrize("name", ["none.npz", "none.npy", "none", "none/deeper"])
def test_data_that_is_not_there_is_refused(tmp_path, name):
    with refused(InputError, "FG108", "does not exist", "none"):
        count(tmp_path / name)


@pytest.mark.parametrize(("name", "content"), [("a.npz", b"text"), ("a.txt", b"1 2 3"), ("a.json", b"{}"), ("a", b"")])
def test_a_file_of_another_kind_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with refused(InputError, "FG108", name):
        count(tmp_path / name)


def test_a_label_says_where_data_came_from_and_no_path_of_this_machine(tmp_path):
    np.savez(tmp_path / "a.npz", x=ARRAY)
    np.savez(tmp_path / "b.npz", x=ARRAY)
    assert open_samples([tmp_path / "a.npz", tmp_path / "b.npz"], WORK, Notes()).label == "a.npz, b.npz"
    label = open_samples({"x": ARRAY}, WORK, Notes()).label
    assert label == open_samples({"x": ARRAY.copy()}, WORK, Notes()).label
    assert label != open_samples({"x": ARRAY + 1}, WORK, Notes()).label


def test_the_sample_data_is_read(calibration, digits):
    work = fp8graph.graph.load.load(digits / "cnn.onnx").model
    assert count(calibration, work) == 256
