"""What calibration has seen of each tensor: exactly mergeable statistics, no floating sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fp8graph.base.canon import nearest_float32, shortest_float32
from fp8graph.data.arrayref import ArrayRef
from fp8graph.data.document import check_schema, malformed
from fp8graph.numerics import sidecar
from fp8graph.numerics.histogram import BINS, Histogram

KIND, VERSION = "ranges", 1
StatKind = Literal["amax", "range", "histogram"]
Array = NDArray[Any]


@dataclass(frozen=True)
class Need:
    """A statistic that someone wants of a tensor.

    tensor   scope and name
    stat     `amax`: the largest absolute value, which costs next to nothing; `range`: the least and the largest value;
             `histogram`: these, and counts by the top bits of each value. Each holds what those before it do.
    axis     an axis of the tensor (not negative): the largest absolute value at each index along it, too
    """

    tensor: str
    stat: StatKind = "amax"
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.stat not in get_args(StatKind):
            raise ValueError(f"unknown statistic '{self.stat}'")
        if self.axis is not None and self.axis < 0:
            raise ValueError(f"an axis is counted from 0, not {self.axis}")

    @property
    def text(self) -> str:
        """`TENSOR`, `TENSOR:histogram`, `TENSOR:amax@1`."""
        kind = f":{self.stat}" if self.stat != "amax" or self.axis is not None else ""
        return f"{self.tensor}{kind}" + ("" if self.axis is None else f"@{self.axis}")


def joined(wants: Iterable[str | Need]) -> list[Need]:
    """Needs without those that others cover, in their order; a bare name is its amax."""
    rank = {kind: index for index, kind in enumerate(get_args(StatKind))}
    stats: dict[str, StatKind] = {}
    axes: dict[str, dict[int, None]] = {}
    for want in wants:
        need = Need(want) if isinstance(want, str) else want
        stats[need.tensor] = max(stats.get(need.tensor, "amax"), need.stat, key=rank.__getitem__)
        axes.setdefault(need.tensor, {}).update({} if need.axis is None else {need.axis: None})
    along = {name: [Need(name, stats[name], axis) for axis in sorted(found)] for name, found in axes.items()}
    return [need for name, stat in stats.items() for need in along[name] or [Need(name, stat)]]


@dataclass(frozen=True, eq=False)
class Peaks:
    """The largest absolute value at each index of one axis: float32 [length]. A NaN says that one was there."""

    values: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        """Equal numbers, NaN included."""
        if not isinstance(other, Peaks):
            return NotImplemented
        return bool(np.array_equal(self.values, other.values, equal_nan=True))

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def of(array: Array, axis: int) -> Peaks | None:
        """Those of one array of floats; None where it has no such axis."""
        if axis >= array.ndim:
            return None
        others = tuple(index for index in range(array.ndim) if index != axis)
        values = np.maximum(array.max(others, initial=-np.inf), -array.min(others, initial=np.inf))
        return Peaks(np.maximum(values, 0).astype(np.float32))


@dataclass(frozen=True)
class Stat:
    """Counts, least and largest finite value of one tensor over all samples.

    count       elements seen
    nonfinite   how many samples held a NaN or an infinity; `min` and `max` are of the other samples
    min         where only the amax was asked for, and the maximum tells it (behind Relu and the like), 0
    histogram   None unless it was asked for
    channels    the largest absolute value by index, for each axis that was asked for and was as long in each sample
    """

    count: int = 0
    nonfinite: int = 0
    min: float = math.inf
    max: float = -math.inf
    histogram: Histogram | None = None
    channels: Mapping[int, Peaks] = field(default_factory=dict)

    @property
    def amax(self) -> float | None:
        """Largest absolute value; None where nothing finite was seen."""
        return None if self.max < self.min else max(self.max, -self.min, 0.0)

    @property
    def empty(self) -> bool:
        """Whether nothing was seen."""
        return not (self.count or self.nonfinite)

    def merge(self, other: Stat) -> Stat:
        """Both together: associative, commutative, with `Stat()` as the identity.

        Of a histogram or an axis that only one of them has nothing is known of the whole.
        """
        if self.empty or other.empty:
            return other if self.empty else self
        both = self.histogram is not None and other.histogram is not None
        channels = {
            axis: Peaks(np.maximum(mine.values, theirs.values))
            for axis, mine in self.channels.items()
            if (theirs := other.channels.get(axis)) is not None and theirs.values.shape == mine.values.shape
        }
        return Stat(
            self.count + other.count,
            self.nonfinite + other.nonfinite,
            min(self.min, other.min),
            max(self.max, other.max),
            self.histogram.merge(other.histogram) if both else None,  # type: ignore[union-attr,arg-type]
            channels,
        )

    @staticmethod
    def of(array: Array, *, histogram: bool = False, axes: Iterable[int] = ()) -> Stat:
        """The statistic of one array of floats (float32 or smaller). One pass for max, one for min; no temporaries."""
        if array.size == 0:
            return Stat()
        high, low = float(array.max()), float(array.min())
        counts = Histogram.of(array) if histogram else None
        peaks = {axis: found for axis in axes if (found := Peaks.of(array, axis)) is not None}
        if math.isfinite(high) and math.isfinite(low):  # numpy's max and min hand NaN on
            return Stat(int(array.size), 0, low + 0.0, high + 0.0, counts, peaks)  # -0 or 0, as it comes: 0
        return Stat(int(array.size), 1, histogram=counts, channels=peaks)

    def has(self, need: Need) -> bool:
        """Whether it tells what is needed; one of nothing tells that. Extremes are taken for exact ones."""
        if self.empty:
            return True
        return (need.stat != "histogram" or self.histogram is not None) and (
            need.axis is None or need.axis in self.channels
        )


@dataclass(frozen=True)
class Ranges:
    """Statistics by tensor (scope and name), tied to the source model by its digest.

    data      where they come from; `random` is stamped here
    samples   feeds seen
    shapes    for each graph input, how often each shape was seen
    """

    source: str
    data: str
    samples: int = 0
    shapes: Mapping[str, Mapping[tuple[int, ...], int]] = field(default_factory=dict)
    values: Mapping[str, Stat] = field(default_factory=dict)

    def merge(self, other: Ranges) -> Ranges:
        """Both together, bit-equal to one run over all data. Raises ValueError for ranges of another model."""
        if self.source != other.source:
            raise ValueError("these ranges are of two models")
        shapes = {name: dict(seen) for name, seen in self.shapes.items()}
        for name, seen in other.shapes.items():
            mine = shapes.setdefault(name, {})
            for shape, times in seen.items():
                mine[shape] = mine.get(shape, 0) + times
        values = dict(self.values)
        for name, stat in other.values.items():
            values[name] = values.get(name, Stat()).merge(stat)
        data = " + ".join(sorted({part for label in (self.data, other.data) for part in label.split(" + ") if part}))
        return Ranges(self.source, data, self.samples + other.samples, shapes, values)

    def lacks(self, needs: Iterable[Need]) -> list[Need]:
        """The needs that these ranges do not answer."""
        return [need for need in needs if (stat := self.values.get(need.tensor)) is None or not stat.has(need)]

    def arrays(self) -> dict[str, Array]:
        """What a document of these ranges refers to, by name; nothing where only extremes were observed."""
        held: dict[str, Array] = {}
        for name, stat in self.values.items():
            if stat.histogram is not None:
                held[f"{name}.bins"], held[f"{name}.counts"] = _filled(stat.histogram)
            held |= {f"{name}.axis{axis}": peaks.values for axis, peaks in stat.channels.items()}
        return held

    def to_json(self, sidecar: str = "") -> dict[str, Any]:
        """The ranges as a document, tensors sorted by name; `sidecar` is the sha256 of the file with its arrays."""
        return {
            "schema": f"fp8graph.{KIND}/{VERSION}",
            "source": self.source,
            "data": self.data,
            "samples": self.samples,
            **({"sidecar": sidecar} if sidecar else {}),
            "shapes": {
                name: [[list(shape), times] for shape, times in sorted(seen.items())]
                for name, seen in sorted(self.shapes.items())
            },
            "values": {name: _stat_to_json(name, stat) for name, stat in sorted(self.values.items())},
        }

    @staticmethod
    def from_json(document: Any, where: str = "ranges", arrays: Mapping[str, Any] | None = None) -> Ranges:
        """Reads a ranges document; `arrays` are those that it refers to. Raises InputError FG111 for anything that is
        not one, FG105 for an array that is missing or another."""
        document = check_schema(document, KIND, VERSION, where)
        held = {} if arrays is None else arrays
        try:
            return Ranges(
                source=str(document["source"]),
                data=str(document["data"]),
                samples=int(document["samples"]),
                shapes={
                    str(name): {tuple(int(d) for d in shape): int(times) for shape, times in seen}
                    for name, seen in document["shapes"].items()
                },
                values={str(name): _stat_from_json(item, held) for name, item in document["values"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise malformed(KIND, where, error) from error


def _filled(histogram: Histogram) -> tuple[Array, Array]:
    """The bins that are not empty, and what they hold."""
    used = np.flatnonzero(histogram.counts)
    return used.astype(np.uint16), histogram.counts[used]


def _stat_to_json(name: str, stat: Stat) -> dict[str, Any]:
    item: dict[str, Any] = {"count": stat.count, "nonfinite": stat.nonfinite}
    if stat.max >= stat.min:
        item |= {"min": shortest_float32(stat.min), "max": shortest_float32(stat.max)}
    if stat.histogram is not None:
        bins, counts = _filled(stat.histogram)
        item["histogram"] = {
            "bins": sidecar.reference(f"{name}.bins", bins).to_json(),
            "counts": sidecar.reference(f"{name}.counts", counts).to_json(),
            "zeros": stat.histogram.zeros,
            "nans": stat.histogram.nans,
        }
    if stat.channels:
        peaks = {str(axis): sidecar.reference(f"{name}.axis{axis}", p.values) for axis, p in stat.channels.items()}
        item["channels"] = {axis: reference.to_json() for axis, reference in sorted(peaks.items())}
    return item


def _stat_from_json(item: Mapping[str, Any], arrays: Mapping[str, Any]) -> Stat:
    count, nonfinite = int(item["count"]), int(item["nonfinite"])
    if count < 0 or nonfinite < 0 or ("min" in item) != ("max" in item):
        raise ValueError("a statistic has counts, and both a min and a max or none")
    low, high = math.inf, -math.inf
    if "min" in item:
        low, high = nearest_float32(float(item["min"])), nearest_float32(float(item["max"]))
        if not low <= high:
            raise ValueError(f"min {low} is above max {high}")
    counts = _histogram_from_json(item["histogram"], arrays) if "histogram" in item else None
    channels = {
        int(axis): Peaks(_fetched(reference, arrays, "float32")) for axis, reference in item.get("channels", {}).items()
    }
    return Stat(count, nonfinite, low, high, counts, channels)


def _histogram_from_json(item: Mapping[str, Any], arrays: Mapping[str, Any]) -> Histogram:
    bins, held = _fetched(item["bins"], arrays, "uint16"), _fetched(item["counts"], arrays, "int64")
    if bins.size != held.size or (bins >= BINS).any() or (held < 0).any() or np.unique(bins).size != bins.size:
        raise ValueError(f"a histogram has {BINS} bins of counts")
    counts = np.zeros(BINS, np.int64)
    counts[bins] = held
    return Histogram(counts, int(item["zeros"]), int(item["nans"]))


def _fetched(item: Mapping[str, Any], arrays: Mapping[str, Any], dtype: str) -> Array:
    reference = ArrayRef.from_json(item)
    if reference.dtype != dtype or len(reference.shape) != 1:
        raise ValueError(f"'{reference.name}' is no row of {dtype}")
    return sidecar.fetch(arrays, reference, "ranges")
