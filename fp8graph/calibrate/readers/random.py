"""Random data: only when asked for, and stamped on whatever comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.calibrate.readers.arrays import Array, InputSpec

Range = tuple[float, float]


@dataclass(frozen=True)
class Random:
    """How random data is made.

    ranges   least and largest value by input, the empty name for all others; the largest is never reached by floats
    shapes   the shape by input; of inputs in `valued`, which are read as shapes themselves, the values
    """

    seed: int = 0
    ranges: Mapping[str, Range] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    valued: Collection[str] = ()

    def label(self, count: int) -> str:
        """What plans and ranges say of such data."""
        parts = [f"random, seed {self.seed}, {count} samples"]
        parts += [f"{name or 'values'} in [{low:g}, {high:g}]" for name, (low, high) in sorted(self.ranges.items())]
        parts += [f"{name} of {'x'.join(map(str, shape))}" for name, shape in sorted(self.shapes.items())]
        return ", ".join(parts)


def feeds(inputs: Sequence[InputSpec], samples: int, batch: int | None, how: Random) -> Iterator[dict[str, Array]]:
    """Uniform floats in [0, 1), zeros and ones for integers: the same for the same seed, whatever the machine.

    Dynamic dimensions are 1 (the first: `batch`), unless `how` says otherwise. Raises UsageError FG121 for inputs that
    cannot be made up, FG101 and FG100 for ranges and shapes that do not fit the model.
    """
    _check(inputs, how)
    for index in range(samples):
        yield {spec.name: _array(_original(spec), index, batch, how) for spec in inputs if spec.required}


def _original(spec: InputSpec) -> InputSpec:
    """The input with the type that it had in the original model, so that both get the same numbers."""
    return spec if spec.stands_for is None else replace(spec, dtype=spec.stands_for)


def _check(inputs: Sequence[InputSpec], how: Random) -> None:
    specs = {spec.name: spec for spec in inputs}
    for option, given in (("--val-range", how.ranges), ("--input-shapes", how.shapes)):
        for name in given:
            if name not in specs and (name or option == "--input-shapes"):
                raise UsageError(
                    f"the model has no input '{name}'", where=option, do=did_you_mean(name, specs), code="FG101"
                )
    for name, shape in how.shapes.items():
        dims = specs[name].dims
        fits = dims is None or (
            len(dims) == len(shape) and all(d in (None, size) for d, size in zip(dims, shape, strict=True))
        )
        if name not in how.valued and not fits:
            wanted = "x".join("?" if d is None else str(d) for d in dims or ())
            raise UsageError(
                f"the input '{name}' cannot have the shape {'x'.join(map(str, shape))}",
                where="--input-shapes",
                why=f"the model says {wanted or 'a single number'}",
                do="give sizes for the axes that the model leaves open",
                code="FG100",
            )


def _array(spec: InputSpec, index: int, batch: int | None, how: Random) -> Array:
    kind = "" if spec.dtype is None else "f" if spec.dtype == ml_dtypes.bfloat16 else spec.dtype.kind
    given = how.shapes.get(spec.name)
    if spec.dtype is None or kind not in tuple("fiub") or (spec.dims is None and given is None):
        raise UsageError(
            f"no random data can be made for the input '{spec.name}'",
            where="--data random",
            why="its rank is not known" if spec.dims is None and kind else f"it holds {spec.dtype or 'no numbers'}",
            do=f"give --input-shapes '{spec.name}:SHAPE'" if spec.dims is None and kind else "give data",
            code="FG121",
        )
    if given is not None and spec.name in how.valued:
        return np.asarray(given, spec.dtype).reshape([len(given)] if spec.dims is None or len(spec.dims) else [])
    shape = [1 if d is None else d for d in spec.dims or ()] if given is None else list(given)
    if given is None and shape and spec.dims is not None and spec.dims[0] is None and batch:
        shape[0] = batch
    word = int.from_bytes(hashlib.sha256(f"{how.seed} {index} {spec.name}".encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(word))
    bounds = how.ranges.get(spec.name, how.ranges.get(""))
    if kind == "f":
        floats = generator.random(shape, np.float32)
        return (floats if bounds is None else _spread(floats, bounds, spec)).astype(spec.dtype)
    low, high = (0, 1) if bounds is None else _whole(bounds, spec)
    return generator.integers(low, high, shape, endpoint=True).astype(spec.dtype)


def _spread(floats: Array, bounds: Range, spec: InputSpec) -> Array:
    largest = float(ml_dtypes.finfo(spec.dtype).max)  # type: ignore[no-untyped-call]
    if max(map(abs, bounds)) > largest:
        raise _beyond(bounds, spec, f"{spec.dtype} ends at {largest:g}")
    return np.asarray(bounds[0] + (bounds[1] - bounds[0]) * floats.astype(np.float64))


def _whole(bounds: Range, spec: InputSpec) -> tuple[int, int]:
    if not all(float(bound).is_integer() for bound in bounds):
        raise _beyond(bounds, spec, f"{spec.dtype} holds whole numbers")
    ends = (0, 1) if spec.dtype == np.bool_ else (int(np.iinfo(spec.dtype).min), int(np.iinfo(spec.dtype).max))
    low, high = int(bounds[0]), int(bounds[1])
    if low < ends[0] or high > min(ends[1], 2**63 - 1):
        raise _beyond(bounds, spec, f"{spec.dtype} goes from {ends[0]} to {ends[1]}")
    return low, high


def _beyond(bounds: Range, spec: InputSpec, why: str) -> UsageError:
    return UsageError(
        f"the input '{spec.name}' cannot hold values in [{bounds[0]:g}, {bounds[1]:g}]",
        where="--val-range",
        why=why,
        do=f"give a range for it alone: --val-range '{spec.name}:[0,1]'",
        code="FG100",
    )
