"""What calibration has seen of each tensor: exactly mergeable statistics, no floating sums."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fp8graph.base.canon import nearest_float32, shortest_float32
from fp8graph.data.document import check_schema, malformed

KIND, VERSION = "ranges", 1


@dataclass(frozen=True)
class Stat:
    """Counts, least and largest finite value of one tensor over all samples.

    count       elements seen
    nonfinite   how many samples held a NaN or an infinity; `min` and `max` are of the other samples
    """

    count: int = 0
    nonfinite: int = 0
    min: float = math.inf
    max: float = -math.inf

    @property
    def amax(self) -> float | None:
        """Largest absolute value; None where nothing finite was seen."""
        return None if self.max < self.min else max(self.max, -self.min, 0.0)

    def merge(self, other: Stat) -> Stat:
        """Both together: associative, commutative, with `Stat()` as the identity."""
        return Stat(
            self.count + other.count,
            self.nonfinite + other.nonfinite,
            min(self.min, other.min),
            max(self.max, other.max),
        )

    @staticmethod
    def of(array: np.ndarray[Any, Any]) -> Stat:
        """The statistic of one array of floats (float32 or smaller). One pass for max, one for min; no temporaries."""
        if array.size == 0:
            return Stat()
        high, low = float(array.max()), float(array.min())
        if math.isfinite(high) and math.isfinite(low):  # numpy's max and min hand NaN on
            return Stat(int(array.size), 0, low, high)
        return Stat(int(array.size), 1)


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

    def to_json(self) -> dict[str, Any]:
        """The ranges as a document; tensors sorted by name."""
        return {
            "schema": f"fp8graph.{KIND}/{VERSION}",
            "source": self.source,
            "data": self.data,
            "samples": self.samples,
            "shapes": {
                name: [[list(shape), times] for shape, times in sorted(seen.items())]
                for name, seen in sorted(self.shapes.items())
            },
            "values": {name: _stat_to_json(stat) for name, stat in sorted(self.values.items())},
        }

    @staticmethod
    def from_json(document: Any, where: str = "ranges") -> Ranges:
        """Reads a ranges document. Raises InputError FG111 for anything that is not one."""
        document = check_schema(document, KIND, VERSION, where)
        try:
            return Ranges(
                source=str(document["source"]),
                data=str(document["data"]),
                samples=int(document["samples"]),
                shapes={
                    str(name): {tuple(int(d) for d in shape): int(times) for shape, times in seen}
                    for name, seen in document["shapes"].items()
                },
                values={str(name): _stat_from_json(item) for name, item in document["values"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise malformed(KIND, where, error) from error


def _stat_to_json(stat: Stat) -> dict[str, Any]:
    item: dict[str, Any] = {"count": stat.count, "nonfinite": stat.nonfinite}
    if stat.max >= stat.min:
        item |= {"min": shortest_float32(stat.min), "max": shortest_float32(stat.max)}
    return item


def _stat_from_json(item: Mapping[str, Any]) -> Stat:
    count, nonfinite = int(item["count"]), int(item["nonfinite"])
    if count < 0 or nonfinite < 0 or ("min" in item) != ("max" in item):
        raise ValueError("a statistic has counts, and both a min and a max or none")
    if "min" not in item:
        return Stat(count, nonfinite)
    low, high = nearest_float32(float(item["min"])), nearest_float32(float(item["max"]))
    if not low <= high:
        raise ValueError(f"min {low} is above max {high}")
    return Stat(count, nonfinite, low, high)
