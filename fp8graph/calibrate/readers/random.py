"""Random data: only when asked for, and stamped on whatever comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from fp8graph.base.errors import UsageError
from fp8graph.calibrate.readers.arrays import Array, InputSpec


def feeds(inputs: Sequence[InputSpec], samples: int, seed: int, batch: int | None) -> Iterator[dict[str, Array]]:
    """Uniform floats in [0, 1), zeros and ones for integers: the same for the same seed, whatever the machine.

    Dynamic dimensions are 1 (the first: `batch`). Raises UsageError FG121 for inputs that cannot be made up.
    """
    for index in range(samples):
        yield {spec.name: _array(spec, seed, index, batch) for spec in inputs if spec.required}


def _array(spec: InputSpec, seed: int, index: int, batch: int | None) -> Array:
    if spec.dtype is None or spec.dims is None or spec.dtype.kind not in "fiub":
        raise UsageError(
            f"no random data can be made for the input '{spec.name}'",
            where="--data random",
            do="give data",
            code="FG121",
        )
    shape = [1 if d is None else d for d in spec.dims]
    if shape and spec.dims[0] is None and batch:
        shape[0] = batch
    word = int.from_bytes(hashlib.sha256(f"{seed} {index} {spec.name}".encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(word))
    if spec.dtype.kind == "f":
        return generator.random(shape, np.float32).astype(spec.dtype)
    return generator.integers(0, 2, shape).astype(spec.dtype)
