"""What a checkpoint holds, sorted: parameters with their scales, scales of caches, and what belongs to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8graph.base.errors import InputError
from fp8graph.importers.checkpoint import Checkpoint
from fp8graph.importers.container import FLOATS, Tensor
from fp8graph.importers.families import check_family
from fp8graph.importers.suffixes import orphan, part_of
from fp8graph.importers.weights import CODES, Weight, check_finite, positive, weight_of

_E4M3_MAX = np.float32(448)  # what activations are rounded to in every scheme that gives them a scale


@dataclass(frozen=True)
class Parameter:
    """A tensor that a graph may hold. `weight` where it is quantized; `input_scale` where activations are, too."""

    name: str
    tensor: Tensor
    weight: Weight | None = None
    input_scale: np.float32 | None = None
    parts: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def values(self) -> NDArray[Any]:
        """What it stands for; float32 where it is quantized, else as stored."""
        return self.weight.values() if self.weight is not None else self.tensor.read()


@dataclass(frozen=True)
class Contents:
    """A checkpoint, sorted.

    caches    scales of caches of keys and values by name
    orphans   scales whose weight is missing
    """

    parameters: Mapping[str, Parameter]
    caches: Mapping[str, float] = field(default_factory=dict)
    orphans: tuple[str, ...] = ()


def contents_of(checkpoint: Checkpoint) -> Contents:
    """Reads every number once, one tensor at a time. Raises InputError FG116 and FG117."""
    tensors = checkpoint.tensors
    parts: dict[str, dict[str, Tensor]] = {}
    caches: dict[str, float] = {}
    plain: list[str] = []
    for name, tensor in tensors.items():
        found = part_of(name, tensors)
        if found is None:
            plain.append(name)
            continue
        row, of = found
        if row.role == "refused":
            raise _refused(tensor, "its weights are quantized in a way that import does not read", row.writer)
        if row.role == "cache":
            caches[name] = _one(tensor)
            continue
        key = f"{row.role}:{row.ending}" if row.role == "zero" else row.role
        other = parts.setdefault(of, {}).setdefault(key, tensor)
        if other is not tensor:
            raise _refused(tensor, f"the weight '{of}' has two scales", f"'{other.name}' is the other one")
    check_family(checkpoint.config, plain, str(checkpoint.path))
    blocks = list(checkpoint.declared.blocks)
    orphans = tuple(name for name in plain if orphan(name))
    left = [name for name in plain if not orphan(name)]
    made = {name: _parameter(tensors[name], parts.get(name, {}), blocks) for name in left}
    return Contents(made, caches, orphans)


def _parameter(tensor: Tensor, parts: Mapping[str, Tensor], blocks: list[tuple[int, ...]]) -> Parameter:
    for key, zero in parts.items():
        if key.startswith("zero:") and np.any(zero.read()):
            raise _refused(zero, "a zero point is not zero", "codes in FP8 have none")
    scale, amax = parts.get("scale"), _seen(parts.get("amax"))
    given = scale or amax
    weight = None
    if given is not None:
        weight = weight_of(tensor, given, amax=scale is None, blocks=blocks)
    elif tensor.dtype in CODES:
        raise _refused(tensor, "a weight in FP8 has no scale", f"no tensor '{tensor.name}_scale' or the like is there")
    else:
        check_finite(tensor)
    names = tuple(sorted(part.name for part in parts.values()))
    return Parameter(tensor.name, tensor, weight, _input_scale(parts), names)


def _input_scale(parts: Mapping[str, Tensor]) -> np.float32 | None:
    if (given := parts.get("input-scale")) is not None:
        return np.float32(_one(given))
    seen = _seen(parts.get("input-amax"))
    return np.float32(positive(seen).max() / _E4M3_MAX) if seen is not None else None


def _seen(amax: Tensor | None) -> Tensor | None:
    """None for a history that is all zero: nothing went through it yet."""
    return amax if amax is not None and (amax.dtype not in FLOATS or bool(np.any(amax.read()))) else None


def _one(tensor: Tensor) -> float:
    numbers = positive(tensor)
    if numbers.size != 1:
        raise _refused(tensor, "a scale has a shape that is not read here", f"{list(tensor.shape)}, and one number is")
    return float(numbers.reshape(())[()])


def _refused(tensor: Tensor, what: str, why: str) -> InputError:
    return InputError(what, where=tensor.where, why=why, do="write or download the checkpoint anew", code="FG116")
