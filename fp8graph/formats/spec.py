"""What a number format is, exactly, and how scales are shared out over a tensor.

Everything here is integers and `Fraction`: no float, no array. `fp8graph.numerics.cast` builds its tables from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, cast, get_args

ScaleRule = Literal["max", "ocp"]


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
    min_opset      first ONNX opset whose QuantizeLinear can produce the format (kind `exponent`: whose Cast can).
    min_ir         first IR version whose files may hold its tensors (the list of versions in onnx.proto).

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
    min_ir: int = 1

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
        return self._checked(code) & ~self._sign_bit == top and self.infinities

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

    @property
    def emax(self) -> int:
        """floor(log2(max)): the exponent of the largest value. 8 for E4M3FN, 2 for E2M1 (OCP MX v1.0, table 1)."""
        # 2^emax <= max < 2^(emax + 1), and a numerator over a power of two says that in bits
        return self.max.numerator.bit_length() - self.max.denominator.bit_length()

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
    dimension; where a size does not divide a dimension, the last block is the rest. Axes may be negative and count from
    the end, as in ONNX.

        PerTensor()           blocks ()                     [N, C, H, W] -> scale []
        PerAxis(1)            blocks ((1, 1),)              [N, C, H, W] -> scale [C]
        PerAxis(-1)           blocks ((-1, 1),)             [K, N]       -> scale [N]
        PerToken(3)           blocks ((0, 1), (1, 1))       [B, S, K]    -> scale [B, S, 1]
        PerBlock(0, 32, 2)    blocks ((0, 32), (1, 1))      [K, N]       -> scale [ceil(K/32), N]
        Blocks2D(128, 128)    blocks ((-2, 128), (-1, 128)) [K, N]       -> scale [ceil(K/128), ceil(N/128)]

    Raises ValueError where pairs are not sorted by axis, an axis occurs twice, or a size is below 1.
    """

    blocks: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        axes = [axis for axis, _ in self.blocks]
        if axes != sorted(set(axes)):
            raise ValueError(f"granularity: axes must be sorted, each once: {self.blocks}")
        if any(size < 1 for _, size in self.blocks):
            raise ValueError(f"granularity: block sizes must be at least 1: {self.blocks}")

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How long a block is along each axis of a tensor of `shape`, at least 1; the last one may be shorter.

        Raises ValueError for an axis that `shape` does not have or that is named twice (1 and -1 of a matrix).
        """
        rank = len(shape)
        sizes = [max(length, 1) for length in shape]
        seen = set()
        for axis, size in self.blocks:
            if not -rank <= axis < rank:
                raise ValueError(f"granularity: axis {axis} is not an axis of a tensor of rank {rank}")
            if axis % rank in seen:
                raise ValueError(
                    f"granularity: axis {axis % rank} of a tensor of rank {rank} occurs twice: {self.blocks}"
                )
            seen.add(axis % rank)
            sizes[axis] = size
        return tuple(sizes)

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How many blocks there are along each axis of a tensor of `shape`; 1 where it is not named.

        Raises as `sizes` does.
        """
        named = {axis % len(shape) for axis, _ in self.blocks} if shape else set()
        sizes = self.sizes(shape)
        return tuple(-(-shape[i] // sizes[i]) if i in named else 1 for i in range(len(shape)))

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the ONNX scale for a tensor of `shape`: a scalar per tensor, a vector per index of one axis, else of
        the tensor's rank, as blocked QuantizeLinear wants it (one axis in blocks, the others in blocks of 1).

            PerTensor()          [64, 3, 7, 7] -> []
            PerAxis(-1)          [768, 3072]   -> [3072]
            PerToken(3)          [2, 77, 768]  -> [2, 77, 1]
            PerBlock(0, 32, 2)   [784, 3072]   -> [25, 3072]

        Raises as `sizes` does.
        """
        counts = self.counts(shape)
        if not self.blocks:
            return ()
        (axis, size), *more = self.blocks
        return counts if more or size != 1 else (counts[axis],)

    def broadcast_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape the scale must take to broadcast to a tensor of `shape`, per tensor and per index of one axis.

            PerTensor()   [64, 3, 7, 7] -> []
            PerAxis(0)    [64, 3, 7, 7] -> [64, 1, 1, 1]
            PerAxis(-1)   [768, 3072]   -> [1, 3072]

        Raises ValueError for other granularities (`fp8graph.numerics.blocks` spreads any), else as `sizes` does.
        """
        if len(self.blocks) > 1 or any(size != 1 for _, size in self.blocks):
            raise ValueError(
                f"granularity {self.blocks}: a scale per block does not broadcast, only one per axis index"
            )
        return self.counts(shape) if self.blocks else ()

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


def PerTensor() -> Granularity:  # noqa: N802 - reads as the value it makes
    """One scale for the whole tensor.   [N, C, H, W] -> scale []"""
    return Granularity()


def PerAxis(axis: int) -> Granularity:  # noqa: N802 - reads as the value it makes
    """One scale per index of `axis`.   [N, C, H, W], axis 1 -> scale [C]"""
    return Granularity(((axis, 1),))


def PerToken(rank: int) -> Granularity:  # noqa: N802 - reads as the value it makes
    """One scale per row of the last axis.   [B, S, K] -> scale [B, S, 1]   (rank 2: [S, K] -> [S], as PerAxis(0))"""
    return Granularity(tuple((axis, 1) for axis in range(rank - 1)))


def PerBlock(axis: int, size: int, rank: int) -> Granularity:  # noqa: N802 - reads as the value it makes
    """One scale per `size` elements along `axis`, in tensors of `rank`.   [K, N], axis 0, size 32 -> [ceil(K/32), N]

    ONNX's blocked quantisation, and with sizes of 32 and 16 that of MX and NVFP4. Raises ValueError for an axis that is
    not there.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"granularity: axis {axis} is not an axis of a tensor of rank {rank}")
    return Granularity(tuple((i, size if i == axis % rank else 1) for i in range(rank)))


def Blocks2D(rows: int, columns: int, rank: int = 2) -> Granularity:  # noqa: N802 - reads as the value it makes
    """One scale per `rows` x `columns` of the last two axes.   [K, N] -> [ceil(K/rows), ceil(N/columns)]"""
    lead = tuple((axis, 1) for axis in range(-rank, -2))
    return Granularity((*lead, (-2, rows), (-1, columns)))


@dataclass(frozen=True)
class ScaleFormat:
    """How scales are stored, and how they are rounded to that.

    format  None: float32, nothing is rounded. Else the name of a format: `e8m0` (powers of two), `e4m3fn` ...
    rule    `max`: the largest value of a block is mapped to the format's largest or below it; powers of two are rounded
            up, other formats to nearest (a block's largest value may then saturate). DeepSeek's UE8M0, NVIDIA's MXFP8,
            NVFP4.
            `ocp`: 2^(floor(log2 amax) - emax), as OCP MX v1.0 says; values of a block above max / 2^emax times a power
            of two saturate. For formats of kind `exponent` only.
    outer   whether a float32 scale per tensor lies above the stored ones

        ScaleFormat()                       float32
        ScaleFormat("e8m0", "ocp")          MX
        ScaleFormat("e8m0")                 DeepSeek's UE8M0
        ScaleFormat("e4m3fn", outer=True)   NVFP4

    Raises ValueError for an unknown format or rule, and for combinations that say nothing.
    """

    format: str | None = None
    rule: ScaleRule = "max"
    outer: bool = False

    def __post_init__(self) -> None:
        powers = False
        if self.format is not None:
            from fp8graph import formats  # the package that imports this file

            if self.format not in formats.names():
                raise ValueError(f"scale: unknown format {self.format!r}")
            powers = formats.get(self.format).kind == "exponent"
        if self.rule not in get_args(ScaleRule) or (self.rule == "ocp" and not powers):
            raise ValueError(f"scale: rule {self.rule!r} with format {self.format}: ocp makes powers of two, else max")
        if self.outer and (self.format is None or powers):
            raise ValueError(f"scale: an outer scale above format {self.format} adds nothing")

    def to_json(self) -> dict[str, Any]:
        """Plain data: {"format": name or None, "rule": ..., "outer": ...}."""
        return {"format": self.format, "rule": self.rule, "outer": self.outer}

    @classmethod
    def from_json(cls, data: Any) -> ScaleFormat:
        """The value that `to_json` wrote. Raises ValueError for anything else."""
        if not isinstance(data, dict) or set(data) != {"format", "rule", "outer"} or type(data["outer"]) is not bool:
            raise ValueError(f'scale: expected {{"format": ..., "rule": ..., "outer": ...}}, got {data!r}')
        if not isinstance(data["format"], str | None) or not isinstance(data["rule"], str):
            raise ValueError(f"scale: format and rule are names, got {data!r}")
        return cls(data["format"], cast(ScaleRule, data["rule"]), data["outer"])


# Scales as float32, nothing rounded.
FP32_SCALES = ScaleFormat()
