"""Whether two outputs lie close enough together, as Polygraphy judges it: sample by sample, output by output.

An element is close where |a - b| <= atol or |a - b| <= rtol |b|: within one of them is enough. `elemwise` holds every
element to that; `max`, `mean`, `median` and `quantile` hold that statistic of the absolute differences to atol, or that
of the relative ones to rtol. Where only one of the two is given, the other is 1e-5. Other than in Polygraphy, a NaN or
an infinity that both have is no difference, and outputs that no bound names have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.data.comparison import Comparison

STATS = ("elemwise", "max", "mean", "median", "quantile")
_DEFAULT, _QUANTILE = 1e-5, 0.99
_EPSILON = 2.220446049250313e-16
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tolerance:
    """Bounds by output; the empty name is for all others.

    rtol, atol  largest difference, relative to B and absolute
    stat        what is held to them, one of `STATS`; `elemwise` where nothing is said
    quantile    the share of elements that `quantile` looks at; 0.99 where nothing is said
    min_sqnr    least signal to noise ratio over all samples, in dB
    """

    rtol: Mapping[str, float] = field(default_factory=dict)
    atol: Mapping[str, float] = field(default_factory=dict)
    stat: Mapping[str, str] = field(default_factory=dict)
    quantile: Mapping[str, float] = field(default_factory=dict)
    min_sqnr: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, stat in self.stat.items():
            if stat not in STATS:
                where = f"--check-error-stat {name}:{stat}" if name else "--check-error-stat"
                what, known = f"there is no error statistic '{stat}'", ", ".join(STATS)
                raise UsageError(what, where=where, why=f"known: {known}", do=did_you_mean(stat, STATS), code="FG101")
        for option, bounds, most in (
            ("--rtol", self.rtol, math.inf),
            ("--atol", self.atol, math.inf),
            ("--error-quantile", self.quantile, 1.0),
        ):
            for value in bounds.values():
                if not 0 <= value <= most:
                    why = "it is at least 0" if most == math.inf else "it is from 0 to 1"
                    raise UsageError(
                        f"{option} cannot be {value:g}", where=option, why=why, do=f"{option} 0.01", code="FG100"
                    )

    def check(self, outputs: Iterable[str]) -> None:
        """Raises UsageError FG101 for a bound of an output that there is not."""
        known = list(outputs)
        for option, bounds in (
            ("--min-sqnr", self.min_sqnr),
            ("--rtol", self.rtol),
            ("--atol", self.atol),
            ("--check-error-stat", self.stat),
            ("--error-quantile", self.quantile),
        ):
            for name in bounds:
                if name and name not in known:
                    what = f"there is no output '{name}'"
                    raise UsageError(what, where=option, do=did_you_mean(name, known), code="FG101")

    def bounds(self, name: str) -> tuple[float, float, str, float] | None:
        """rtol, atol, statistic and quantile of an output; None where none of the first three speaks of it."""
        rtol, atol, stat = (_of(item, name, None) for item in (self.rtol, self.atol, self.stat))
        if rtol is None and atol is None and stat is None:
            return None
        quantile = float(_of(self.quantile, name, _QUANTILE))
        return _or(rtol), _or(atol), str(stat or "elemwise"), quantile


def _of(bounds: Mapping[str, Any], name: str, default: Any) -> Any:
    return bounds.get(name, bounds.get("", default))


def _or(value: float | None) -> float:
    return _DEFAULT if value is None else value


@dataclass
class _Miss:
    """The samples of one output that lie too far apart."""

    samples: int = 0
    first: int = 0
    elements: int = 0
    absolute: float = 0.0
    relative: float = 0.0


class Judge:
    """Holds pairs of arrays to a tolerance while they stream by."""

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self._misses: dict[str, _Miss] = {}

    def add(self, sample: int, name: str, left: Array, right: Array) -> None:
        """Takes in one pair of one type and shape; texts are only equal or not."""
        bounds = self.tolerance.bounds(name)
        if bounds is None or left.size == 0:
            return
        if left.dtype.kind in "OUS":
            if not bool((left == right).all()):
                self._missed(sample, name, int(np.count_nonzero(left != right)), math.inf, math.inf)
            return
        rtol, atol, stat, quantile = bounds
        absolute, relative = _differences(left, right)
        if stat == "elemwise":
            far = (absolute > atol) & (relative > rtol)
            if far.any():
                ends = float(absolute[far].max()), float(relative[far].max())
                self._missed(sample, name, int(np.count_nonzero(far)), *ends)
            return
        one, other = (_statistic(item, stat, quantile) for item in (absolute, relative))
        if one > atol and other > rtol:
            self._missed(sample, name, 0, one, other)

    def _missed(self, sample: int, name: str, elements: int, absolute: float, relative: float) -> None:
        miss = self._misses.setdefault(name, _Miss(first=sample))
        miss.samples += 1
        miss.elements += elements
        miss.absolute, miss.relative = max(miss.absolute, absolute), max(miss.relative, relative)

    def missed(self, comparison: Comparison) -> tuple[str, ...]:
        """Sentences about bounds that do not hold. What cannot be shown to hold does not."""
        said = [self._said(name, miss) for name, miss in self._misses.items()]
        return (*_below(self.tolerance, comparison), *said)

    def _said(self, name: str, miss: _Miss) -> str:
        rtol, atol, stat, quantile = self.tolerance.bounds(name) or (0.0, 0.0, "", 0.0)
        where = f"in {miss.samples} samples, first {miss.first}" if miss.samples > 1 else f"in sample {miss.first}"
        if stat == "elemwise":
            what = f"{miss.elements} elements differ by up to {miss.absolute:.3g}, relative {miss.relative:.3g}"
        else:
            kind = f"quantile {quantile:g} of the" if stat == "quantile" else stat
            what = f"{kind} difference {miss.absolute:.3g}, relative {miss.relative:.3g}"
        return f"{name}: {what}, above atol {atol:g} and rtol {rtol:g}, {where}"


def _differences(left: Array, right: Array) -> tuple[Array, Array]:
    """Absolute and relative differences, float64; infinite where just one side is finite."""
    a, b = (np.atleast_1d(side.astype(np.float64)) for side in (left, right))
    with np.errstate(all="ignore"):
        absolute = np.abs(a - b)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        absolute[~np.isfinite(absolute)] = math.inf
        absolute[same] = 0.0
        # A zero in B is a tiny number, as Polygraphy has it.
        relative = absolute / np.where(b == 0, _EPSILON, np.abs(b))
        relative[~np.isfinite(relative)] = math.inf
        relative[same] = 0.0
    return absolute, relative


def _statistic(values: Array, stat: str, quantile: float) -> float:
    if stat == "max":
        return float(values.max())
    if not np.isfinite(values).all():
        return math.inf
    if stat == "mean":
        return float(values.mean())
    return float(np.quantile(values, 0.5 if stat == "median" else quantile))


def _below(tolerance: Tolerance, comparison: Comparison) -> list[str]:
    missed = []
    for name, item in comparison.outputs.items():
        least = _of(tolerance.min_sqnr, name, None)
        if item.equal or least is None:
            continue
        if item.sqnr_db is not None and item.sqnr_db < least:
            missed.append(f"{name}: SQNR {item.sqnr_db:.2f} dB is below {least:g} dB")
        elif item.sqnr_db is None and (name in tolerance.min_sqnr or tolerance.bounds(name) is None):
            missed.append(f"{name}: differs and has no SQNR; bound it by --atol '{name}:X', or name the other outputs")
    return missed
