"""A weight of a checkpoint with its scale: read, judged by shape, and turned into codes that ONNX has.

    real value[i, j] = code[i, j] * scale[i // block[0], j // block[1]]        the last blocks may be cut

What a scale's shape means is decided by the shape, not by its name: compressed-tensors writes blocks as `weight_scale`,
transformers one number as `weight_scale_inv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fp8graph import formats
from fp8graph.base.errors import InputError
from fp8graph.formats.spec import Format
from fp8graph.importers.container import FLOATS, Tensor
from fp8graph.numerics import cast

# dtype in the file -> its format, and the one in the graph: engines have no FNUZ.
CODES: dict[str, tuple[str, str]] = {
    "F8_E4M3": ("e4m3fn", "e4m3fn"),
    "F8_E5M2": ("e5m2", "e5m2"),
    "F8_E4M3FNUZ": ("e4m3fnuz", "e4m3fn"),
    "F8_E5M2FNUZ": ("e5m2fnuz", "e5m2"),
}
_DEFAULT_BLOCK = 128  # DeepSeek-V3 and Qwen3-FP8, where config.json says nothing
_PIECE = 1 << 22  # elements that are looked at together
_EXPONENTS = frozenset({"F8_E8M0", "U8"})  # U8: ModelOpt stores UE8M0 as bytes


@dataclass(frozen=True)
class Weight:
    """Codes in FP8, or floats that a given scale turns into them.

    scale   float32, of the weight's rank: one number for each block
    block   elements of a block along each axis
    """

    tensor: Tensor
    format: str
    scale: NDArray[np.float32]
    block: tuple[int, ...]

    @property
    def granularity(self) -> str:
        """In words: tensor, channel, or the block's shape."""
        if self.scale.size == 1:
            return "tensor"
        if sum(size > 1 for size in self.scale.shape) == 1 and self.block[self.scale.shape.index(self.scale.size)] == 1:
            return "channel"
        return "x".join(map(str, self.block))

    def codes(self) -> NDArray[np.uint8]:
        """uint8 codes of `format`, in the tensor's shape."""
        source, form = self.tensor.read(), formats.get(self.format)
        if self.tensor.dtype in FLOATS:
            return cast.encode(_plain(source), form, self.spread())
        stored = formats.get(CODES[self.tensor.dtype][0])
        if stored == form or _same_bits(source, form):
            return np.asarray(source, np.uint8)
        return cast.encode(cast.decode(source, stored), form)

    def spread(self) -> NDArray[np.float32]:
        """The scale of every element, float32 in the tensor's shape (a view where it is one number)."""
        out: NDArray[np.float32] = self.scale
        for axis, size in enumerate(self.tensor.shape):
            if self.scale.shape[axis] > 1 and self.block[axis] > 1:
                out = np.repeat(out, self.block[axis], axis).take(range(size), axis)
        return np.broadcast_to(out, self.tensor.shape)

    def values(self) -> NDArray[np.float32]:
        """What the weight stands for: float32 in the tensor's shape, each product rounded once."""
        return cast.decode(self.codes(), formats.get(self.format), self.spread())


def weight_of(tensor: Tensor, scale: Tensor, *, amax: bool, blocks: Sequence[tuple[int, ...]]) -> Weight:
    """The weight with its given scale, or the largest magnitude that it was scaled by (`amax`).

    blocks   what config.json declares
    Raises InputError FG116: a type that is not read, NaN among the codes, a scale that is no positive number or whose
    shape fits no granularity.
    """
    if tensor.dtype not in CODES and tensor.dtype not in FLOATS:
        why = f"it is stored as {tensor.dtype}, and read are {', '.join([*CODES, *sorted(FLOATS)])}"
        _refuse("a quantized weight is stored in a way that import does not read", tensor, why)
    stored, name = CODES.get(tensor.dtype, ("", "e4m3fn"))
    form = formats.get(name)
    check_finite(tensor)
    numbers = positive(scale)
    if amax:
        numbers = numbers / np.float32(form.max)
    if stored.endswith("fnuz") and _same_bits(tensor.read(), form):
        numbers = numbers / np.float32(2)  # the bias of FNUZ is greater by one: the same bits are half as much
    grid, block = _grid(tensor, scale, numbers.shape, blocks)
    return Weight(tensor, name, numbers.reshape(grid), block)


