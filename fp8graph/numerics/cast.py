"""Casts between floats and 8-bit float codes: the only place that encodes.

    encode          codes = RNE(saturate(fl32(x / s)))       QuantizeLinear of ONNX, opset 19 on, saturate=1
    decode          x = fl32(decode(q) * fl32(s))            DequantizeLinear
    fake_quantize   decode(encode(x))                        the pair

RNE is round to nearest, ties to the even code; fl32 is one fp32 operation. Dividing, and not multiplying by 1/s, is
what QuantizeLinear says and what ONNX Runtime and onnx.reference do bit for bit; the reciprocal gives other codes now
and then. NaN stays NaN with its sign, an infinity becomes the largest finite value, -0 stays where the format has it.
A bad scale is not caught here: 0 gives the largest value (or NaN for 0/0), NaN gives NaN.

How: y = fl32(x / s) as 32 bits; the upper 16 of them, the lowest or-ed with "any of the lower 16 is set", index a table
of 65536 codes. This rounding to odd loses nothing: every point where a code changes is a number whose lower 17 bits are
zero, as long as a format has at most 5 mantissa bits, so an odd index says "strictly between", and an even one is
exact. The table is computed from the exact values of `Format`. It carries saturation, NaN, -0 and ties, so there is one
path for every format. Work goes in blocks whose scratch memory stays in a core's cache; nothing of the tensor's size is
allocated but the result.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from itertools import islice, pairwise
from math import prod
from typing import TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fp8graph.formats.spec import Format

T = TypeVar("T", bound=np.generic)
Tile = tuple[slice, ...]
Scale = np.float32 | NDArray[np.float32] | None

# Elements in a block. In one thread 128k is as fast, 64k takes 3 % longer, 32k 12 %, a whole array 2.6 times as long.
# Two threads ran 1.3 to 1.6 times as fast as one, but 1.2 to 1.3 times with blocks of 128k: the threads meet at the
# interpreter lock between numpy's calls (numpy 2.4.6, Python 3.11, x86-64, 2 shared cores, 2026-11).
BLOCK = 1 << 18

_SOURCES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def encode(
    values: NDArray[np.generic],
    format: Format,
    scale: Scale = None,
    *,
    threads: int = 1,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Codes of `values / scale` in `format`: one uint8 per element, in the shape of `values`, C-contiguous.

    values   float32, float16 or bfloat16, any shape and strides; converted to fp32 block by block (exact)
    scale    float32, broadcastable to `values` (per axis: `Granularity.broadcast_shape`); None is 1
    threads  how many work on it; the codes do not depend on it
    out      where to write: uint8, C-contiguous, of the shape of `values`, not overlapping it

    Exact: the codes of ONNX Runtime's QuantizeLinear for fp32 input, and for fp16 input with its scale widened to
    fp32. Raises ValueError for float64 (fp64 to fp32 to FP8 rounds twice), for other types, for a scale that is not
    float32 or does not broadcast, for an unfit `out`, and for formats other than 8-bit floats.
    """
    values = check_source(values)
    scale = _scale(scale, values.shape)
    if out is None:
        out = np.empty(values.shape, np.uint8)
    elif out.dtype != np.uint8 or out.shape != values.shape or not out.flags.c_contiguous:
        raise ValueError(f"encode: out must be C-contiguous uint8 of shape {values.shape}, got {out.dtype}{out.shape}")
    table, source, codes = _code_table(format), _at_least_1d(values), _at_least_1d(out)

    def work(tile: Tile) -> None:
        # mode="clip" writes to `out` without a copy of it; no index is out of range
        table.take(_table_index(source[tile], _part(scale, tile)), out=codes[tile].reshape(-1), mode="clip")

    _each_tile(work, codes.shape, threads)
    return out


