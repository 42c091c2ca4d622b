"""What a rounded value becomes, as a table per format: computed from the exact values of `Format`, held once.

The upper bits of an fp32 pattern, the lowest of them or-ed with "any of the bits below is set", index the table of
codes. This rounding to odd loses nothing: every point where a code changes is a number whose bits below and whose
lowest indexed bit are zero, so an odd index says "strictly between", and an even one is exact. 16 bits are dropped
where that holds, which makes 65536 entries: in all formats but INT8, whose ties have 8 bits; there 15 are.
The table carries saturation, NaN, -0 and ties, so there is one path for every format.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fp8graph.formats.spec import Format

RoundMode = Literal["up", "down", "nearest"]
_INFINITY = 0x7F800000


@dataclass(frozen=True, eq=False)
class CodeTable:
    """codes: uint8 [1 << (32 - shift)], by fp32 pattern >> shift, rounded to odd. `nan`: whether NaN has a code."""

    codes: NDArray[np.uint8]
    shift: int
    nan: bool


@cache
def code_table(format: Format, round_mode: RoundMode = "up") -> CodeTable:
    """The table of `format`; `round_mode` is that of formats of kind `exponent`, which have others.

    Raises ValueError for formats of more than 8 bits and for another round mode.
    """
    if format.bits > 8:
        raise ValueError(f"format {format.name} has more than 8 bits: encoding it is not known")
    if round_mode not in ("up", "down", "nearest"):
        raise ValueError(f"round_mode must be up, down or nearest, got {round_mode!r}")
    positive, negative = _magnitudes(format, 0), _magnitudes(format, 1)
    points = [_pattern(_point(format, pair, round_mode)) for half in (positive, negative) for pair in pairwise(half)]
    shift = min(16, *((point & -point).bit_length() - 2 for point in points))
    half = 1 << (31 - shift)
    codes = np.empty(2 * half, np.uint8)
    for start, magnitudes in ((0, positive), (half, negative)):
        first = 0
        for pair in pairwise(magnitudes):
            point = _pattern(_point(format, pair, round_mode)) >> shift
            end = point + _stays_below(format, pair, round_mode)
            codes[start + first : start + end] = pair[0]
            first = end
        codes[start + first : start + half] = magnitudes[-1]
    if format.kind == "exponent":
        codes[half + 1 :] = format.nan or 0  # what is negative is no scale; -0 is what 0 is
    _fill_nans(codes, format, (_INFINITY >> shift) + 1, half)
    codes.flags.writeable = False
    return CodeTable(codes, shift, format.nan is not None)


@cache
def value_table(format: Format) -> NDArray[np.float32]:
    """float32 [2 ** bits]: what each code stands for, exactly."""

    def number(code: int) -> float:
        if format.is_nan(code):
            return float("nan")
        if format.is_infinite(code):
            return float("-inf") if code >> (format.bits - 1) else float("inf")
        value = float(_finite(format, code))
        return -0.0 if value == 0 and code and format.negative_zero else value

    table = np.array([number(code) for code in format.codes], np.float32)
    table.flags.writeable = False
    return table


@cache
def pair_table(format: Format) -> NDArray[np.float32]:
    """float32, as long as the table of codes: the value of each code in it."""
    table = value_table(format)[code_table(format).codes]
    table.flags.writeable = False
    return table


def _magnitudes(format: Format, sign: int) -> list[int]:
    """Codes that values of one sign (1: negative) may become, from zero outwards."""
    half = 1 << (format.bits - 1)
    if format.kind == "exponent":
        codes = list(format.codes)[: 1 if sign else None]
    elif format.kind == "int":
        codes = [0, *reversed(range(half, 2 * half))] if sign else list(range(half))
    else:
        codes = [code | (half * sign) for code in range(half)]
        codes[0] = codes[0] if format.negative_zero else 0
    return [code for code in codes if format.value(code) is not None]


def _point(format: Format, pair: tuple[int, int], round_mode: RoundMode) -> Fraction:
    """Where, in magnitude, the first code of a pair of neighbours ends and the second begins."""
    low, high = (abs(_finite(format, code)) for code in pair)
    if format.kind != "exponent" or round_mode == "nearest":
        return (low + high) / 2
    return low if round_mode == "up" else high


def _stays_below(format: Format, pair: tuple[int, int], round_mode: RoundMode) -> bool:
    """Whether that point itself is the first code's: the even one's at a tie; a power of two stays one."""
    return round_mode == "up" if format.kind == "exponent" else pair[0] % 2 == 0


def _fill_nans(codes: NDArray[np.uint8], format: Format, first: int, half: int) -> None:
    """Writes the NaN codes; zeros, which nobody reads, where the format has none."""
    nan, sign = format.nan or 0, 1 << (format.bits - 1)
    codes[first:half] = nan
    codes[half + first :] = nan | sign if nan | sign in format.nans else nan


def _finite(format: Format, code: int) -> Fraction:
    value = format.value(code)
    if value is None:
        raise ValueError(f"format {format.name}: code {code} is not finite")
    return value


def _pattern(value: Fraction) -> int:
    """The fp32 pattern of a positive `value`; ValueError unless fp32 holds it."""
    bits = int.from_bytes(struct.pack(">f", float(value)), "big")
    if Fraction(struct.unpack(">f", bits.to_bytes(4, "big"))[0]) != value:
        raise ValueError(f"{value} is not a number of fp32")
    return bits
