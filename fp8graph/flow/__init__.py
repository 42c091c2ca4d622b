"""Floor 9: one function for each command. Loaded one by one, for some need no numpy and no onnx."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fp8graph.flow.benching import Benched, bench
    from fp8graph.flow.checking import Checked, check
    from fp8graph.flow.engine import Built, attest, build
    from fp8graph.flow.importing import Imported, import_plan
    from fp8graph.flow.inspecting import diff, inspect
    from fp8graph.flow.looking import compare, doctor
    from fp8graph.flow.optimizing import Calibrated, Optimized, calibrate, optimize
    from fp8graph.flow.reporting import Reported, report

_HOME = {
    "optimize": "optimizing",
    "calibrate": "optimizing",
    "Optimized": "optimizing",
    "Calibrated": "optimizing",
    "build": "engine",
    "attest": "engine",
    "Built": "engine",
    "bench": "benching",
    "Benched": "benching",
    "compare": "looking",
    "check": "checking",
    "Checked": "checking",
    "import_plan": "importing",
    "Imported": "importing",
    "inspect": "inspecting",
    "diff": "inspecting",
    "report": "reporting",
    "Reported": "reporting",
    "doctor": "looking",
}
__all__ = [
    "Benched",
    "Built",
    "Calibrated",
    "Checked",
    "Imported",
    "Optimized",
    "Reported",
    "attest",
    "bench",
    "build",
    "calibrate",
    "check",
    "compare",
    "diff",
    "doctor",
    "import_plan",
    "inspect",
    "optimize",
    "report",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"fp8graph.flow.{_HOME[name]}"), name)
    raise AttributeError(f"module 'fp8graph.flow' has no attribute '{name}'")
