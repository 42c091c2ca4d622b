"""Canonical JSON and digests: the same value gives the same bytes, whatever the hash seed, thread count or clock."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any


def canonical(value: Any) -> str:
    """`value` as canonical JSON on one line: sorted keys, no spaces, no NaN or infinity (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def pretty(value: Any) -> str:
    """`value` as JSON for people and diffs: insertion order kept, two spaces, a final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def digest(value: Any) -> str:
    """`sha256:<hex>` of the canonical JSON of `value`."""
    return "sha256:" + hashlib.sha256(canonical(value).encode()).hexdigest()


def nearest_float32(value: float) -> float:
    """The float32 nearest to `value`, as a Python float. Raises OverflowError above the largest."""
    exact: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return exact


def shortest_float32(value: float) -> float:
    """The Python float whose shortest decimal spelling names exactly this float32.

    JSON then shows `0.0123` and not the seventeen digits of the double that equals the float32. Raises ValueError
    where `value` is not finite: documents hold no NaN or infinity.
    """
    if not math.isfinite(value):
        raise ValueError(f"a document holds finite numbers only, not {value}")
    exact = nearest_float32(value)
    for digits in range(6, 18):
        short = float(f"{exact:.{digits}g}")
        try:
            if nearest_float32(short) == exact:
                return short
        except OverflowError:  # the rounded decimal of the largest float32 lies above it
            continue
    return exact
