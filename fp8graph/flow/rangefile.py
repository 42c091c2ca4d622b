"""Ranges as files: a document, and beside it the arrays that it refers to, where it does."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fp8graph.base import canon
from fp8graph.base.files import WrittenFile, check_writable, describe, staged
from fp8graph.data.document import load_json, malformed
from fp8graph.numerics import sidecar
from fp8graph.numerics.ranges import KIND, Ranges

ARRAYS_SUFFIX = ".safetensors"


def beside(path: Path) -> Path:
    """Where the arrays of ranges lie: `r.safetensors` for `r.json`."""
    return path.with_name(path.name.removesuffix(".json") + ARRAYS_SUFFIX)


def check(path: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Raises UsageError where either file may not be written."""
    check_writable(path, force=force, inputs=inputs)
    check_writable(beside(path), force=force, inputs=inputs)


def read(path: Path) -> Ranges:
    """The ranges of a file. Raises InputError FG111 (it holds none) or FG105 (its arrays are not beside it)."""
    return of(load_json(path, "the ranges"), path)


def of(document: Any, path: Path) -> Ranges:
    """The ranges of a document that was read from `path`; raises as `read` does."""
    digest = document.get("sidecar") if isinstance(document, dict) else None
    arrays = sidecar.Sidecar(beside(path), str(digest), "ranges") if digest else None
    return Ranges.from_json(document, str(path), arrays)


def write(path: Path, ranges: Ranges) -> tuple[WrittenFile, ...]:
    """Writes both files or none, and takes away the arrays of what was there before."""
    arrays, lying = ranges.arrays(), beside(path)
    with staged(path) as folder:
        digest = sidecar.write(folder / lying.name, arrays) if arrays else ""
        (folder / path.name).write_text(canon.pretty(ranges.to_json(digest)), encoding="utf-8")
    if not arrays:
        lying.unlink(missing_ok=True)
    return tuple(describe(each) for each in (path, *([lying] if arrays else [])))


def whole(ranges: Ranges) -> dict[str, Any]:
    """Ranges and their arrays as one document: part of a file that has none beside it."""
    packed = base64.b64encode(sidecar.packed(ranges.arrays())).decode("ascii")
    return {"ranges": ranges.to_json(), "arrays": packed}


def of_whole(document: Any, where: str) -> Ranges:
    """The ranges that `whole` made a document of. Raises InputError FG111 or KeyError."""
    try:
        arrays = sidecar.unpacked(base64.b64decode(document["arrays"], validate=True))
    except (TypeError, ValueError, binascii.Error) as error:
        raise malformed(KIND, where, error) from error
    return Ranges.from_json(document["ranges"], where, arrays)
