"""Arrays from .npz and .npy files; pickles are never opened, and a header is believed only as far as the file goes."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from fp8graph.base.errors import InputError
from fp8graph.calibrate.readers.arrays import Array

# What unpacks to more than this is taken for a bomb where it is packed tighter than real data ever is.
_LIMIT = 1 << 28
_RATIO = 200


def load(path: Path) -> dict[str, Array]:
    """All arrays of an .npz file by name. Raises InputError FG108 for anything that is none."""
    return archive(path, path)


def archive(file: Path | IO[bytes], path: Path) -> dict[str, Array]:
    """All arrays of an archive by name; errors name `path`. Raises InputError FG108 for anything that is none."""
    try:
        with zipfile.ZipFile(file) as opened:
            names = opened.namelist()
            if len(set(names)) != len(names):
                raise _unreadable(path, "it holds one name twice")
            arrays = {}
            for info in opened.infolist():
                if not info.filename.endswith(".npy"):
                    raise _unreadable(path, f"it holds '{info.filename}', which is no array")
                if info.file_size > _LIMIT and info.file_size > _RATIO * info.compress_size:
                    raise _unreadable(
                        path, f"'{info.filename}' claims a size of {info.file_size} bytes: too large for this file"
                    )
                with opened.open(info) as member:
                    arrays[info.filename.removesuffix(".npy")] = _array(member, info.file_size, path)
            return arrays
    except (InputError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types on damaged files
        raise _unreadable(path, _no_archive(path) or str(error) or "it is no archive of arrays") from error


def from_bytes(data: bytes, path: Path) -> Array:
    """The array of the bytes of an .npy file. Raises InputError FG108 for anything that is none."""
    try:
        return _array(io.BytesIO(data), len(data), path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # numpy raises many types on damaged files
        raise _unreadable(path, str(error) or "it is no array") from error


def _no_archive(path: Path) -> str:
    """What a file is that is no .npz, as far as its first bytes tell; empty where they tell nothing."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        begin = file.read(6)
    if not begin:
        return "it is empty"
    if begin == b"\x93NUMPY":
        return "it is a single array, which is called .npy"
    return "" if begin[:2] != b"PK" or zipfile.is_zipfile(path) else "the archive is truncated"


def load_npy(path: Path) -> Array:
    """The array of an .npy file. Raises InputError FG108 for anything that is none."""
    try:
        with path.open("rb") as file:
            return _array(file, path.stat().st_size, path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # numpy raises many types on damaged files, TokenError for one
        raise _unreadable(path, str(error) or "it is no array") from error


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of an .npz or .npy file (of that: by the file's name), from their headers alone."""
    if path.suffix == ".npy":
        with path.open("rb") as file:
            return {path.stem: _header(file, path.stat().st_size, path)[0]}
    with zipfile.ZipFile(path) as archive:
        found = {}
        for info in archive.infolist():
            with archive.open(info) as member:
                found[info.filename.removesuffix(".npy")] = _header(member, info.file_size, path)[0]
        return found


def _array(file: IO[bytes], size: int, path: Path) -> Array:
    """Reads one array after holding its header against the bytes that are there."""
    shape, fortran, dtype = _header(file, size, path)
    data = file.read(math.prod(shape) * dtype.itemsize)
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise _unreadable(path, "it is cut off")
    file.read(1)  # lets a zip member check its sum
    array = np.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _header(file: IO[bytes], size: int, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran order, and type of an array, held against the bytes that are there."""
    version = np.lib.format.read_magic(file)
    readers: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise _unreadable(path, f"its array format has version {version}")
    try:
        shape, fortran, dtype = readers[version](file)
    except Exception as error:  # numpy raises many types on damaged headers, and evaluates none
        raise _unreadable(path, "the header of an array cannot be read") from error
    if dtype.hasobject:
        raise _unreadable(path, "it holds pickled objects, which are never opened", do="save arrays of numbers")
    if any(d < 0 for d in shape) or math.prod(shape) * dtype.itemsize > size:
        raise _unreadable(path, f"its header claims shape {shape}, the file is too short for that")
    return shape, fortran, dtype


def files_in(path: Path) -> list[Path]:
    """The files of a folder that are read as data, in the order of their names: arrays, else feeds in JSON."""
    arrays = [*sorted(path.glob("*.npy")), *sorted(path.glob("*.npz"))]
    return arrays or sorted(path.glob("*.json"))


def folder(path: Path) -> Iterator[tuple[str, dict[str, Array]]]:
    """A folder: one `NAME.npy` per input, or .npz files in the order of their names; arrays by input name for each."""
    single = sorted(path.glob("*.npy"))
    many = sorted(path.glob("*.npz"))
    if bool(single) == bool(many):
        raise _unreadable(path, "a folder holds either one NAME.npy per input, or .npz files, or feeds in .json files")
    if single:
        yield str(path), {file.stem: load_npy(file) for file in single}
    for file in many:
        yield str(file), load(file)


def _unreadable(path: Path, why: str, do: str = "give .npz, .npy or .json files, or a folder of them") -> InputError:
    return InputError("the data cannot be read", where=str(path), why=why, do=do, code="FG108")
