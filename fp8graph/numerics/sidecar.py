"""The arrays of a plan or of ranges: one safetensors file beside the document, which holds its digest. Read lazily."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from fp8graph.base.errors import InputError
from fp8graph.base.files import sha256_of
from fp8graph.data.arrayref import ArrayRef

Array = np.ndarray[Any, np.dtype[Any]]


class Sidecar(Mapping[str, Array]):
    """The arrays in a file by name; each is read when it is asked for, and not kept."""

    def __init__(self, path: Path, sha256: str, owner: str = "plan") -> None:
        """Raises InputError FG105 where the file is missing or is not the one that the document, `owner`, names."""
        if not path.is_file():
            raise InputError(
                f"the arrays of the {owner} are missing",
                where=str(path),
                do=f"keep the file beside the {owner}",
                code="FG105",
            )
        if sha256_of(path) != sha256:
            raise InputError(
                f"the {owner} and the arrays beside do not belong together",
                where=str(path),
                why=f"the file's digest is not the one in the {owner}",
                do=f"make the {owner} anew",
                code="FG105",
            )
        self._path = path
        try:
            with safe_open(str(path), framework="numpy") as file:
                self._names = sorted(file.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"the arrays of the {owner} cannot be read", where=str(path), why=str(error), code="FG105"
            ) from error

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(str(self._path), framework="numpy") as file:
            array: Array = file.get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write(path: Path, arrays: Mapping[str, Array]) -> str:
    """Writes the arrays and returns the file's sha256. Same arrays, same bytes."""
    content = packed(arrays)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def packed(arrays: Mapping[str, Array]) -> bytes:
    """The content of such a file. Same arrays, same bytes."""
    return bytes(save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}))


def unpacked(content: bytes) -> dict[str, Array]:
    """The arrays of such a content, all of them. Raises ValueError for any other."""
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def reference(name: str, array: Array) -> ArrayRef:
    """The reference that a document holds for an array."""
    return ArrayRef(name, str(array.dtype), tuple(array.shape))


def fetch(arrays: Mapping[str, Any], wanted: ArrayRef, owner: str = "plan") -> Array:
    """The array that a reference names. Raises InputError FG105 where it is missing, or of another type or shape."""
    if wanted.name not in arrays:
        raise InputError(
            f"the {owner} names an array that is not there",
            where=wanted.name,
            do=f"keep the .safetensors file beside the {owner}, or make it anew",
            code="FG105",
        )
    array: Array = arrays[wanted.name]
    if str(array.dtype) != wanted.dtype or tuple(array.shape) != wanted.shape:
        raise InputError(
            f"an array of the {owner} is not what the {owner} says",
            where=wanted.name,
            why=f"it is {array.dtype}{list(array.shape)}, the {owner} says {wanted.dtype}{list(wanted.shape)}",
            code="FG105",
        )
    return array


def weight_digest(array: Array) -> str:
    """Digest of a weight: what was solved for it binds to these bytes."""
    contiguous = np.ascontiguousarray(array)
    head = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(head + contiguous.view(np.uint8).tobytes()).hexdigest()[:32]
