"""Findings: verdicts as values. A model that is poor is no exception."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing found in a model, plan or engine: code first, then where, what it means and the mend."""

    code: str
    severity: Severity
    op: str
    text: str
    do: str = ""

    def to_json(self) -> dict[str, str]:
        """The finding as an item of a result document's `findings`."""
        return {"code": self.code, "severity": self.severity, "op": self.op, "text": self.text, "do": self.do}


class Notes:
    """Append-only list of findings that passes leave for the user."""

    def __init__(self) -> None:
        self._items: dict[Finding, None] = {}  # a set that keeps the order

    def add(self, code: str, op: str, text: str, *, severity: Severity = "info", do: str = "") -> None:
        """Leaves one note; an equal one is kept once."""
        self._items.setdefault(Finding(code, severity, op, text, do))

    def items(self) -> tuple[Finding, ...]:
        """All notes in the order they came."""
        return tuple(self._items)
