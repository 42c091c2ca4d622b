"""Codes of fewer than 8 bits, packed as ONNX stores them in `raw_data` and onnx_ir in a PackedTensor.

    8 bits   a byte each
    4 bits   two a byte, the first in the low half
    6 bits   four in three bytes, a stream of bits from the lowest on

The last byte is filled up with zeros. Source: onnx.proto of ONNX 1.23, TensorProto.raw_data. Of onnx_ir both
`Tensor(codes.view(ml_dtype(format)))`, which packs when it is written, and `PackedTensor(pack(codes, format))` hold the
same tensor; both unpack in `numpy()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from fp8graph.formats.spec import Format

# Elements at a time where temporaries are needed; a multiple of 4.
_CHUNK = 1 << 18


def packed_size(elements: int, format: Format) -> int:
    """Bytes that `elements` codes take: ceil(elements * bits / 8)."""
    return -(-elements * format.bits // 8)


def pack(codes: NDArray[np.uint8], format: Format) -> NDArray[np.uint8]:
    """Codes, one a byte as `encode` gives them, packed: uint8 [packed_size], in C order.

    Raises ValueError for codes that are not uint8 or not of the format, and for widths other than 4, 6 and 8.
    """
    if codes.dtype != np.uint8:
        raise ValueError(f"pack: codes must be uint8, got {codes.dtype}")
    _check_width(format)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size and int(flat.max()) not in format.codes:
        raise ValueError(f"pack: {format.name} has no code {int(flat.max())}")
    if format.bits == 8:
        return flat.copy()
    packed = np.zeros(packed_size(flat.size, format), np.uint8)
    if format.bits == 4:
        packed[:] = flat[::2]
        for first in range(0, flat.size // 2, _CHUNK):
            high = flat[2 * first + 1 : 2 * (first + _CHUNK) : 2]
            packed[first : first + len(high)] |= high << 4
        return packed
    for first in range(0, flat.size, _CHUNK):
        chunk = flat[first : first + _CHUNK]
        groups = np.zeros((-(-len(chunk) // 4), 4), np.uint8)
        groups.reshape(-1)[: len(chunk)] = chunk
        a, b, c, d = groups.T
        triples = np.stack([a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2], axis=1).reshape(-1)
        start, size = first * 6 // 8, packed_size(len(chunk), format)
        packed[start : start + size] = triples[:size]
    return packed


def unpack(packed: NDArray[np.uint8], format: Format, shape: Sequence[int]) -> NDArray[np.uint8]:
    """The codes of a tensor of `shape`, one a byte: what `pack` was given.

    packed  uint8, C-contiguous, such as np.frombuffer(raw_data, np.uint8); bits that fill up the last byte are not read

    Raises ValueError for bytes that are not uint8 or not as many as `shape` takes, and for other widths than `pack`.
    """
    if packed.dtype != np.uint8:
        raise ValueError(f"unpack: bytes must be uint8, got {packed.dtype}")
    _check_width(format)
    size, data = prod(shape), packed.reshape(-1)
    if data.size != packed_size(size, format):
        raise ValueError(
            f"unpack: {size} codes of {format.name} are {packed_size(size, format)} bytes, got {data.size}"
        )
    if format.bits == 8:
        return data.copy().reshape(shape)
    codes = np.empty(size, np.uint8)
    if format.bits == 4:
        np.bitwise_and(data, 0x0F, out=codes[::2])
        np.right_shift(data[: size // 2], 4, out=codes[1::2])
        return codes.reshape(shape)
    for first in range(0, size, _CHUNK):
        count = min(_CHUNK, size - first)
        triples = np.zeros((-(-count // 4), 3), np.uint8)
        bytes_ = data[first * 6 // 8 :][: packed_size(count, format)]
        triples.reshape(-1)[: len(bytes_)] = bytes_
        a, b, c = triples.T
        groups = np.stack([a, a >> 6 | b << 2, b >> 4 | c << 4, c >> 2], axis=1).reshape(-1)
        np.bitwise_and(groups[:count], 0x3F, out=codes[first : first + count])
    return codes.reshape(shape)


def _check_width(format: Format) -> None:
    if format.bits not in (4, 6, 8):
        raise ValueError(f"format {format.name}: packing codes of {format.bits} bits is not known")
