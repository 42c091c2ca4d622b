"""How a target reads Q/DQ that it was not asked to write: what its importer takes and what its engines see through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Refused:
    """Op types of one domain that the importer does not take."""

    domain: str
    ops: tuple[str, ...]
    text: str
    source: str


@dataclass(frozen=True)
class Qdq:
    """One target's table `qdq`. Without one nothing is refused, as in a runtime that computes each op alone.

    engine    whether an engine fuses Q/DQ into products; else they are computed one by one
    imports   low-precision types that the importer takes; None: all
    carries   op types that may read an FP8 tensor; None: all
    casts     (from, to) of Casts that may lie between DQ and op; None: any
    pads      op types before which a Pad with zeros may lie
    scalars   op types whose one scale has to be of rank 0
    fp4       chips with FP4 products
    mxfp8     chips with MXFP8 products; others only simulate them
    microsoft op types of com.microsoft that are imported; None: all
    refused   op types that are not imported
    """

    engine: bool = False
    imports: tuple[str, ...] | None = None
    carries: tuple[str, ...] | None = None
    casts: tuple[tuple[str, str], ...] | None = None
    pads: tuple[str, ...] = ("Conv",)
    scalars: tuple[str, ...] = ()
    fp4: tuple[str, ...] = ()
    mxfp8: tuple[str, ...] = ()
    microsoft: tuple[str, ...] | None = None
    refused: tuple[Refused, ...] = ()

    @staticmethod
    def from_table(table: Mapping[str, Any] | None) -> Qdq:
        """The table as read from TOML. Raises KeyError, TypeError or ValueError where it is damaged."""
        if table is None:
            return Qdq()
        casts = [tuple(str(pair).split(">")) for pair in table["casts"]]
        if any(len(pair) != 2 for pair in casts):
            raise ValueError(f"casts: {table['casts']}")
        return Qdq(
            engine=True,
            imports=tuple(table["imports"]),
            carries=tuple(table["carries"]),
            casts=tuple((pair[0], pair[1]) for pair in casts),
            pads=tuple(table["pads"]),
            scalars=tuple(table["scalars"]),
            fp4=tuple(table["fp4"]),
            mxfp8=tuple(table.get("mxfp8", ())),
            microsoft=tuple(table["microsoft"]),
            refused=tuple(_refused(item) for item in table.get("refused", ())),
        )


def _refused(item: Mapping[str, Any]) -> Refused:
    if not item["source"] or not item["text"]:
        raise ValueError(f"row {item}")
    return Refused(str(item["domain"]), tuple(item["ops"]), str(item["text"]), str(item["source"]))
