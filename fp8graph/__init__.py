"""Turns ONNX models into FP8 ones, builds TensorRT engines and attests what really runs in FP8.

    done = fp8graph.optimize("m.onnx", target="tensorrt-rtx", data="calib.npz", output="m.fp8.onnx")
    for key, decision in done.plan.kept():
        print(key, decision.why)

Every public name is imported when it is first used: `import fp8graph` itself loads nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from typing import Any

    from fp8graph.base.errors import BackendError as BackendError
    from fp8graph.base.errors import Fp8GraphError as Fp8GraphError
    from fp8graph.base.errors import InputError as InputError
    from fp8graph.base.errors import InternalError as InternalError
    from fp8graph.base.errors import PassContractError as PassContractError
    from fp8graph.base.errors import UnmetError as UnmetError
    from fp8graph.base.errors import UsageError as UsageError
    from fp8graph.core.context import Context as Context
    from fp8graph.core.context import OpView as OpView
    from fp8graph.core.passes import Approximate as Approximate
    from fp8graph.core.passes import Exact as Exact
    from fp8graph.core.passes import Opinion as Opinion
    from fp8graph.core.passes import PlanRule as PlanRule
    from fp8graph.core.passes import Repair as Repair
    from fp8graph.core.passes import RewritePass as RewritePass
    from fp8graph.core.passes import Stage as Stage
    from fp8graph.core.passes import Ulps as Ulps
    from fp8graph.core.pipeline import Pipeline as Pipeline
    from fp8graph.data.attestation import Attestation as Attestation
    from fp8graph.data.difference import Difference as Difference
    from fp8graph.data.plan import Decision as Decision
    from fp8graph.data.plan import Plan as Plan
    from fp8graph.data.plan import Profile as Profile
    from fp8graph.data.plan import Reason as Reason
    from fp8graph.data.recipe import Recipe as Recipe
    from fp8graph.data.target import Target as Target
    from fp8graph.flow import attest as attest
    from fp8graph.flow import bench as bench
    from fp8graph.flow import build as build
    from fp8graph.flow import calibrate as calibrate
    from fp8graph.flow import check as check
    from fp8graph.flow import compare as compare
    from fp8graph.flow import debug_precision as debug_precision
    from fp8graph.flow import diff as diff
    from fp8graph.flow import doctor as doctor
    from fp8graph.flow import import_plan as import_plan
    from fp8graph.flow import inspect as inspect
    from fp8graph.flow import optimize as optimize
    from fp8graph.flow import report as report
    from fp8graph.flow import sensitivity as sensitivity

    __version__: str

_HOMES = {
    "fp8graph.base.errors": (
        "BackendError",
        "Fp8GraphError",
        "InputError",
        "InternalError",
        "PassContractError",
        "UnmetError",
        "UsageError",
    ),
    "fp8graph.core.context": ("Context", "OpView"),
    "fp8graph.core.passes": ("Approximate", "Exact", "Opinion", "PlanRule", "Repair", "RewritePass", "Stage", "Ulps"),
    "fp8graph.core.pipeline": ("Pipeline",),
    "fp8graph.data.attestation": ("Attestation",),
    "fp8graph.data.difference": ("Difference",),
    "fp8graph.data.plan": ("Decision", "Plan", "Profile", "Reason"),
    "fp8graph.data.recipe": ("Recipe",),
    "fp8graph.data.target": ("Target",),
    "fp8graph.flow": (
        "attest",
        "bench",
        "build",
        "calibrate",
        "check",
        "compare",
        "debug_precision",
        "diff",
        "doctor",
        "import_plan",
        "inspect",
        "optimize",
        "report",
        "sensitivity",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])  # type checkers read the imports above


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use. Raises AttributeError for any other name."""
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        import importlib

        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


class _Facade(ModuleType):
    """This module: folders called `calibrate` and `compare` lie in it, and importing them must hide no function."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Facade


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("fp8graph")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0+source"
