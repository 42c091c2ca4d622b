"""A safetensors file that lies is refused in words, whatever it lies about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8graph
from fp8graph.base.errors import InputError
from fp8graph.importers.container import DTYPES, tensors_of
from tests.importers.making import entry, file_of, linear, write
from tests.small import contents, refused

GOOD = {"a": entry("F8_E4M3", [2, 4], 0, 8), "b": entry("F32", [], 8, 12)}
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short for a header"),
    "seven bytes": (b"\1" * 7, "too short for a header"),
    "header beyond the file": (b"\x10\x27" + bytes(6) + b"{}", "claims 10000 bytes, and 2 follow"),
    "header of 2^63": ((1 << 63).to_bytes(8, "little") + b"{}", "claims 9223372036854775808 bytes"),
    "header of 2^64-1": (b"\xff" * 8 + b"{}", "claims 18446744073709551615 bytes"),
    "no header": (bytes(8), "header is no JSON"),
    "no JSON": (file_of(b"{'a': 1"), "header is no JSON"),
    "NaN": (file_of(b'{"a": NaN}'), "NaN is no number of JSON"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "no UTF-8"),
    "a list": (file_of([1, 2]), "is a JSON list"),
    "nested": (file_of(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deep"),
    "a key twice": (file_of(b'{"a": 1, "a": 2}'), "duplicate key: 'a'"),
    "metadata of numbers": (file_of({"__metadata__": {"n": 1}}), "__metadata__"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": []}}, bytes(4)), "no dtype, shape and data_offsets of 'a'"),
    "unknown dtype": (file_of({"a": entry("F8_E9M9", [1], 0, 1)}, bytes(1)), "'F8_E9M9': did you mean 'F8_E"),
    "dtype of a list": (file_of({"a": {**GOOD["a"], "dtype": ["F32"]}}, bytes(8)), "dtype"),
    "negative size": (file_of({"a": entry("F32", [-1, -1], 0, 4)}, bytes(4)), "no list of sizes"),
    "size of true": (file_of({"a": entry("F32", [True], 0, 4)}, bytes(4)), "no list of sizes"),
    "wrapping product": (file_of({"a": entry("U8", [1 << 32, 1 << 32], 0, 0)}), "needs 18446744073709551616 bytes"),
    "shape too large": (file_of({"a": entry("U8", [1000, 1000], 0, 8)}, bytes(8)), "needs 1000000 bytes"),
    "half a byte": (file_of({"a": entry("F4", [3], 0, 2)}, bytes(2)), "does not fit its data"),
    "offsets of floats": (file_of({"a": {**GOOD["a"], "data_offsets": [0.0, 8.0]}}, bytes(8)), "two whole numbers"),
    "one offset": (file_of({"a": {**GOOD["a"], "data_offsets": [0]}}, bytes(8)), "two whole numbers"),
    "reversed": (file_of({"a": entry("U8", [8], 8, 0)}, bytes(8)), "do not run forward"),
    "negative offset": (file_of({"a": entry("U8", [8], -4, 4)}, bytes(8)), "do not run forward"),
    "overlap": (file_of({"a": GOOD["a"], "b": entry("U8", [8], 4, 12)}, bytes(12)), "overlap by 4 bytes"),
    "hole": (file_of({"a": GOOD["a"], "b": entry("U8", [4], 12, 16)}, bytes(16)), "a hole of 4 bytes"),
    "hole in front": (file_of({"a": entry("U8", [4], 4, 8)}, bytes(8)), "in front of 'a'"),
    "truncated": (file_of(GOOD, bytes(11)), "ends 1 bytes behind the file's end: truncated"),
    "trailing": (file_of(GOOD, bytes(14)), "2 trailing bytes"),
    "pickle": (b"\x80\4\x95" + bytes(20) + b".", "pickle"),
    "zip": (b"PK\3\4" + bytes(40), "pickle"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lying_file_is_refused_and_nothing_is_written(case: str, tmp_path: Path):
    content, says = LIES[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    before = contents(tmp_path)
    with refused(InputError, "FG115", str(path), says):
        fp8graph.import_plan(path, model=linear((2, 4)), output=tmp_path / "o.onnx", allow_unmatched="*")
    assert contents(tmp_path) == before


def test_every_dtype_is_read_with_its_size(tmp_path: Path):
    for dtype, (bits, kind) in DTYPES.items():
        path = tmp_path / dtype
        path.write_bytes(file_of({"a": entry(dtype, [8], 0, bits)}, bytes(bits)))
        found = tensors_of(path)["a"]
        assert (found.dtype, found.shape, found.end - found.begin) == (dtype, (8,), bits)
        if bits >= 8:
            assert found.read().dtype == np.dtype(kind)


def test_data_need_not_be_aligned_and_tensors_may_be_empty(tmp_path: Path):
    path = write(
        tmp_path / "f",
        {"a": ("U8", np.arange(3)), "b": ("F32", np.arange(6).reshape(2, 3)), "c": ("F32", np.zeros((0, 4)))},
    )
    found = tensors_of(path)
    assert found["b"].read().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["c"].read().shape == (0, 4)


def test_the_header_of_a_great_checkpoint_is_not_taken_for_a_pickle(tmp_path: Path):
    """A header of 0x280 bytes begins like a pickle of protocol 2."""
    pad = json.dumps({"__metadata__": {"x": ""}})
    header: dict[str, Any] = {"__metadata__": {"x": " " * (0x280 - len(pad))}}
    path = tmp_path / "f"
    path.write_bytes(file_of(header))
    assert path.read_bytes()[:2] == b"\x80\2"
    assert tensors_of(path) == {}
