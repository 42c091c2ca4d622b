"""Casts between floats and codes of at most 8 bits: the only place that encodes.

    encode          codes = RNE(saturate(fl32(x / s)))       QuantizeLinear of ONNX, opset 19 on, saturate=1
    decode          x = fl32(decode(q) * fl32(s))            DequantizeLinear
    fake_quantize   decode(encode(x))                        the pair

RNE is round to nearest, ties to the even code; fl32 is one fp32 operation. Dividing, and not multiplying by 1/s, is
what QuantizeLinear says and what ONNX Runtime and onnx.reference do bit for bit; the reciprocal gives other codes now
and then. NaN stays NaN with its sign, an infinity becomes the largest finite value (of integers -8 and -128 are the
least), -0 stays where the format has it. A bad scale is not caught here: 0 gives the largest value (or NaN for 0/0),
NaN gives NaN.

A NaN that the format has no code for is refused: E2M1, E2M3, E3M2 and the integers. ONNX leaves it open, and those who
take it differ (ml_dtypes writes -0, NVIDIA's conversion the largest value, ONNX Runtime the least integer).

How: y = fl32(x / s) as 32 bits indexes a table (`fp8graph.numerics.tables`), one path for every format. Work goes in
blocks whose scratch memory stays in a core's cache; nothing of the tensor's size is allocated but the result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import prod
from typing import TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fp8graph.formats.spec import Format, Granularity
from fp8graph.numerics.blocks import BlockScale, Tile, block_scale
from fp8graph.numerics.tables import CodeTable, RoundMode, code_table, pair_table, value_table

T = TypeVar("T", bound=np.generic)
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
    granularity: Granularity | None = None,
    *,
    threads: int = 1,
    out: NDArray[np.uint8] | None = None,
    round_mode: RoundMode = "up",
) -> NDArray[np.uint8]:
    """Codes of `values / scale` in `format`: one uint8 per element, in the shape of `values`, C-contiguous.

    values       float32, float16 or bfloat16, any shape and strides; converted to fp32 block by block (exact)
    scale        float32; None is 1
    granularity  what each number of `scale` is for, which then has its ONNX shape (`Granularity.scale_shape`); None:
                 `scale` broadcasts to `values`
    threads      how many work on it; the codes do not depend on it
    out          where to write: uint8, C-contiguous, of the shape of `values`, not overlapping it
    round_mode   for powers of two (E8M0) only, as Cast's attribute in ONNX: `up` to the next power, `down`, or
                 `nearest` with ties up. What is below 2^-127, 0 and -0 too, becomes 2^-127; what is negative NaN.

    Codes of fewer than 8 bits lie in the low bits of their byte (`fp8graph.numerics.packing` packs them); those of
    integers are their low bits in two's complement.

    Exact: the codes of ONNX Runtime's QuantizeLinear for fp32 input, and for fp16 input with its scale widened to
    fp32. Raises ValueError for float64 (fp64 to fp32 to FP8 rounds twice), for other types, for a scale that is not
    float32 or not of the shape wanted, for an unfit `out`, for formats of more than 8 bits, and for a NaN (or 0/0)
    where the format has none.
    """
    values = check_source(values)
    spread = _scale(scale, values.shape, granularity)
    if out is None:
        out = np.empty(values.shape, np.uint8)
    elif out.dtype != np.uint8 or out.shape != values.shape or not out.flags.c_contiguous:
        raise ValueError(f"encode: out must be C-contiguous uint8 of shape {values.shape}, got {out.dtype}{out.shape}")
    table, source, codes = code_table(format, round_mode), _at_least_1d(values), _at_least_1d(out)

    def work(tile: Tile) -> None:
        index = _table_index(source[tile], _part(spread, tile), table, format)
        # mode="clip" writes to `out` without a copy of it; no index is out of range
        table.codes.take(index, out=codes[tile].reshape(-1), mode="clip")

    _each_tile(work, codes.shape, threads)
    return out


def decode(
    codes: NDArray[np.generic],
    format: Format,
    scale: Scale = None,
    granularity: Granularity | None = None,
    *,
    threads: int = 1,
) -> NDArray[np.float32]:
    """The numbers that `codes` stand for, times `scale`: float32, in the shape of `codes`.

    codes               uint8, one code a byte (unpacked), or `ml_dtype(format)`; any shape and strides
    scale, granularity  as in `encode`

    Exact without a scale; with one, each product is rounded to fp32 once, as DequantizeLinear does. Raises ValueError
    for codes of another type or that the format does not have, and for a scale that is not float32 or not of the shape
    wanted.
    """
    codes = np.asarray(codes)
    own = codes.dtype != np.uint8 and codes.dtype == ml_dtype(format)
    if codes.dtype != np.uint8 and not own:
        raise ValueError(f"decode: codes must be uint8 or {ml_dtype(format)}, got {codes.dtype}")
    spread = _scale(scale, codes.shape, granularity)
    out = np.empty(codes.shape, np.float32)
    table, source, numbers = value_table(format), _at_least_1d(codes.view(np.uint8)), _at_least_1d(out)

    def work(tile: Tile) -> None:
        block, part = numbers[tile], _part(spread, tile)
        index = _SCRATCH.index[: block.size].reshape(block.shape)
        np.copyto(index, source[tile])
        if len(table) < 256 and own:
            np.bitwise_and(index, len(table) - 1, out=index)  # an int4 may fill its byte with its sign
        elif len(table) < 256 and int(index.max()) >= len(table):
            raise ValueError(f"decode: {format.name} has no code {int(index.max())}; are these codes packed?")
        table.take(index, out=block, mode="clip")
        if part is not None:
            np.multiply(block, part, out=block)

    _each_tile(work, numbers.shape, threads)
    return out


def fake_quantize(
    values: NDArray[np.generic],
    format: Format,
    scale: Scale = None,
    granularity: Granularity | None = None,
    *,
    threads: int = 1,
) -> NDArray[np.float32]:
    """`decode(encode(values))`, with the other arguments for both, in one go and bit for bit: what a Q/DQ pair leaves.

    Arguments and errors as for `encode`; the result is float32 whatever the type of `values`.
    """
    values = check_source(values)
    spread = _scale(scale, values.shape, granularity)
    out = np.empty(values.shape, np.float32)
    codes, source, numbers = code_table(format), _at_least_1d(values), _at_least_1d(out)
    table = pair_table(format)

    def work(tile: Tile) -> None:
        block, part = numbers[tile], _part(spread, tile)
        table.take(_table_index(source[tile], part, codes, format), out=block.reshape(-1), mode="clip")
        if part is not None:
            np.multiply(block, part, out=block)

    _each_tile(work, numbers.shape, threads)
    return out


def ml_dtype(format: Format) -> np.dtype[np.generic]:
    """The type whose bytes are the codes of `format`, one a byte, for `codes.view(...)`: of ml_dtypes, int8 of numpy.

    For viewing only: its own casts from float turn values beyond the range into NaN or infinity. Raises ValueError
    where there is no such type.
    """
    if format.kind == "int":
        names = [format.name]
    else:
        # as ml_dtypes spells them: float8_e4m3fn, float6_e2m3fn, float4_e2m1fn, float8_e8m0fnu
        names = [f"float{format.bits}_{format.name}{tail}" for tail in ("", "fn", "fnu")]
    for name in names:
        found = getattr(ml_dtypes, name, None) or (np.int8 if name == "int8" else None)
        if found is not None:
            dtype: np.dtype[np.generic] = np.dtype(found)
            return dtype
    raise ValueError(f"ml_dtypes has no type {names[0]} for format {format.name}")


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


def _table_index(block: NDArray[np.generic], scale: Scale, table: CodeTable, format: Format) -> NDArray[np.intp]:
    """Where the table holds the codes of a block under its part of the scale: intp [elements], C order.

    The result is scratch memory: valid until the next call in this thread. ValueError for a NaN that has no code.
    """
    size = block.size
    quotient, sticky, index = _SCRATCH.quotient[:size], _SCRATCH.sticky[:size], _SCRATCH.index[:size]
    if scale is None:
        np.copyto(quotient.reshape(block.shape), block)
    else:
        # dtype: both sides are widened first, so that the division is the fp32 one
        np.divide(block, scale, out=quotient.reshape(block.shape), dtype=np.float32)
    if not table.nan and np.isnan(quotient.max()):
        raise ValueError(f"format {format.name} has no NaN, and one is among the values (divided by their scale)")
    bits, below = quotient.view(np.uint32), (1 << table.shift) - 1
    # bit 16 of (lower half + 0xFFFF) is set exactly if one of the lower 16 bits is: cheaper than to compare
    np.bitwise_and(bits, below, out=sticky)
    np.add(sticky, below, out=sticky)
    np.bitwise_or(bits, sticky, out=bits)
    np.right_shift(bits, table.shift, out=bits)
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


def check_source(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """`values` as an array, or a refusal by type."""
    values = np.asarray(values)
    if values.dtype.newbyteorder("=") not in _SOURCES:
        more = "; convert it to float32 once, knowingly: it would be rounded twice" if values.dtype == float else ""
        raise ValueError(f"values must be float32, float16 or bfloat16, got {values.dtype}{more}")
    return values


def _scale(scale: Scale, shape: tuple[int, ...], granularity: Granularity | None) -> Scale | BlockScale:
    """The scale as np.float32 where it is one number, as blocks where it has a granularity, else as a view of the
    tensor's shape."""
    if scale is None:
        return None
    array = np.asarray(scale)
    if array.dtype != np.float32:
        raise ValueError(f"scale must be float32, got {array.dtype}; convert it once, knowingly")
    spread = None if granularity is None else block_scale(array, granularity, shape)
    if array.size == 1:
        return np.float32(array.reshape(())[()])
    if spread is not None:
        return spread
    try:
        return np.broadcast_to(array, shape)
    except ValueError as error:
        raise ValueError(f"scale of shape {array.shape} does not broadcast to {shape}") from error


def _part(scale: Scale | BlockScale, tile: Tile) -> Scale:
    """What belongs to a tile of a scale that `_scale` has returned."""
    if isinstance(scale, BlockScale):
        return scale.part(tile)
    return scale[tile] if isinstance(scale, np.ndarray) else scale


def _at_least_1d(array: NDArray[T]) -> NDArray[T]:
    """A view of rank 1 for rank 0; tiles are slices."""
    return array.reshape(1) if array.ndim == 0 else array
