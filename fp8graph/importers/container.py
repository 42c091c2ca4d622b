"""One safetensors file: its header is held to the whole format before a byte of data is believed.

    8 bytes   length n of the header, little endian
    n bytes   JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}}, "__metadata__" of texts
    the rest  data, which the tensors cover without holes and overlaps

Source: huggingface/safetensors 0.8.0, README "Format" and `tensor.rs` (validate). The data is mapped, not read whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fp8graph.base.errors import InputError
from fp8graph.base.names import did_you_mean

_PICKLED = (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
# dtype -> bits of an element, and what numpy reads it as; types below a byte and FNUZ FP8 are read as bytes.
DTYPES: Mapping[str, tuple[int, Any]] = {
    "BOOL": (8, np.bool_), "U8": (8, np.uint8), "I8": (8, np.int8),
    "F8_E4M3": (8, np.uint8), "F8_E5M2": (8, np.uint8), "F8_E8M0": (8, np.uint8),
    "F8_E4M3FNUZ": (8, np.uint8), "F8_E5M2FNUZ": (8, np.uint8),
    "F4": (4, np.uint8), "F6_E2M3": (6, np.uint8), "F6_E3M2": (6, np.uint8),
    "I16": (16, np.int16), "U16": (16, np.uint16), "F16": (16, np.float16), "BF16": (16, ml_dtypes.bfloat16),
    "I32": (32, np.int32), "U32": (32, np.uint32), "F32": (32, np.float32),
    "I64": (64, np.int64), "U64": (64, np.uint64), "F64": (64, np.float64), "C64": (64, np.complex64),
}  # fmt: skip
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file, unread: `dtype` as safetensors spells it, `begin` and `end` are bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    path: Path

    @property
    def where(self) -> str:
        """What an error says of the place."""
        return f"{self.path}, tensor '{self.name}'"

    def read(self) -> NDArray[Any]:
        """A view of the mapped file in the tensor's shape; FP8 and E8M0 as uint8 codes. Not for types below a byte."""
        kind = np.dtype(DTYPES[self.dtype][1])
        if self.begin == self.end:
            return np.zeros(self.shape, kind)
        data = np.memmap(self.path, np.uint8, "r", self.begin, (self.end - self.begin,))
        array: NDArray[Any] = np.asarray(data).view(kind).reshape(self.shape)
        return array


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by name. Raises InputError FG115 for whatever breaks the format."""
    header, data = _header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(text, str) for text in metadata.values()):
        _refuse(path, "its header's __metadata__ holds something that is no text")
    found = {name: _tensor(path, name, said, data) for name, said in header.items()}
    _covered(path, sorted(found.values(), key=lambda item: (item.begin, item.end)), data)
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header and the first byte of the data."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            text = file.read(length) if 8 + length <= size and length <= _LARGEST_HEADER else b""
    except OSError as error:
        _refuse(path, error.strerror or str(error), "check the path and its permissions")
    if size < 8:
        _refuse(path, f"it is too short for a header: {size} bytes, and 8 hold the header's length")
    if 8 + length > size and (first[:4] == b"PK\3\4" or first[:2] in _PICKLED):
        raise pickled(path)
    if 8 + length > size:
        _refuse(path, f"its header claims {length} bytes, and {size - 8} follow: no safetensors file, or truncated")
    if length > _LARGEST_HEADER:
        _refuse(path, f"its header claims {length} bytes, and {_LARGEST_HEADER} are read at most")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        _refuse(path, f"its header is no UTF-8 text: {error.reason}")
    except RecursionError:
        _refuse(path, "the JSON of its header is nested too deep")
    except _DuplicateError as error:
        _refuse(path, f"its header has a duplicate key: '{error}' stands there twice")
    except ValueError as error:
        _refuse(path, f"its header is no JSON: {error}")
    if not isinstance(header, dict):
        _refuse(path, f"its header is a JSON {type(header).__name__}, and no table of tensors")
    return header, 8 + length


class _DuplicateError(Exception):
    """A key that stands twice in one JSON object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _DuplicateError(name)
        found[name] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _tensor(path: Path, name: str, said: Any, data: int) -> Tensor:
    """One line of the header. Products of sizes are Python's integers and do not wrap."""
    if not isinstance(said, dict) or not {"dtype", "shape", "data_offsets"} <= said.keys():
        _refuse(path, f"its header says no dtype, shape and data_offsets of '{name}'")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _refuse(path, f"'{name}' has the dtype {dtype!r:.40}: {did_you_mean(str(dtype), DTYPES)}")
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape) or len(shape) > 64:
        _refuse(path, f"'{name}' has a shape that is no list of sizes: {shape!r:.80}")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(at) is not int for at in offsets):
        _refuse(path, f"the data offsets of '{name}' are not two whole numbers: {offsets!r:.80}")
    begin, end = offsets
    if not 0 <= begin <= end:
        _refuse(path, f"the data offsets of '{name}' do not run forward from 0: {begin} to {end}")
    bits = DTYPES[dtype][0]
    for size in shape:
        bits *= size
    if bits % 8 or bits // 8 != end - begin:
        need = f"{dtype}{shape} needs {bits // 8} bytes"
        _refuse(path, f"the shape of '{name}' does not fit its data: {need:.200}, its offsets give {end - begin}")
    return Tensor(name, dtype, tuple(shape), data + begin, data + end, path)


def _covered(path: Path, tensors: list[Tensor], data: int) -> None:
    """The tensors follow each other from the first byte of the data to the last."""
    size = path.stat().st_size
    at = tensors[0].begin if tensors else data
    if at != data:
        _refuse(path, f"a hole of {at - data} bytes lies in front of '{tensors[0].name}': offsets must cover the data")
    for before, after in pairwise(tensors):
        if after.begin < before.end:
            both = f"'{before.name}' and '{after.name}'"
            _refuse(path, f"{both} overlap by {before.end - after.begin} bytes: their offsets lie")
        if after.begin > before.end:
            gap = f"{after.begin - before.end} bytes between '{before.name}' and '{after.name}'"
            _refuse(path, f"a hole of {gap}: offsets must cover the data")
    end = tensors[-1].end if tensors else data
    if end > size:
        why = f"the data of '{tensors[-1].name}' ends {end - size} bytes behind the file's end: truncated"
        _refuse(path, why, "download or copy the file again")
    if end < size:
        _refuse(path, f"{size - end} trailing bytes follow the last tensor: its offsets do not cover the data")


def pickled(path: Path) -> InputError:
    """The refusal of a file that torch has pickled."""
    return InputError(
        "the checkpoint is a pickle, which is never opened",
        where=str(path),
        why="opening a pickle can run code",
        do="save it as safetensors where torch is: safetensors.torch.save_file(state_dict, 'model.safetensors'); with "
        "scales of Transformer Engine (_extra_state): python samples/transformer_engine_scales.py "
        f"{path} model.safetensors",
        code="FG115",
    )


def _refuse(path: Path, why: str, do: str = "download the checkpoint again, or write it anew") -> NoReturn:
    raise InputError("the checkpoint cannot be read", where=str(path), why=why, do=do, code="FG115")
