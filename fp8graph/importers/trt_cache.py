"""Calibration caches of TensorRT: a line that names version and calibrator, then `tensor: scale` in hexadecimal.

    TRT-8501-EntropyCalibration2
    conv1_out: 3c88edfc

The scale is that of INT8, the largest magnitude over 127, as a big-endian float32. Source: TensorRT, README of
samples/sampleINT8, "Calibration file".
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from fp8graph.base.errors import InputError
from fp8graph.base.files import read_text

_HEAD = re.compile(r"TRT-\w+-\w+\s*$")
_HEX = re.compile(r"[0-9a-fA-F]{1,8}$")


def read(path: Path) -> dict[str, float]:
    """The largest magnitude of each tensor. Raises InputError FG111 (no text) and FG115 (no such cache)."""
    head, *lines = read_text(path, "the calibration cache").splitlines() or [""]
    if not _HEAD.match(head):
        raise _refused(path, f"it begins with {head[:40]!r}, and not with TRT-<version>-<calibrator>")
    found: dict[str, float] = {}
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        name, colon, value = line.rpartition(":")
        if not colon or not _HEX.match(value.strip()):
            raise _refused(path, f"line {number} is {line[:60]!r}, and not 'tensor: scale' in hexadecimal")
        (scale,) = struct.unpack(">f", bytes.fromhex(value.strip().zfill(8)))
        found[name.strip()] = scale * 127
    return found


def _refused(path: Path, why: str) -> InputError:
    do = "give the calibration cache that TensorRT wrote"
    return InputError("the calibration cache cannot be read", where=str(path), why=why, do=do, code="FG115")
