"""Floor 9: one function for each command. Loaded one by one, for some need no numpy and no onnx."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fp8graph.flow.benching import Benched as Benched
    from fp8graph.flow.benching import bench as bench
    from fp8graph.flow.checking import Checked as Checked
    from fp8graph.flow.checking import check as check
    from fp8graph.flow.debugging import Debugged as Debugged
    from fp8graph.flow.debugging import debug_precision as debug_precision
    from fp8graph.flow.engine import Built as Built
    from fp8graph.flow.engine import attest as attest
    from fp8graph.flow.engine import build as build
    from fp8graph.flow.importing import Imported as Imported
    from fp8graph.flow.importing import import_plan as import_plan
    from fp8graph.flow.inspecting import diff as diff
    from fp8graph.flow.inspecting import inspect as inspect
    from fp8graph.flow.looking import compare as compare
    from fp8graph.flow.looking import doctor as doctor
    from fp8graph.flow.optimizing import Calibrated as Calibrated
    from fp8graph.flow.optimizing import Optimized as Optimized
    from fp8graph.flow.optimizing import calibrate as calibrate
    from fp8graph.flow.optimizing import optimize as optimize
    from fp8graph.flow.ranking import Sensitivity as Sensitivity
    from fp8graph.flow.ranking import sensitivity as sensitivity
    from fp8graph.flow.reporting import Reported as Reported
    from fp8graph.flow.reporting import report as report

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
    "debug_precision": "debugging",
    "Debugged": "debugging",
    "Checked": "checking",
    "import_plan": "importing",
    "Imported": "importing",
    "inspect": "inspecting",
    "diff": "inspecting",
    "sensitivity": "ranking",
    "Sensitivity": "ranking",
    "report": "reporting",
    "Reported": "reporting",
    "doctor": "looking",
}
__all__ = sorted(_HOME)  # type checkers read the imports above


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"fp8graph.flow.{_HOME[name]}"), name)
    raise AttributeError(f"module 'fp8graph.flow' has no attribute '{name}'")
