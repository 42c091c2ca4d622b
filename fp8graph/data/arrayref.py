"""Naming an array that lies in a document's sidecar: documents themselves hold no arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ArrayRef:
    """An array of the sidecar by its name there, with what it must be: dtype as numpy spells it, and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The reference as a document's part."""
        return {"array": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @staticmethod
    def from_json(item: Mapping[str, Any]) -> ArrayRef:
        """Reads what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        return ArrayRef(str(item["array"]), str(item["dtype"]), tuple(int(d) for d in item["shape"]))
