"""Feeds as Polygraphy saves them (`--save-inputs`, `save_json`): a list of arrays by input name, or one such mapping.

An array is `{"polygraphy_class": "ndarray", "array": TEXT}` with a base64 .npy file as its text; files of old versions
mark it by another key, keep an .npz archive of one array, or spell the bytes in latin-1. Tensors of torch are pickles,
which are never opened.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InputError
from fp8graph.base.files import read_text
from fp8graph.calibrate.readers import npz
from fp8graph.calibrate.readers.arrays import Array

_CLASS = "polygraphy_class"
_OLD = "__polygraphy_encoded_"


def load(path: Path) -> Iterator[dict[str, Array]]:
    """The feeds of a file, one after the other. Raises InputError FG108 for anything that is none."""
    try:
        document = json.loads(read_text(path, "the data"))
    except InputError as error:
        raise InputError(error.what, where=error.where, why=error.why, do=error.do, code="FG108") from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"it is no JSON: {error}") from error
    items = document if isinstance(document, list) else [document]
    for index, item in enumerate(items):
        if not isinstance(item, dict) or _kind(item) or not item:
            raise _unreadable(path, f"item {index} is no mapping of arrays by input name")
        yield {str(name): _array(value, path, f"item {index}, '{name}'") for name, value in item.items()}


def _kind(item: dict[str, Any]) -> str:
    """The type that Polygraphy gave a value, empty for a plain mapping."""
    old = next((key.removeprefix(_OLD) for key in item if key.startswith(_OLD)), "")
    return str(item.get(_CLASS, old))


def _array(value: Any, path: Path, place: str) -> Array:
    kind = _kind(value) if isinstance(value, dict) else type(value).__name__
    if kind != "ndarray" or not isinstance(value.get("array"), str):
        do = "save arrays of numpy: tensor.numpy(), which hold no pickle" if kind == "Tensor" else ""
        raise _unreadable(path, f"{place} is {kind or 'a mapping'}, no array that Polygraphy has saved", do)
    data = _bytes(value["array"], path, place)
    if data[:2] != b"PK":
        return npz.from_bytes(data, path)
    arrays = list(npz.archive(io.BytesIO(data), path).values())
    if len(arrays) != 1:
        raise _unreadable(path, f"{place} is an archive of {len(arrays)} arrays")
    return arrays[0]


def _bytes(text: str, path: Path, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError as error:
            raise _unreadable(path, f"{place} is no base64") from error


def _unreadable(path: Path, why: str, do: str = "") -> InputError:
    do = do or "save it with Polygraphy's --save-inputs, or as .npz"
    return InputError("the data cannot be read", where=str(path), why=why, do=do, code="FG108")