def decode(codes: NDArray[np.generic], format: Format, scale: Scale = None, *, threads: int = 1) -> NDArray[np.float32]:
    """The numbers that `codes` stand for, times `scale`: float32, in the shape of `codes`.

    codes  uint8, or `ml_dtype(format)`, any shape and strides
    scale  as in `encode`

    Exact without a scale; with one, each product is rounded to fp32 once, as DequantizeLinear does. Raises ValueError
    for codes of another type and for a scale that is not float32 or does not broadcast.
    """
    codes = np.asarray(codes)
    if codes.dtype != np.uint8 and codes.dtype != ml_dtype(format):
        raise ValueError(f"decode: codes must be uint8 or {ml_dtype(format)}, got {codes.dtype}")
    scale = _scale(scale, codes.shape)
    out = np.empty(codes.shape, np.float32)
    table, source, numbers = _value_table(format), _at_least_1d(codes.view(np.uint8)), _at_least_1d(out)

    def work(tile: Tile) -> None:
        block, part = numbers[tile], _part(scale, tile)
        index = _SCRATCH.index[: block.size].reshape(block.shape)
        np.copyto(index, source[tile])
        table.take(index, out=block, mode="clip")
        if part is not None:
            np.multiply(block, part, out=block)

    _each_tile(work, numbers.shape, threads)
    return out


def fake_quantize(
    values: NDArray[np.generic], format: Format, scale: Scale = None, *, threads: int = 1
) -> NDArray[np.float32]:
    """`decode(encode(values, format, scale), format, scale)` in one go and bit for bit: what a Q/DQ pair leaves.

    Arguments and errors as for `encode`; the result is float32 whatever the type of `values`.
    """
    values = check_source(values)
    scale = _scale(scale, values.shape)
    out = np.empty(values.shape, np.float32)
    table, source, numbers = _pair_table(format), _at_least_1d(values), _at_least_1d(out)

    def work(tile: Tile) -> None:
        block, part = numbers[tile], _part(scale, tile)
        table.take(_table_index(source[tile], part), out=block.reshape(-1), mode="clip")
        if part is not None:
            np.multiply(block, part, out=block)

    _each_tile(work, numbers.shape, threads)
    return out


