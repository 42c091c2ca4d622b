"""What a number format is, exactly, and how scales are shared out over a tensor.

Everything here is integers and `Fraction`: no float, no array. `fp8graph.numerics.cast` builds its tables from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal


@dataclass(frozen=True)
class Format:
    """One storage format: how each code of `bits` bits reads as a number.

    kind `float`     sign, `exponent` bits, `mantissa` bits, from the top; exponent field 0 holds zero and subnormals.
    kind `int`       two's complement, `mantissa` = bits - 1, no exponent field (E and bias are 0).
    kind `exponent`  unsigned powers of two, 2^(code - bias), no sign and no zero (E8M0).

    infinities     the top exponent field with mantissa 0 is an infinity.
    nans           every NaN code, ascending.
    negative_zero  the sign bit alone is -0; where False it is another value or a NaN.
    onnx_type      value of onnx.TensorProto.DataType.
    min_opset      first ONNX opset whose QuantizeLinear can produce the format.

    Raises ValueError where the fields do not add up. Equal fields make equal, hashable formats.
    """

    name: str
    kind: Literal["float", "int", "exponent"]
    bits: int
    exponent: int
    mantissa: int
    bias: int
    infinities: bool
    nans: tuple[int, ...]
    negative_zero: bool
    onnx_type: int
    min_opset: int

    def __post_init__(self) -> None:
        signs = 0 if self.kind == "exponent" else 1
        if signs + self.exponent + self.mantissa != self.bits:
            raise ValueError(
                f"format {self.name}: {signs} sign, {self.exponent} exponent and {self.mantissa} mantissa bits "
                f"are not {self.bits} bits"
            )
        if any(code not in self.codes for code in self.nans) or list(self.nans) != sorted(set(self.nans)):
            raise ValueError(f"format {self.name}: NaN codes must be ascending and below {2**self.bits}: {self.nans}")

    def __str__(self) -> str:
        return self.name

    @property
    def codes(self) -> range:
        """Every code: range(2 ** bits)."""
        return range(2**self.bits)

    def is_nan(self, code: int) -> bool:
        """Whether `code` is a NaN."""
        return self._checked(code) in self.nans

    def is_infinite(self, code: int) -> bool:
        """Whether `code` is plus or minus infinity."""
        top = ((1 << self.exponent) - 1) << self.mantissa
        return self.infinities and self._checked(code) & ~self._sign_bit == top

    def value(self, code: int) -> Fraction | None:
        """The exact value of `code`; None for a NaN or an infinity (`is_nan` and `is_infinite` tell which).

        -0 has the value 0: a Fraction has no signed zero. Raises ValueError for a code outside `codes`.
        """
        if self.is_nan(code) or self.is_infinite(code):
            return None
        if self.kind == "exponent":
            return Fraction(2) ** (code - self.bias)
        if self.kind == "int":
            return Fraction(code - 2 * (code & self._sign_bit))
        sign = -1 if code & self._sign_bit else 1
        significand = code & ((1 << self.mantissa) - 1)
        exponent = (code >> self.mantissa) & ((1 << self.exponent) - 1)
        if exponent:
            significand += 1 << self.mantissa
        return sign * significand * Fraction(2) ** (max(exponent, 1) - self.bias - self.mantissa)

    @cached_property
    def max(self) -> Fraction:
        """The largest finite value. The smallest is its negative in float formats."""
        return max(value for code in self.codes if (value := self.value(code)) is not None)

    @cached_property
    def smallest_normal(self) -> Fraction:
        """The least positive value with full precision (kind int: 1; kind exponent: the least value)."""
        if self.kind == "int":
            return Fraction(1)
        return Fraction(2) ** ((1 if self.kind == "float" else 0) - self.bias)

    @cached_property
    def smallest_subnormal(self) -> Fraction:
        """The least positive value; that of kind float is the spacing of the numbers around zero."""
        return min(value for code in self.codes if (value := self.value(code)) is not None and value > 0)

    @property
    def nan(self) -> int | None:
        """The NaN code that encoding a positive NaN writes, None where the format has no NaN.

        The greatest code without the sign bit: 0x7F for E4M3FN and E5M2, which is what ONNX Runtime writes. Where NaN
        exists with the sign bit only (the FNUZ formats), that one.
        """
        unsigned = [code for code in self.nans if not code & self._sign_bit]
        return max(unsigned or self.nans, default=None)

    @property
    def _sign_bit(self) -> int:
        return 0 if self.kind == "exponent" else 1 << (self.bits - 1)

    def _checked(self, code: int) -> int:
        if code not in self.codes:
            raise ValueError(f"format {self.name}: code {code} is not in 0 to {len(self.codes) - 1}")
        return code


@dataclass(frozen=True)
class Granularity:
    """How many elements share one scale: a scale per block.

    `blocks` holds (axis, block size) pairs sorted by axis. Along an axis that is not named, a block takes the whole
    dimension. Axes may be negative and count from the end, as in ONNX. `PerTensor()` and `PerAxis(axis)` build the
    two kinds that scale shapes are defined for today.

        PerTensor()    blocks ()           [N, C, H, W] -> scale []
        PerAxis(1)     blocks ((1, 1),)    [N, C, H, W] -> scale [C]
        PerAxis(-1)    blocks ((-1, 1),)   [K, N]       -> scale [N]

    Raises ValueError where pairs are not sorted by axis, an axis occurs twice, or a size is below 1.
    """

    blocks: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        axes = [axis for axis, _ in self.blocks]
        if axes != sorted(set(axes)):
            raise ValueError(f"granularity: axes must be sorted, each once: {self.blocks}")
        if any(size < 1 for _, size in self.blocks):
            raise ValueError(f"granularity: block sizes must be at least 1: {self.blocks}")

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the ONNX scale for a tensor of `shape`.

            PerTensor()   [64, 3, 7, 7] -> []
            PerAxis(0)    [64, 3, 7, 7] -> [64]
            PerAxis(-1)   [768, 3072]   -> [3072]

        Raises ValueError for other block shapes and for an axis that `shape` does not have.
        """
        axis = self._axis(len(shape))
        return () if axis is None else (shape[axis],)

    def broadcast_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape the scale must take to broadcast to a tensor of `shape`.

            PerTensor()   [64, 3, 7, 7] -> []
            PerAxis(0)    [64, 3, 7, 7] -> [64, 1, 1, 1]
            PerAxis(-1)   [768, 3072]   -> [1, 3072]

        Raises as `scale_shape` does.
        """
        axis = self._axis(len(shape))
        return () if axis is None else tuple(size if i == axis else 1 for i, size in enumerate(shape))

    def to_json(self) -> dict[str, Any]:
        """Plain data: {"blocks": [[axis, size], ...]}."""
        return {"blocks": [list(pair) for pair in self.blocks]}

    @classmethod
    def from_json(cls, data: Any) -> Granularity:
        """The granularity that `to_json` wrote. Raises ValueError for anything else."""
        if not isinstance(data, dict) or set(data) != {"blocks"} or not isinstance(data["blocks"], list):
            raise ValueError(f'granularity: expected {{"blocks": [[axis, size], ...]}}, got {data!r}')
        pairs = []
        for pair in data["blocks"]:
            # type(), not isinstance(): True is no axis
            if not isinstance(pair, list) or len(pair) != 2 or any(type(number) is not int for number in pair):
                raise ValueError(f"granularity: expected [axis, size] in integers, got {pair!r}")
            pairs.append((pair[0], pair[1]))
        return cls(tuple(pairs))

    def _axis(self, rank: int) -> int | None:
        """The one axis with a scale per index, counted from the front; None per tensor."""
        if not self.blocks:
            return None
        (axis, size), *more = self.blocks
        if more or size != 1:
            raise ValueError(f"granularity {self.blocks}: only one scale per tensor or per index of one axis is known")
        if not -rank <= axis < rank:
            raise ValueError(f"granularity: axis {axis} is not an axis of a tensor of rank {rank}")
        return axis % rank


def PerTensor() -> Granularity:  # noqa: N802 - reads as the value it makes
    """One scale for the whole tensor.   [N, C, H, W] -> scale []"""
    return Granularity()


def PerAxis(axis: int) -> Granularity:  # noqa: N802 - reads as the value it makes
    """One scale per index of `axis`.   [N, C, H, W], axis 1 -> scale [C]"""
    return Granularity(((axis, 1),))
