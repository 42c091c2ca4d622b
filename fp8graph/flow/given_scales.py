"""`import` of another tool's scales: a plan whose activations have them, with origin `given`."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fp8graph import formats
from fp8graph.base.errors import InputError
from fp8graph.data.plan import Plan, Quant, Scale
from fp8graph.graph import walk
from fp8graph.graph.load import load

# --from -> the module of fp8graph.importers that reads it
READERS = {
    "qdq": "qdq_model",
    "modelopt-cache": "modelopt_cache",
    "trt-cache": "trt_cache",
    "ort-table": "ort_table",
}


def plan_with(model: Any, path: Path, kind: str, target: str | None, recipe: Any) -> tuple[Plan, dict[str, list[str]]]:
    """The plan that `optimize` makes, with the scales in `path`; and the names that found no counterpart.

    Named are tensors of the file that the model does not have, and tensors that the plan observes and the file does not
    give. Raises InputError FG111, FG115 (the file), FG116 (a scale that is no positive number), and as `optimize` does.
    """
    from fp8graph.flow.optimizing import optimize

    reader = importlib.import_module(f"fp8graph.importers.{READERS[kind]}")
    amax: Mapping[str, float] = reader.read(path)
    plan = optimize(model, plan_only=True, target=target, recipe=recipe).plan
    quants = [quant for op in plan.ops.values() for quant in op.inputs.values()]
    made = _Giving(amax, kind, str(path), _together(quants))
    ops = {
        key: replace(op, inputs={slot: made.given(quant) for slot, quant in op.inputs.items()})
        for key, op in plan.ops.items()
    }
    caches = {name: replace(cache, quant=made.given(cache.quant)) for name, cache in plan.caches.items()}
    known = {value.name for _, graph in walk.graphs(load(model).model) for value in walk.values(graph)}
    unmatched = {
        "file": sorted(name for name in amax if name not in known and name not in made.used),
        "model": sorted(made.missing),
    }
    return replace(plan, ops=ops, caches=caches), unmatched


def given_names(plan: Plan, kind: str) -> tuple[str, ...]:
    """The tensors whose scale came from a file of this kind."""
    quants = [quant for op in plan.ops.values() for quant in op.inputs.values()]
    return tuple(sorted({quant.value for quant in quants if quant.scale.rule == kind}))


def _together(quants: Sequence[Quant]) -> list[set[str]]:
    """Tensors that have one scale. Calibration sees a Concat's range hold its operands'; a file may say otherwise."""
    groups: list[set[str]] = []
    for quant in quants:
        if quant.scale.over:
            group = {quant.value, *quant.scale.over}
            for other in [other for other in groups if other & group]:
                groups.remove(other)
                group |= other
            groups.append(group)
    return groups


class _Giving:
    def __init__(self, amax: Mapping[str, float], kind: str, where: str, groups: Sequence[set[str]]) -> None:
        self.amax, self.kind, self.where, self.groups = amax, kind, where, groups
        self.used: set[str] = set()
        self.missing: set[str] = set()

    def given(self, quant: Quant) -> Quant:
        """The same with the scale that the file gives, where calibration would have to find it."""
        scale = quant.scale
        if scale.origin != "observed" or quant.granularity.blocks:
            return quant
        names = sorted(next((group for group in self.groups if quant.value in group), {quant.value}))
        lacking = [name for name in names if name not in self.amax]
        if lacking:
            self.missing.update(lacking)
            return quant
        self.used.update(names)
        largest = max(self.amax[name] for name in names)
        # in float64, where 448 times a float32 is exact: a scale in E4M3 comes out as the one that went in
        number = np.float32(largest / float(formats.get(quant.format).max))
        if not (math.isfinite(number) and number >= np.finfo(np.float32).tiny):
            raise InputError(
                "a given scale is no positive number",
                where=f"{self.where}, tensor '{quant.value}'",
                why=f"its largest magnitude is {largest:g}",
                do="leave that tensor out of the file, and give --data when the plan is carried out",
                code="FG116",
            )
        return replace(quant, scale=Scale("given", self.kind, float(number), stored=scale.stored))


def kind_of(path: Path) -> str:
    """What a file is by its name and first bytes: `--from auto`."""
    if path.is_dir() or path.name.endswith((".safetensors", ".index.json")):
        return "safetensors"
    if path.suffix == ".onnx":
        return "qdq"
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError:
        begin = b""
    if begin == b"TRT-":
        return "trt-cache"
    return "ort-table" if path.name.startswith("calibration.") else "safetensors"
