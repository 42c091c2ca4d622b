"""Plans of the sample models, decision by decision. `REGEN=1` writes them anew: read the diff before you commit it.

What other processors compute differs in the last digits, so observed scales are compared with a tolerance.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fp8graph
from fp8graph.base.canon import pretty

HERE = Path(__file__).parent
TOLERANCE = 1e-5
CASES = [(name, target) for name in ("cnn", "vit") for target in ("tensorrt-rtx:sm89",)]


def observed(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Op, slot and scale of everything that data has found."""
    for key, op in document["ops"].items():
        for slot, quant in op.get("inputs", {}).items():
            if quant["scale"]["origin"] == "observed":
                yield f"{key}, input {slot}", quant["scale"]


def parted(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """The document without observed numbers, and the numbers by op and slot."""
    rest = copy.deepcopy(document)
    numbers = {where: scale.pop("value") for where, scale in observed(rest)}
    return rest, numbers


@pytest.mark.parametrize(("name", "target"), CASES)
def test_the_plan_is_the_one_that_was_reviewed(digits, calibration, name, target):
    plan = fp8graph.optimize(digits / f"{name}.onnx", target=target, data=calibration, plan_only=True).plan
    path = HERE / f"{name}.{target.replace(':', '-')}.plan.json"
    text = pretty(plan.to_json())
    if os.environ.get("REGEN"):
        path.write_text(text, encoding="utf-8")
    wanted, numbers = parted(json.loads(path.read_text(encoding="utf-8")))
    found, now = parted(json.loads(text))
    for key, op in wanted["ops"].items():
        assert found["ops"].get(key) == op, key
    assert found == wanted
    assert now.keys() == numbers.keys() and numbers
    far = {where: (now[where], number) for where, number in numbers.items() if not close(now[where], number)}
    assert far == {}


def close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE)


def test_every_file_here_belongs_to_a_case():
    stored = {path.name for path in HERE.glob("*.json")}
    assert stored == {f"{name}.{target.replace(':', '-')}.plan.json" for name, target in CASES}
