"""Plan, attestation and comparison joined by op key. Recomputes nothing: each number stands in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fp8graph.data.attestation import Attestation, OpVerdict
from fp8graph.data.comparison import Comparison, LayerDifference, OutputDifference
from fp8graph.data.plan import Decision, Plan

KIND, VERSION = "report", 1


@dataclass(frozen=True)
class Row:
    """One op: the decision on it, the verdict on it, the error of the output it makes, and its error as a layer; None
    where no document speaks of it."""

    key: str
    decision: Decision | None = None
    verdict: OpVerdict | None = None
    error: OutputDifference | None = None
    layer: LayerDifference | None = None

    @property
    def op_type(self) -> str:
        """Operator type; empty for an output of which no other document speaks."""
        known = self.decision or self.verdict or self.layer
        return known.op_type if known is not None else ""

    @property
    def planned(self) -> str:
        """What it was to compute in."""
        if self.decision is not None:
            return self.decision.precision
        return self.verdict.planned if self.verdict is not None else ""

    @property
    def broken(self) -> bool:
        """Whether the engine does something else than was promised."""
        return self.verdict is not None and not self.verdict.as_planned

    def to_json(self) -> dict[str, Any]:
        """The row of a report document."""
        why = self.decision.why if self.decision is not None else None
        known = self.decision or self.verdict or self.layer
        return {
            "key": self.key,
            "op_type": self.op_type,
            "name": known.name if known is not None else "",
            "planned": self.planned,
            "reason": None if why is None else {"code": why.code, "by": why.by, "text": why.text},
            "verdict": None if self.verdict is None else self.verdict.verdict,
            "verdict_why": "" if self.verdict is None else self.verdict.why,
            "macs": None if self.verdict is None else self.verdict.macs,
            "weight_bytes": None if self.verdict is None else self.verdict.weight_bytes,
            "error": None if self.error is None else self.error.to_json(),
            "local": None if self.layer is None else self.layer.local.to_json(),
            "accumulated": None if self.layer is None else self.layer.accumulated.to_json(),
        }


@dataclass(frozen=True)
class Report:
    """The documents of one model, joined.

    rows    every op of the plan in its order, then those that only an attestation names, then other outputs
    notes   what speaks against reading the documents together
    """

    rows: tuple[Row, ...]
    plan: Plan | None = None
    attestation: Attestation | None = None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def told(self) -> tuple[Row, ...]:
        """The rows worth a line: quantized, attested or compared. The others are in the plan with their reason."""
        return tuple(
            row
            for row in self.rows
            if row.verdict is not None or row.error is not None or (row.decision and row.decision.do == "quantize")
        )

    @property
    def planned(self) -> dict[str, int]:
        """Ops by what they were to compute in."""
        counts: dict[str, int] = {}
        for row in self.rows:
            if row.planned:
                counts[row.planned] = counts.get(row.planned, 0) + 1
        return counts

    @property
    def kept(self) -> dict[tuple[str, str], int]:
        """Ops that the plan keeps, by the code and the text of the reason."""
        counts: dict[tuple[str, str], int] = {}
        for row in self.rows:
            if row.decision is not None and row.decision.do == "keep":
                reason = (row.decision.why.code, row.decision.why.text)
                counts[reason] = counts.get(reason, 0) + 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """The report as a document."""
        said, compared = self.attestation, self.comparison
        return {
            "schema": f"fp8graph.{KIND}/{VERSION}",
            "target": self.plan.target if self.plan is not None else None,
            "recipe": self.plan.recipe.get("name") if self.plan is not None else None,
            "builder": said.builder if said is not None else None,
            "chips": list(said.chips) if said is not None else None,
            "notes": list(self.notes),
            "totals": {
                "planned": self.planned,
                "verdicts": said.counts if said is not None else None,
                "broken": len(said.broken) if said is not None else None,
                "macs_fp8": said.share("macs") if said is not None else None,
                "weight_bytes_fp8": said.share("weight_bytes") if said is not None else None,
                "samples": compared.samples if compared is not None else None,
                "problems": list(compared.problems) if compared is not None else None,
            },
            "rows": [row.to_json() for row in self.rows],
        }


def join(
    plan: Plan | None = None,
    attestation: Attestation | None = None,
    comparison: Comparison | None = None,
    *,
    notes: tuple[str, ...] = (),
) -> Report:
    """The report of these documents. An output of a comparison is the op whose key it is."""
    decisions: Mapping[str, Decision] = plan.ops if plan is not None else {}
    verdicts = {**attestation.verdicts, **attestation.others} if attestation is not None else {}
    errors = comparison.outputs if comparison is not None else {}
    measured = comparison.layers.layers if comparison is not None and comparison.layers is not None else ()
    layers = {item.key: item for item in measured}
    keys = dict.fromkeys([*decisions, *verdicts, *errors, *layers])
    rows = tuple(Row(key, decisions.get(key), verdicts.get(key), errors.get(key), layers.get(key)) for key in keys)
    return Report(rows, plan, attestation, comparison, notes)
