"""Reading engine files: whose they are is told by their first bytes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from fp8graph.engines import program
from fp8graph.engines.probe import MODULES
from fp8graph.engines.program import EngineFile
from fp8graph.engines.sites import Site
from fp8graph.engines.witness import EngineOp, NodeName, meant
from fp8graph.graph import walk

_START_BYTES = 4096


def owner(path: Path) -> str:
    """The builder whose module says by `is_engine` that a file is its own; empty for any other, TensorRT's included."""
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError:
        return ""
    for name, module in MODULES.items():
        says = getattr(importlib.import_module(module), "is_engine", None)
        if says is not None and says(start):
            return name
    return ""


def attribute(builder: str, ops: Sequence[EngineOp], found: Sequence[Site]) -> Sequence[EngineOp]:
    """The ops under the names of the model's nodes, where the builder's module has names to translate."""
    translate = getattr(importlib.import_module(MODULES[builder]), "attribute", None) if builder in MODULES else None
    return ops if translate is None else list(translate(ops, found))


def keys(builder: str, ops: Sequence[EngineOp], found: Sequence[Site]) -> dict[str, list[str]]:
    """Keys of the model's ops by the names that layers give to their nodes; of a part of one also that of the whole."""
    by_base: dict[str, list[NodeName]] = {}
    of_node: dict[NodeName, list[str]] = {}
    for site in found:
        by_base.setdefault(site.name.base, []).append(site.name)
        of_node.setdefault(site.name, []).extend(key for key in (*walk.keys(site.place), site.whole) if key)
    table: dict[str, list[str]] = {}
    for op, told in zip(ops, attribute(builder, ops, found), strict=True):
        # A name that was added is of the node that the last one of its own stands behind.
        for name, layer in zip_longest(op.names, told.names, fillvalue=op.names[-1] if op.names else ""):
            table.setdefault(name, []).extend(key for node in meant(layer, by_base) for key in of_node[node])
    return {name: list(dict.fromkeys(some)) for name, some in table.items() if some}


def read_engine(path: Path) -> EngineFile:
    """What stands in an engine file, read by the module of its builder; `program` reads those of TensorRT.

    Raises InputError FG508 for a file that is missing, no engine, or not whole. A whole engine that cannot be read here
    is no error: `unknown` of the result says why.
    """
    name = owner(path)
    if not name:
        return program.read_engine(path)
    with path.open("rb") as file:
        found: EngineFile = importlib.import_module(MODULES[name]).read(path, file.read(_START_BYTES))
    return found
