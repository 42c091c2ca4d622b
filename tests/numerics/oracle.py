"""Exact rational rounding, written from the definition of the formats and sharing nothing with fp8graph.

Numbers are integers times powers of two, as Python integers: no float, no numpy, no table, no search.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Float:
    """A binary float format: sign, exponent, mantissa. `largest` is the code of the largest finite value."""

    exponent: int
    mantissa: int
    bias: int
    largest: int
    nans: frozenset[int]
    minus_zero: bool = True

    @property
    def sign(self) -> int:
        return 1 << (self.exponent + self.mantissa)


@dataclass(frozen=True)
class Integer:
    """Two's complement."""

    bits: int
    nans: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Power:
    """2^(code - 127), code 255 NaN. `mode`: which neighbour a number between two powers becomes."""

    mode: str
    nans: frozenset[int] = frozenset({0xFF})


Exact = Float | Integer | Power

E4M3FN = Float(4, 3, 7, 0x7E, frozenset({0x7F, 0xFF}))
E5M2 = Float(5, 2, 15, 0x7B, frozenset({0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF}))
FP32 = Float(8, 23, 127, 0x7F7FFFFF, frozenset())
BY_NAME: dict[str, Exact] = {
    "e4m3fn": E4M3FN,
    "e4m3fnuz": Float(4, 3, 8, 0x7F, frozenset({0x80}), minus_zero=False),
    "e5m2": E5M2,
    "e5m2fnuz": Float(5, 2, 16, 0x7F, frozenset({0x80}), minus_zero=False),
    "e2m1": Float(2, 1, 1, 0x07, frozenset()),
    "e2m3": Float(2, 3, 1, 0x1F, frozenset()),
    "e3m2": Float(3, 2, 3, 0x1F, frozenset()),
    "int8": Integer(8),
    "int4": Integer(4),
    "e8m0": Power("up"),
}

NAN = None  # what code() answers for a NaN: any of the format's NaN codes is right


def bits(number: float) -> int:
    """The fp32 pattern of a number that fp32 holds."""
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


def exact(pattern: int) -> Fraction:
    """The value of a finite fp32 pattern."""
    sign = -1 if pattern >> 31 else 1
    exponent, fraction = (pattern >> 23) & 0xFF, pattern & 0x7FFFFF
    if exponent == 0xFF:
        raise ValueError(f"{pattern:#x} is not finite")
    significand = fraction + (1 << 23 if exponent else 0)
    return sign * significand * Fraction(2) ** (max(exponent, 1) - 150)


def _round(significand: int, power: int, format: Float) -> int:
    """Code, without sign, of significand * 2^power, to nearest, ties to even. May be beyond `largest`."""
    if significand == 0:
        return 0
    # exponent of the last mantissa bit: that of the leading bit less the mantissa, no less than the subnormals'
    leading = significand.bit_length() - 1 + power
    last = max(leading, 1 - format.bias) - format.mantissa
    shift = last - power
    if shift <= 0:
        steps = significand << -shift
    else:
        steps, rest = divmod(significand, 1 << shift)
        if 2 * rest > 1 << shift or (2 * rest == 1 << shift and steps % 2):
            steps += 1
    # steps = 2^mantissa is the first normal number: field and carry add up as integers
    return ((last + format.mantissa + format.bias - 1) << format.mantissa) + steps


def code(pattern: int, format: Exact) -> int | None:
    """The saturated code of an fp32 pattern; NAN for a NaN (and what is negative, among powers)."""
    exponent, fraction = (pattern >> 23) & 0xFF, pattern & 0x7FFFFF
    if exponent == 0xFF and fraction:
        return NAN
    if isinstance(format, Integer):
        return _integer(pattern, format)
    if isinstance(format, Power):
        return _power(pattern, format.mode)
    sign = format.sign if pattern >> 31 else 0
    if exponent == 0xFF:
        return sign | format.largest
    significand = fraction + (1 << 23 if exponent else 0)
    magnitude = min(_round(significand, max(exponent, 1) - 150, format), format.largest)
    return sign | magnitude if magnitude or format.minus_zero else 0


def _magnitude(pattern: int) -> int:
    """|number| * 2^149 of a finite fp32 pattern: an integer."""
    exponent, fraction = (pattern >> 23) & 0xFF, pattern & 0x7FFFFF
    return (fraction + (1 << 23 if exponent else 0)) << (max(exponent, 1) - 1)


def _integer(pattern: int, format: Integer) -> int:
    negative, half = pattern >> 31, 1 << (format.bits - 1)
    most = half if negative else half - 1
    if pattern & 0x7FFFFFFF == 0x7F800000:
        steps = most
    else:
        steps, rest = divmod(_magnitude(pattern), 1 << 149)
        steps += 2 * rest > 1 << 149 or (2 * rest == 1 << 149 and steps % 2)
    return (-min(steps, most) if negative else min(steps, most)) % (2 * half)


def _power(pattern: int, mode: str) -> int | None:
    if pattern >> 31:
        return 0 if pattern == 0x80000000 else NAN
    if pattern == 0x7F800000:
        return 254
    number = _magnitude(pattern)
    # 2^(code - 127) * 2^149 is 1 << (code + 22); the greatest at or below the number, 0 where there is none
    below = max(number.bit_length() - 1 - 22, 0)
    low, high = 1 << (below + 22), 1 << (below + 23)
    up = {"up": number > low, "down": False, "nearest": 2 * number >= low + high}[mode]
    return min(below + up, 254)


def divide(x: int, s: int) -> int:
    """fp32 pattern of fl32(x / s) for finite x and finite, positive s, both patterns. Overflow gives infinity."""
    quotient = abs(exact(x)) / exact(s)
    # enough digits that the rest decides only whether the quotient lies strictly between two of them
    digits = quotient.denominator.bit_length() - quotient.numerator.bit_length() + 64
    scaled = quotient * Fraction(2) ** digits
    significand, between = scaled.numerator // scaled.denominator, scaled.denominator != 1
    rounded = _round(2 * significand + between, -digits - 1, FP32)
    return (x & 0x80000000) | min(rounded, 0x7F800000)


def decode(code: int, format: Exact) -> Fraction | None:
    """The exact value of a code; None for NaN and infinities."""
    if code in format.nans:
        return None
    if isinstance(format, Integer):
        return Fraction(code - (1 << format.bits) if code >> (format.bits - 1) else code)
    if isinstance(format, Power):
        return Fraction(2) ** (code - 127)
    magnitude = code & ~format.sign
    if magnitude > format.largest:
        return None
    exponent, fraction = magnitude >> format.mantissa, magnitude % (1 << format.mantissa)
    if exponent:
        value = (1 + Fraction(fraction, 1 << format.mantissa)) * Fraction(2) ** (exponent - format.bias)
    else:
        value = Fraction(fraction, 1 << format.mantissa) * Fraction(2) ** (1 - format.bias)
    return -value if code & format.sign else value
