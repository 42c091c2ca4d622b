"""Scales per block, spread over what they scale: a tile at a time, or a whole tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fp8graph.formats.spec import Granularity

Tile = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class BlockScale:
    """The scales of a tensor of `shape`: float32, one per block, of the tensor's rank; blocks of `sizes`."""

    scales: NDArray[np.float32]
    sizes: tuple[int, ...]
    shape: tuple[int, ...]

    def part(self, tile: Tile) -> NDArray[np.float32]:
        """The scales of one tile: float32, broadcastable to it. At most as large as the tile."""
        part, repeated = self.scales, []
        for axis, (along, size, length) in enumerate(zip(tile, self.sizes, self.shape, strict=True)):
            if part.shape[axis] == 1:
                continue
            start, stop = along.start, min(along.stop, length)
            first = start // size
            part = part[(slice(None),) * axis + (slice(first, -(-stop // size)),)]
            if size > 1:
                repeated.append((axis, size, slice(start - first * size, stop - first * size)))
        for axis, size, inside in reversed(repeated):
            part = np.repeat(part, size, axis)[(slice(None),) * axis + (inside,)]
        return part


def block_scale(scale: NDArray[np.float32], granularity: Granularity, shape: Sequence[int]) -> BlockScale:
    """Scales in the ONNX shape (`granularity.scale_shape`) of a tensor of `shape`.

    Raises ValueError for a scale that is not float32 or of another shape, and for axes that `shape` does not have.
    """
    array, wanted = np.asarray(scale), granularity.scale_shape(shape)
    if array.dtype != np.float32:
        raise ValueError(f"scale must be float32, got {array.dtype}; convert it once, knowingly")
    if array.shape != wanted:
        raise ValueError(f"scale of shape {array.shape} for a tensor of {tuple(shape)}: expected {wanted}")
    return BlockScale(array.reshape(granularity.counts(shape)), granularity.sizes(shape), tuple(shape))


def expand(scale: NDArray[np.float32], granularity: Granularity, shape: Sequence[int]) -> NDArray[np.float32]:
    """The scale of every element: float32 of `shape`, read-only.

        PerAxis(0)           [64], [64, 3]       -> [64, 3]     a view
        PerBlock(0, 32, 2)   [25, 10], [784, 10] -> [784, 10]   each row 32 times, the last 16 times

    A view of `scale` where blocks take whole dimensions or one index; else an array of the tensor's size: casts do not
    need it, they take `granularity` and go tile by tile. Raises as `block_scale` does.
    """
    whole = block_scale(scale, granularity, shape).part(tuple(slice(0, length) for length in shape))
    return np.broadcast_to(whole, tuple(shape))
