"""One class for each promise that a pass can break. All are AssertionErrors: a test runner counts them as failures."""

from __future__ import annotations

from fp8graph.core.passes import PlanRule, Repair, RewritePass

AnyPass = RewritePass | PlanRule | Repair


class ContractError(AssertionError):
    """A promise of a pass is broken; `where` is the model, and how it was prepared."""

    def __init__(self, item: AnyPass, where: str, text: str) -> None:
        super().__init__(f"{item.name} on {where}: {text}")
        self.where = where


class CrashError(ContractError):
    """It raised an exception."""


class InterfaceError(ContractError):
    """It changed the model's inputs or outputs."""


class CountError(ContractError):
    """The number of changes that it returned is not true."""


class DeterminismError(ContractError):
    """Two runs gave different results."""


class IdempotenceError(ContractError):
    """A second run changed something."""


class ValidityError(ContractError):
    """The result is no valid ONNX."""


class PlanError(ContractError):
    """A quantized op of the plan is gone."""


class ExactnessError(ContractError):
    """The outputs moved further than `exact` says."""


class PurityError(ContractError):
    """A rule or repair changed the model or its mind, or gave an answer that is none."""