def ml_dtype(format: Format) -> np.dtype[np.generic]:
    """The ml_dtypes type whose bytes are the codes of `format`, for `codes.view(...)`.

    For viewing only: its own casts from float turn values beyond the range into NaN or infinity. Raises ValueError
    where ml_dtypes has no such type.
    """
    name = f"float8_{format.name}"
    if not hasattr(ml_dtypes, name):
        raise ValueError(f"ml_dtypes has no type {name} for format {format.name}")
    dtype: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def tiles(shape: Sequence[int], limit: int = BLOCK) -> Iterator[Tile]:
    """Cuts an array of `shape` (rank 1 or more) into blocks of at most `limit` elements, one slice per axis.

    Each block is one stretch of memory in a C-contiguous array, and they come in that order. Blocks are as even as
    whole rows allow, so none is much smaller than the others. The last slice of an axis may end beyond it.
    """
    if 0 in shape:
        return
    axis = next(i for i in range(len(shape)) if prod(shape[i + 1 :]) <= limit)
    most = max(1, limit // prod(shape[axis + 1 :]))
    step = -(-shape[axis] // -(-shape[axis] // most))
    for lead in np.ndindex(*shape[:axis]):
        for first in range(0, shape[axis], step):
            yield (
                *(slice(i, i + 1) for i in lead),
                slice(first, first + step),
                *(slice(0, n) for n in shape[axis + 1 :]),
            )


class _Scratch(threading.local):
    """Memory for one block, 4 MiB in each thread that encodes, kept from call to call.

    Allocated anew in each call it cost more than the work: with 2 MiB 480 page faults, and 1.3 ms where the codes of
    128k elements take 0.2 ms (as measured for BLOCK).
    """

    def __init__(self) -> None:
        self.quotient = np.empty(BLOCK, np.float32)
        self.sticky = np.empty(BLOCK, np.uint32)
        self.index = np.empty(BLOCK, np.intp)


_SCRATCH = _Scratch()


def _table_index(block: NDArray[np.generic], scale: Scale) -> NDArray[np.intp]:
    """Where the table holds the codes of a block under its part of the scale: intp [elements], C order.

    The result is scratch memory: valid until the next call in this thread.
    """
    size = block.size
    quotient, sticky, index = _SCRATCH.quotient[:size], _SCRATCH.sticky[:size], _SCRATCH.index[:size]
    if scale is None:
        np.copyto(quotient.reshape(block.shape), block)
    else:
        # dtype: both sides are widened first, so that the division is the fp32 one
        np.divide(block, scale, out=quotient.reshape(block.shape), dtype=np.float32)
    bits = quotient.view(np.uint32)
    # bit 16 of (lower half + 0xFFFF) is set exactly if one of the lower 16 bits is: cheaper than to compare
    np.bitwise_and(bits, 0xFFFF, out=sticky)
    np.add(sticky, 0xFFFF, out=sticky)
    np.bitwise_or(bits, sticky, out=bits)
    np.right_shift(bits, 16, out=bits)
    np.copyto(index, bits)
    return index


def _each_tile(work: Callable[[Tile], None], shape: tuple[int, ...], threads: int) -> None:
    """Calls `work` on every tile of `shape`, in one thread or several."""

    def run(first: int) -> None:
        # numpy's error state belongs to a thread, so it is set here. 0/0, x/0 and overflow are cases, not mistakes
        with np.errstate(all="ignore"):
            for tile in islice(tiles(shape), first, None, threads):
                work(tile)

    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    threads = min(threads, -(-prod(shape) // BLOCK)) or 1
    if threads == 1:
        run(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run, first) for first in range(threads)]:
            done.result()


@cache
def _code_table(format: Format) -> NDArray[np.uint8]:
    """uint8 [65536]: the code for each rounded-to-odd upper half of an fp32 pattern."""
    if format.kind != "float" or format.bits != 8 or format.mantissa > 5 or format.nan is None:
        raise ValueError(f"format {format.name} is not an 8-bit float with NaN: encoding it is not known")
    sign, infinity = 0x80, 0x7F80
    finite = [code for code in range(sign) if format.value(code) is not None]
    table = np.empty(1 << 16, np.uint8)
    first = 0
    for code, above in pairwise(finite):
        tie = _upper_half((_finite(format, code) + _finite(format, above)) / 2)
        # the tie itself is the even code's
        end = tie + (code % 2 == 0)
        table[first:end] = code
        first = end
    table[first : infinity + 1] = finite[-1]
    table[0x8000:] = table[:0x8000] | sign
    if not format.negative_zero:
        table[0x8000:][table[:0x8000] == 0] = 0
    table[infinity + 1 : 0x8000] = format.nan
    table[infinity + 1 + 0x8000 :] = format.nan | sign if format.nan | sign in format.nans else format.nan
    table.flags.writeable = False
    return table


@cache
def _value_table(format: Format) -> NDArray[np.float32]:
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
def _pair_table(format: Format) -> NDArray[np.float32]:
    """float32 [65536]: `_value_table` of `_code_table`."""
    table = _value_table(format)[_code_table(format)]
    table.flags.writeable = False
    return table


def _finite(format: Format, code: int) -> Fraction:
    value = format.value(code)
    if value is None:
        raise ValueError(f"format {format.name}: code {code} is not finite")
    return value


def _upper_half(value: Fraction) -> int:
    """The upper 16 bits of `value` in fp32; ValueError unless fp32 holds it with its lower 17 bits zero."""
    bits = int.from_bytes(struct.pack(">f", float(value)), "big")
    if Fraction(struct.unpack(">f", bits.to_bytes(4, "big"))[0]) != value or bits & 0x1FFFF:
        raise ValueError(f"{value} is not a number of 7 bits in fp32's range")
    return bits >> 16


def check_source(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """`values` as an array, or a refusal by type."""
    values = np.asarray(values)
    if values.dtype.newbyteorder("=") not in _SOURCES:
        more = "; convert it to float32 once, knowingly: it would be rounded twice" if values.dtype == float else ""
        raise ValueError(f"values must be float32, float16 or bfloat16, got {values.dtype}{more}")
    return values


def _scale(scale: Scale, shape: tuple[int, ...]) -> Scale:
    """The scale as np.float32 where it is one number, else as a view of the tensor's shape."""
    if scale is None:
        return None
    array = np.asarray(scale)
    if array.dtype != np.float32:
        raise ValueError(f"scale must be float32, got {array.dtype}; convert it once, knowingly")
    if array.size == 1:
        return np.float32(array.reshape(())[()])
    try:
        return np.broadcast_to(array, shape)
    except ValueError as error:
        raise ValueError(f"scale of shape {array.shape} does not broadcast to {shape}") from error


def _part(scale: Scale, tile: Tile) -> Scale:
    """What belongs to a tile of a scale that `_scale` has returned."""
    return scale[tile] if isinstance(scale, np.ndarray) else scale


def _at_least_1d(array: NDArray[T]) -> NDArray[T]:
    """A view of rank 1 for rank 0; tiles are slices."""
    return array.reshape(1) if array.ndim == 0 else array
