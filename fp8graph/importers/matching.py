"""Which parameter of a checkpoint is which initializer of a graph: by name, by the exporter's metadata, by value.

    1. the initializer's name, or that of an Identity on it, with or without a prefix that all share
    2. what the exporter folded into it; then the module of a node that reads it
    3. its values: equal to another initializer that is known (a tied weight that was copied), else near to what the
       checkpoint's tensor stands for, the transpose too

An initializer can stand for several parameters where an exporter merged equal ones: a reader whose module says so gets
its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fp8graph.graph import tensors, walk
from fp8graph.importers.names import KIND, Prefixes, folded_names, own_names, scope_names
from fp8graph.importers.parameters import Parameter

Use = tuple[ir.Node, int]
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NEAR = 0.08  # relative error: E5M2 rounds by 5 % (rms), E4M3 by 2.6 %
_SAME = 0.005  # bf16 rounds by 0.2 %
_SAMPLE = 16  # positions along an axis that values are compared at first


@dataclass(frozen=True)
class Seat:
    """A parameter and its initializer. `readers` are those that it is for, None for all; `by` says how it was found."""

    parameter: Parameter
    value: ir.Value
    transposed: bool
    by: str
    readers: tuple[Use, ...] | None = None


@dataclass
class Matched:
    """What found its place, and what did not.

    shared   parameters that are equal to the one whose initializer they share: name to name
    misfits  sentences about names that agree where shapes do not
    """

    seats: list[Seat] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    unfilled: list[ir.Value] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)


def match(model: ir.Model, parameters: Mapping[str, Parameter]) -> Matched:
    """Finds a place for every parameter. The model is not changed."""
    work = _Matching(model, parameters)
    work.by_name()
    work.by_metadata()
    work.split_merged()
    work.by_value()
    done = work.done
    claimed = {seat.parameter.name for seat in done.seats} | set(done.shared)
    done.unused = [name for name in parameters if name not in claimed]
    done.unfilled = [value for value in work.values if value not in work.seated and _is_parameter(value)]
    return done


def turned(array: NDArray[Any], transposed: bool) -> NDArray[Any]:
    """The last two axes exchanged, where asked."""
    return array.swapaxes(-1, -2) if transposed else array


class _Matching:
    def __init__(self, model: ir.Model, parameters: Mapping[str, Parameter]) -> None:
        self.parameters, self.done = parameters, Matched()
        self.seated: dict[ir.Value, Seat] = {}
        self.values = [
            value
            for _, graph in walk.graphs(model)
            if isinstance(graph, ir.Graph)
            for value in graph.initializers.values()
            if tensors.is_constant(value) and value.dtype in tensors.ONNX.values() and value.const_value is not None
        ]
        self.scopes = {use: scope_names(value, *use) for value in self.values for use in value.uses()}
        said = [name for value in self.values for name in (*own_names(value), *folded_names(value))]
        said += [name for names in self.scopes.values() for name in names]
        self.prefixes = Prefixes(said, parameters)

    def found(self, name: str) -> Parameter | None:
        full = self.prefixes.find(name)
        return self.parameters[full] if full is not None else None

    def seat(self, value: ir.Value, parameter: Parameter, by: str, guess: bool) -> bool:
        """Places a parameter where its shape fits; whether it does."""
        transposed = _orientation(value, parameter, guess)
        if transposed is None:
            return False
        self.seated[value] = Seat(parameter, value, transposed, by)
        self.done.seats.append(self.seated[value])
        return True

    def by_name(self) -> None:
        """A name that is kept speaks for the whole tensor as it was: one of another shape is a misfit."""
        for value in self.values:
            for name in own_names(value):
                parameter = self.found(name)
                if parameter is None or value in self.seated:
                    continue
                if not self.seat(value, parameter, "name", guess=False):
                    ours, theirs = list(value.const_value.shape), list(parameter.shape)  # type: ignore[union-attr]
                    self.done.misfits.append(f"'{value.name}' is {ours} in the model, '{parameter.name}' {theirs}")

    def by_metadata(self) -> None:
        for value in self.values:
            for name in folded_names(value) if value not in self.seated else ():
                if (parameter := self.found(name)) is not None:
                    self.seat(value, parameter, "folded_from", guess=True)
            for use in value.uses():
                if value in self.seated:
                    break
                for name in self.scopes[use]:
                    parameter = self.found(name)
                    guess = use[0].op_type == "MatMul" and use[1] == 1
                    if parameter is not None and self.seat(value, parameter, "scope", guess):
                        break

    def split_merged(self) -> None:
        """Readers whose module names a parameter that has no place yet."""
        claimed = {seat.parameter.name for seat in self.done.seats}
        wanted: dict[tuple[ir.Value, str], list[Use]] = {}
        for value in self.values:
            for use in value.uses() if value in self.seated else ():
                for name in self.scopes[use]:
                    parameter = self.found(name)
                    if parameter is not None and parameter.shape == self.seated[value].parameter.shape:
                        if parameter.name not in claimed:
                            wanted.setdefault((value, parameter.name), []).append(use)
                        break
        for (value, name), uses in wanted.items():
            parameter, first = self.parameters[name], self.seated[value]
            same = (parameter.weight is None) == (first.parameter.weight is None)
            if same and parameter.input_scale == first.parameter.input_scale and _equal(parameter, first.parameter):
                self.done.shared[name] = first.parameter.name
            else:
                self.done.seats.append(Seat(parameter, value, first.transposed, "scope", tuple(uses)))

    def by_value(self) -> None:
        left = [value for value in self.values if value not in self.seated and _is_parameter(value)]
        for value in left:
            twin = next((seat for other, seat in self.seated.items() if _is_copy(value, other)), None)
            if twin is not None:
                self.seat(value, twin.parameter, "value", guess=not twin.transposed)
        left = [value for value in left if value not in self.seated]
        claimed = {seat.parameter.name for seat in self.done.seats} | set(self.done.shared)
        free = [item for name, item in self.parameters.items() if name not in claimed] if left else []
        samples = {item.name: _sample(item.values()) for item in free if len(item.shape)}
        for value in left:
            best = min(self._near(value, free, samples), key=lambda item: item[0], default=None)
            if best is not None and self.seat(value, best[1], "value", best[2]):
                free = [item for item in free if item is not best[1]]

    @staticmethod
    def _near(
        value: ir.Value, free: list[Parameter], samples: Mapping[str, NDArray[Any]]
    ) -> Iterator[tuple[float, Parameter, bool]]:
        """Parameters that the value is near to, with the relative error and whether it is transposed."""
        array = tensors.read(value)
        for item in free:
            for transposed in _fitting(array.shape, item.shape):
                limit = _NEAR if item.weight is not None else _SAME
                mine = turned(array, transposed)
                if _distance(_sample(mine), samples[item.name]) <= limit:
                    error = _distance(mine, item.values())
                    if error <= limit:
                        yield error, item, transposed
        tensors.release(value)


def _fitting(value: tuple[int, ...], parameter: tuple[int, ...]) -> list[bool]:
    """Whether a parameter can lie in an initializer of this shape as it is, and transposed."""
    if not parameter:
        return []
    as_is = [False] if value == parameter else []
    turned_shape = (*parameter[:-2], parameter[-1], parameter[-2]) if len(parameter) > 1 else None
    return as_is + ([True] if value == turned_shape else [])


def _orientation(value: ir.Value, parameter: Parameter, guess: bool) -> bool | None:
    """Whether a parameter lies transposed in an initializer; None where it does not fit. Of a square one the values
    tell, where they are near to the checkpoint's; else the guess holds.
    """
    assert value.const_value is not None
    fitting = _fitting(tuple(value.const_value.shape.numpy()), parameter.shape)
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    values, array = parameter.values(), tensors.read(value)
    straight, crossed = _distance(array, values), _distance(turned(array, True), values)
    tensors.release(value)
    if min(straight, crossed) < 0.3 and min(straight, crossed) < 0.5 * max(straight, crossed):
        return crossed < straight
    return guess


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """The values at up to 16 even positions along each axis."""
    places = [np.unique(np.linspace(0, size - 1, min(size, _SAMPLE)).astype(np.int64)) for size in array.shape]
    return array[np.ix_(*places)] if array.size else array


def _distance(array: NDArray[Any], values: NDArray[Any]) -> float:
    """Norm of the difference over the norm of `values`; infinite for zeros."""
    other = values.astype(np.float64)
    norm = float(np.linalg.norm(other))
    return float(np.linalg.norm(array.astype(np.float64) - other)) / norm if norm else float("inf")


def _equal(a: Parameter, b: Parameter) -> bool:
    return np.array_equal(a.values(), b.values())


def _is_copy(value: ir.Value, other: ir.Value) -> bool:
    """Whether two matrices hold the same numbers, as they are or transposed; of vectors and fills that says nothing."""
    if value.const_value is None or other.const_value is None or len(value.const_value.shape) < 2:
        return False
    mine, theirs = tuple(value.const_value.shape.numpy()), tuple(other.const_value.shape.numpy())
    if not _fitting(mine, theirs):
        return False
    a, b = tensors.read(value), tensors.read(other)
    if a.size == 0 or bool(np.all(_sample(a) == a.flat[0])):
        return False
    both = [turned(a, transposed) for transposed in _fitting(mine, theirs)]
    found = any(np.array_equal(_sample(item), _sample(b)) and np.array_equal(item, b) for item in both)
    tensors.release(value)
    tensors.release(other)
    return found


def _is_parameter(value: ir.Value) -> bool:
    """Whether an initializer is something that was trained, and no constant that the exporter computed."""
    if value.metadata_props.get(KIND) == "PARAMETER":
        return True
    name, _, leaf = (value.name or "").rpartition(".")
    if name and leaf in ("weight", "bias"):
        return True
    rank = len(value.const_value.shape) if value.const_value is not None else 0
    for node, slot in value.uses():
        if node.op_type in PRODUCTS and slot < 2 and rank >= 2 and (rank == 2 or node.op_type != "MatMul"):
            return True
        if node.op_type == "Gather" and slot == 0 and rank == 2:
            return True
    return False