def positive(tensor: Tensor) -> NDArray[np.float32]:
    """The numbers of a scale as float32, of a history its largest one; InputError FG116 for what is not positive and
    finite.
    """
    if tensor.dtype in _EXPONENTS:
        numbers = cast.decode(tensor.read(), formats.get("e8m0"))
    elif tensor.dtype in FLOATS:
        with np.errstate(over="ignore"):
            numbers = np.asarray(tensor.read()).astype(np.float32)
    else:
        _refuse("a scale has a type that is none", tensor, f"it is {tensor.dtype}, a float or F8_E8M0 is read")
    if tensor.name.endswith("_history") and numbers.size:
        numbers = numbers.max(keepdims=True).reshape(1)
    bad = np.flatnonzero(~((numbers > 0) & np.isfinite(numbers)))
    if not numbers.size or bad.size:
        first = f"number {bad[0]} is {_word(float(numbers.flat[bad[0]]))}" if bad.size else "it is empty"
        _refuse("a scale is no positive number", tensor, f"{first}, {bad.size} of {numbers.size} are bad")
    return numbers


def _word(number: float) -> str:
    return "NaN" if number != number else f"{number:g}"


def check_finite(tensor: Tensor) -> None:
    """Raises InputError FG116 where a weight holds NaN or an infinity. Looks at a piece at a time."""
    if tensor.dtype not in CODES and tensor.dtype not in FLOATS:
        return
    table = np.zeros(256, np.bool_)
    if tensor.dtype in CODES:
        form = formats.get(CODES[tensor.dtype][0])
        table[[code for code in form.codes if form.is_nan(code) or form.is_infinite(code)]] = True
    numbers, first, count = tensor.read().reshape(-1), -1, 0
    for begin in range(0, numbers.size, _PIECE):
        piece = numbers[begin : begin + _PIECE]
        bad = table.take(piece) if tensor.dtype in CODES else ~np.isfinite(piece)
        if bad.any():
            first = begin + int(bad.argmax()) if first < 0 else first
            count += int(bad.sum())
    if count:
        place = [int(at) for at in np.unravel_index(first, tensor.shape)]
        why = f"element {place} is not finite, {count} of {numbers.size} are NaN or infinite"
        _refuse("a weight of the checkpoint holds NaN or an infinity", tensor, why)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _same_bits(codes: NDArray[Any], form: Format) -> bool:
    """Whether FNUZ codes are codes of `form` of twice the value: none is where that has NaN or an infinity."""
    least = min(code for code in form.codes if form.is_nan(code) or form.is_infinite(code))
    return not bool(np.any((codes & 0x7F) >= least))


def _grid(
    tensor: Tensor, scale: Tensor, found: tuple[int, ...], declared: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The scale's shape in the weight's rank, and the block. The order: one number, a channel, what was declared,
    the default block, whole groups along the last axis.
    """
    shape, rank, size = tensor.shape, len(tensor.shape), int(np.prod(found, dtype=np.int64))
    if size == 1:
        return (1,) * rank, shape
    if rank and found in ((shape[0],), (shape[0],) + (1,) * (rank - 1)):
        return (shape[0],) + (1,) * (rank - 1), (1, *shape[1:])
    if len(found) == rank:
        default = [] if declared else [(_DEFAULT_BLOCK, _DEFAULT_BLOCK)]
        for wanted in [*declared, *default]:
            block = (1,) * (rank - len(wanted)) + tuple(wanted)[-rank:]
            if found == tuple(ceil(size / step) for size, step in zip(shape, block, strict=True)):
                return found, tuple(min(size, step) for size, step in zip(shape, block, strict=True))
        even = not declared and found[-1] and shape[-1] % found[-1] == 0
        if found[:-1] == shape[:-1] and even:
            return found, (1,) * (rank - 1) + (shape[-1] // found[-1],)
    sizes = " or ".join("x".join(map(str, block)) for block in declared) or f"{_DEFAULT_BLOCK}x{_DEFAULT_BLOCK}"
    why = (
        f"its shape is {list(found)}, the weight's {list(shape)}: neither one number, {shape[:1]} nor blocks of {sizes}"
    )
    _refuse("a scale has a shape that does not fit its weight", scale, why)


def _refuse(what: str, tensor: Tensor, why: str, do: str = "write or download the checkpoint anew") -> NoReturn:
    raise InputError(what, where=tensor.where, why=why, do=do, code="FG116")
