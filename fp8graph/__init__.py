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

    from fp8graph.base.errors import (
        BackendError,
        Fp8GraphError,
        InputError,
        InternalError,
        PassContractError,
        UnmetError,
        UsageError,
    )
    from fp8graph.core.context import Context, OpView
    from fp8graph.core.passes import Approximate, Exact, Opinion, PlanRule, Repair, RewritePass, Stage, Ulps
    from fp8graph.core.pipeline import Pipeline
    from fp8graph.data.attestation import Attestation
    from fp8graph.data.difference import Difference
    from fp8graph.data.plan import Decision, Plan, Profile, Reason
    from fp8graph.data.recipe import Recipe
    from fp8graph.data.target import Target
    from fp8graph.flow import (
        attest,
        bench,
        build,
        calibrate,
        check,
        compare,
        diff,
        doctor,
        import_plan,
        inspect,
        optimize,
        report,
    )

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
        "diff",
        "doctor",
        "import_plan",
        "inspect",
        "optimize",
        "report",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Approximate",
    "Attestation",
    "BackendError",
    "Context",
    "Decision",
    "Difference",
    "Exact",
    "Fp8GraphError",
    "InputError",
    "InternalError",
    "OpView",
    "Opinion",
    "PassContractError",
    "Pipeline",
    "Plan",
    "PlanRule",
    "Profile",
    "Reason",
    "Recipe",
    "Repair",
    "RewritePass",
    "Stage",
    "Target",
    "Ulps",
    "UnmetError",
    "UsageError",
    "__version__",
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
