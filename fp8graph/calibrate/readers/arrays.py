"""Arrays by input name: cut into samples, and held to what the model's inputs are.

A sample is what the model takes in one run: all of its inputs, with a whole batch. An array of the input's rank is cut
along its first axis, whose elements are called rows, into samples of the model's batch size (1 where that is dynamic);
an array with one axis more holds one sample per index; a single number is the same for every sample. All inputs must
give the same number of samples. In the code a sample is a `feed`, as runtimes call it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8graph.base.errors import InputError
from fp8graph.base.names import did_you_mean

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class InputSpec:
    """One graph input: numpy dtype (None where it is no tensor of numbers), dimensions (None where unknown).

    stands_for   the type that it had in the original model; data may be of either
    """

    name: str
    dtype: np.dtype[Any] | None
    dims: tuple[int | None, ...] | None
    required: bool = True
    stands_for: np.dtype[Any] | None = None


@dataclass(frozen=True)
class Cut:
    """How one array becomes feeds."""

    array: Array
    count: int | None  # None where the array is a single number, which every feed gets
    size: int | None  # rows in a feed; None where each index is a whole feed
    rest: int = 0

    def feed(self, index: int) -> Array:
        """The feed of this index."""
        if self.count is None:
            return self.array
        if self.size is None:
            return np.asarray(self.array[index], order="C")  # ascontiguousarray would give a number an axis
        return np.asarray(self.array[index * self.size : (index + 1) * self.size], order="C")


def cut(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str, batch: int | None) -> dict[str, Cut]:
    """Every array with how it is cut. Raises InputError FG107 where the data does not fit the model."""
    specs = {spec.name: spec for spec in inputs}
    for name in arrays:
        if name not in specs:
            raise _unfit(
                f"the data has an array '{name}', the model has no such input", where, do=did_you_mean(name, specs)
            )
    missing = [spec.name for spec in inputs if spec.required and spec.name not in arrays]
    if missing:
        raise _unfit(f"the data lacks the input '{missing[0]}'", where, do=f"add an array called '{missing[0]}'")
    cuts = {name: _cut_one(array, specs[name], where, batch) for name, array in arrays.items()}
    counts = {name: item.count for name, item in cuts.items() if item.count is not None}
    if len(set(counts.values())) > 1:
        raise _unfit(
            "the inputs give different numbers of samples",
            where,
            why=", ".join(f"{k}: {v}" for k, v in counts.items()),
            do="give every input the same number; a single number (rank 0) is for every sample",
        )
    if not count_of(cuts):
        raise _no_sample(cuts, where, batch)
    return cuts


def count_of(cuts: Mapping[str, Cut]) -> int:
    """How many feeds the arrays give; single numbers alone give one."""
    return next((item.count for item in cuts.values() if item.count is not None), 1 if cuts else 0)


def _no_sample(cuts: Mapping[str, Cut], where: str, batch: int | None) -> InputError:
    for name, item in cuts.items():
        if item.size is not None and item.rest:
            asked = f"--batch {batch}" if batch is not None else "the model"
            return _unfit(
                "the data does not fill one batch",
                where,
                why=f"{asked} takes {item.size} rows of '{name}' at a time, the data has {item.rest}",
                do=f"give --batch {item.rest} or less" if batch is not None else f"give at least {item.size} rows",
            )
    return _unfit("the data holds no sample", where, why="its arrays are empty", do="give at least one")


def feeds(cuts: Mapping[str, Cut], where: str) -> Iterator[dict[str, Array]]:
    """The feeds, one after the other; NaN or infinity in one is an InputError FG107 that says where."""
    for index in range(count_of(cuts)):
        feed = {name: item.feed(index) for name, item in cuts.items()}
        for name, array in feed.items():
            if (array.dtype.kind == "f" or array.dtype.name == "bfloat16") and not np.isfinite(array).all():
                raise _unfit(
                    f"the input '{name}' holds a NaN or an infinity", f"{where}, sample {index}", do="clean the data"
                )
        yield feed


def _cut_one(array: Array, spec: InputSpec, where: str, batch: int | None) -> Cut:
    if spec.dtype is None:
        raise _unfit(f"the input '{spec.name}' is no tensor of numbers or strings", where)
    if array.dtype != spec.dtype:
        array = _same_kind(array, spec, where)
    if spec.dims is None or array.ndim == len(spec.dims) + 1:
        _check_dims(array.shape[1:], spec, where)
        if array.ndim == 0:
            return Cut(array, None, None)
        return Cut(array, array.shape[0], None)
    if array.ndim == len(spec.dims) == 0:
        return Cut(array, None, None)
    if array.ndim != len(spec.dims):
        raise _unfit(
            f"the input '{spec.name}' has rank {array.ndim}",
            where,
            why=_ranks(len(spec.dims)),
        )
    size = batch or spec.dims[0] or 1
    if batch is not None and spec.dims[0] not in (None, batch):
        raise _unfit(
            f"--batch {batch} does not fit the input '{spec.name}'", where, why=f"its batch size is {spec.dims[0]}"
        )
    _check_dims((size, *array.shape[1:]), spec, where)
    return Cut(array, array.shape[0] // size, size, array.shape[0] % size)


def _ranks(rank: int) -> str:
    if rank == 0:
        return "the model wants a single number: rank 0 (for every sample), or rank 1 (one sample per index)"
    return f"the model wants rank {rank} (cut along the first axis), or {rank + 1} (one sample per index)"


def _check_dims(shape: tuple[int, ...], spec: InputSpec, where: str) -> None:
    if spec.dims is not None and any(
        want is not None and want != have for want, have in zip(spec.dims, shape, strict=True)
    ):
        wanted = "x".join("?" if d is None else str(d) for d in spec.dims)
        raise _unfit(
            f"the input '{spec.name}' has the wrong shape",
            where,
            why=f"the model wants {wanted}, a sample has {'x'.join(map(str, shape))}",
        )


def _same_kind(array: Array, spec: InputSpec, where: str) -> Array:
    assert spec.dtype is not None
    if spec.dtype.kind == "O" and array.dtype.kind in "US":
        return array.astype(object)
    for kind in (spec.dtype, spec.stands_for):
        if kind is not None and array.dtype.newbyteorder("=") == kind:
            return array.astype(kind)
        if kind is not None and _nameless(array) and kind.kind == "V" and kind.itemsize == array.dtype.itemsize:
            return array.view(kind)
    do = f"convert it: array.astype('{spec.dtype}')"
    if spec.dtype.kind == "V":  # no type of numpy's own
        do = f"import ml_dtypes, and convert it: array.astype(ml_dtypes.{spec.dtype})"
    if _nameless(array):
        do = f"{do}, before it is saved: .npy files hold bytes without a name of types that are not numpy's own"
    raise _unfit(f"the input '{spec.name}' has type {array.dtype}", where, why=f"the model wants {spec.dtype}", do=do)


def _nameless(array: Array) -> bool:
    """Whether elements are bytes without a meaning: what numpy makes of bf16 and FP8 when it saves them."""
    return array.dtype.kind == "V" and array.dtype.names is None and array.dtype.name.startswith("void")


def _unfit(what: str, where: str, why: str = "", do: str = "give data for this model") -> InputError:
    return InputError(what, where=where, why=why, do=do, code="FG107")
