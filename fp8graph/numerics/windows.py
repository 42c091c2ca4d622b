"""The rows that a product sums over: what a Conv's window, a MatMul or a Gemm multiplies with each output channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Window:
    """How a product reads its activation.

    axis      of the activation, the one that is summed over: channels of a Conv
    kernel    sizes of a Conv's window, empty for MatMul and Gemm; strides, dilations and pads (begins, then ends) as
              ONNX has them
    groups    of a Conv
    same      `upper` or `lower`: pads follow from the activation's size (auto_pad SAME_UPPER, SAME_LOWER)
    """

    axis: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    groups: int = 1
    same: Literal["", "upper", "lower"] = ""

    def rows(self, activation: Array, at: NDArray[np.int64] | None = None) -> Array:
        """Rows of one activation: [groups, rows, K], K as a weight's rows have it (channel, then window).

            MatMul   [2, 5, 64], axis -1                    -> [1, 10, 64]
            Conv     [1, 16, 8, 8], kernel 3x3, pads 1      -> [1, 64, 144]
            the same with groups 16                         -> [16, 64, 9]

        at   only the rows with these indices, in this order
        """
        if not self.kernel:
            flat = np.moveaxis(activation, self.axis, -1)
            flat = flat.reshape(1, -1, flat.shape[-1])
            return flat if at is None else flat[:, at]
        seen = self._seen(activation)
        batch, channels, *places = seen.shape[: 2 + len(self.kernel)]
        count = batch * int(np.prod(places))
        index = np.unravel_index(np.arange(count) if at is None else at, (batch, *places))
        picked = seen[(index[0], slice(None), *index[1:])]  # type: ignore[arg-type] # [rows, channels, *kernel]
        grouped = picked.reshape(len(picked), self.groups, channels // self.groups * int(np.prod(self.kernel)))
        return np.ascontiguousarray(grouped.transpose(1, 0, 2))

    def count(self, shape: Sequence[int]) -> int:
        """How many rows an activation of that shape has."""
        if not self.kernel:
            total = int(np.prod(shape))
            return total // max(1, shape[self.axis])
        ends = self._ends(shape[2:])
        places = [
            (shape[2 + i] + sum(ends[i]) - self._reach(i)) // self.strides[i] + 1 for i in range(len(self.kernel))
        ]
        return int(shape[0] * np.prod([max(0, place) for place in places]))

    def _reach(self, i: int) -> int:
        return (self.kernel[i] - 1) * self.dilations[i] + 1

    def _ends(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """What is put before and behind each axis."""
        rank = len(self.kernel)
        if not self.same:
            return [(self.pads[i], self.pads[i + rank]) for i in range(rank)]
        whole = [
            max(0, (-(-sizes[i] // self.strides[i]) - 1) * self.strides[i] + self._reach(i) - sizes[i])
            for i in range(rank)
        ]
        more = 1 if self.same == "lower" else 0
        return [((total + more) // 2, total - (total + more) // 2) for total in whole]

    def _seen(self, activation: Array) -> Array:
        """A view with the window's elements last: [batch, channels, *places, *kernel]."""
        rank = len(self.kernel)
        padded = np.pad(activation, [(0, 0), (0, 0), *self._ends(activation.shape[2:])])
        reach = tuple(self._reach(i) for i in range(rank))
        view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
        steps = [slice(None, None, step) for step in self.strides]
        inner = [slice(None, None, step) for step in self.dilations]
        return view[(slice(None), slice(None), *steps, *inner)]
