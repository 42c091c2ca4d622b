"""Canonical JSON, digests, and numbers in their shortest spelling."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph.base.canon import canonical, digest, pretty, shortest_float32

LARGEST = float(np.finfo(np.float32).max)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def single(value: float) -> float:
    """`value` as float32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, 0.5]}, '{"a":[true,null,0.5],"b":1}'),
        ({"ä": "\u20ac"}, '{"ä":"€"}'),
        ([], "[]"),
    ],
)
def test_canonical_json_has_sorted_keys_and_no_spaces(value, text):
    assert canonical(value) == text


@given(JSON)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_both_spellings_read_back_as_what_was_written(value):
    assert json.loads(canonical(value)) == value
    assert json.loads(pretty(value)) == value
    assert pretty(value).endswith("\n")


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=6))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_order_of_keys_changes_no_digest(value):
    turned = dict(reversed(value.items()))
    assert canonical(turned) == canonical(value)
    assert digest(turned) == digest(value)
    assert digest(value).startswith("sha256:") and len(digest(value)) == 71


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_refused(value):
    for spell in (canonical, pretty):
        with pytest.raises(ValueError):
            spell([value])
    with pytest.raises(ValueError, match="finite"):
        shortest_float32(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (np.float32(1 / 448), "0.002232143"),
        (1 / 3, "0.33333334"),
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (LARGEST, "3.4028235e+38"),
        (-LARGEST, "-3.4028235e+38"),
        (2.0**-126, "1.1754944e-38"),
        (2.0**-149, "1.4013e-45"),
        (16777216.0, "16777216.0"),
    ],
)
def test_a_float32_is_spelt_in_a_few_digits(value, text):
    assert json.dumps(shortest_float32(value)) == text


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=600, deadline=None, derandomize=True)
def test_every_float32_comes_back_bit_for_bit(bits):
    value = struct.unpack("<f", struct.pack("<I", bits))[0]
    if not math.isfinite(value):
        return
    spelt = json.dumps(shortest_float32(value))
    assert struct.pack("<f", json.loads(spelt)) == struct.pack("<f", value)
    assert len(spelt.lstrip("-").replace(".", "").partition("e")[0].strip("0")) <= 9, spelt


@given(st.floats(-LARGEST, LARGEST, allow_nan=False))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_double_becomes_the_nearest_float32(value):
    assert single(shortest_float32(value)) == single(value)


def test_a_digest_does_not_depend_on_the_hash_seed():
    code = "from fp8graph.base.canon import digest; print(digest({'a': 1, 'b': sorted({'x', 'y', 'z'})}))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {digest({"a": 1, "b": ["x", "y", "z"]}) + "\n"}
