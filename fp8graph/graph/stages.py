"""What each stage hands to the next: the type says how far a model has come, and `save` takes `Legal` only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from fp8graph.graph.lost import Lost

Kind = Literal["path", "proto", "ir", "graphsurgeon"]


@dataclass(frozen=True)
class Source:
    """A model as it came. `model` is not to be edited; `original` is the caller's object; `path` where it is a file;
    `external` are the files of its external data, `lost` is what onnx_ir does not hold."""

    model: ir.Model
    kind: Kind
    original: Any
    path: Path | None = None
    external: tuple[Path, ...] = ()
    lost: Lost = field(default_factory=Lost)


@dataclass(frozen=True)
class Normalized:
    """A model of our own in which every op has a key; `structure` is its digest. `moved`: the factors of channels that
    a plan has (`core.channels`) are in it already."""

    model: ir.Model
    source: Source
    structure: str
    moved: bool = False


@dataclass(frozen=True)
class Quantized:
    """Q/DQ and casts are in; weights are still lazy."""

    model: ir.Model
    source: Source


@dataclass(frozen=True)
class Legal:
    """Spelt the target's way: may be saved."""

    model: ir.Model
    source: Source
