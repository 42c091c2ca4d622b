"""What an engine really does with every op that the plan quantizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fp8graph.data.document import check_schema, malformed

Verdict = Literal["fp8", "int8", "fp4", "storage", "emulated", "fell-back", "folded", "absent", "unknown"]
KIND, VERSION = "attestation", 1


@dataclass(frozen=True)
class OpVerdict:
    """One op: what was planned, what the engine does in all its programs, and what each witness saw."""

    op_type: str
    name: str
    planned: str
    verdict: Verdict
    why: str = ""
    witnesses: Mapping[str, str] = field(default_factory=dict)
    macs: int | None = None
    weight_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"unknown verdict '{self.verdict}'")
        if any(size is not None and (type(size) is not int or size < 0) for size in (self.macs, self.weight_bytes)):
            raise ValueError(f"MACs and weight bytes are counts, not {self.macs} and {self.weight_bytes}")

    @property
    def as_planned(self) -> bool:
        """Whether the engine does what the plan says; `unknown` is no success."""
        return self.verdict == self.planned


@dataclass(frozen=True)
class Attestation:
    """The verdicts on one engine, and what they rest on.

    engine, model, plan   sha256 of the files (plan: empty where the model's own Q/DQ were the promise)
    builder               name and version that wrote the engine
    chips                 chips whose programs the engine holds
    profiles              number of programs read (one for each optimisation profile)
    """

    engine: str
    model: str
    plan: str
    builder: str
    chips: tuple[str, ...]
    profiles: int
    verdicts: Mapping[str, OpVerdict]

    @property
    def counts(self) -> dict[str, int]:
        """Ops that the plan quantizes, by verdict; `fp8` is always there."""
        counts: dict[str, int] = {"fp8": 0}
        for op in self.verdicts.values():
            counts[op.verdict] = counts.get(op.verdict, 0) + 1
        return counts

    @property
    def broken(self) -> dict[str, OpVerdict]:
        """Ops that are not what the plan says."""
        return {key: op for key, op in self.verdicts.items() if not op.as_planned}

    def share(self, measure: Literal["macs", "weight_bytes"]) -> float | None:
        """Share (0..1) of the planned ops' MACs or weight bytes that run as planned; None where nothing is known."""
        total = done = 0
        for op in self.verdicts.values():
            size = op.macs if measure == "macs" else op.weight_bytes
            total += size or 0
            done += (size or 0) if op.verdict == "fp8" else 0
        return done / total if total else None

    def to_json(self) -> dict[str, Any]:
        """The attestation as a document."""
        return {
            "schema": f"fp8graph.{KIND}/{VERSION}",
            "engine": self.engine,
            "model": self.model,
            "plan": self.plan,
            "builder": self.builder,
            "chips": list(self.chips),
            "profiles": self.profiles,
            "counts": self.counts,
            "macs_fp8": self.share("macs"),
            "weight_bytes_fp8": self.share("weight_bytes"),
            "verdicts": {key: _verdict_to_json(op) for key, op in self.verdicts.items()},
        }

    @staticmethod
    def from_json(document: Any, where: str = "attestation") -> Attestation:
        """Reads an attestation document. Raises InputError FG111 for anything that is not one."""
        document = check_schema(document, KIND, VERSION, where)
        try:
            return Attestation(
                engine=str(document["engine"]),
                model=str(document["model"]),
                plan=str(document["plan"]),
                builder=str(document["builder"]),
                chips=tuple(str(chip) for chip in document["chips"]),
                profiles=int(document["profiles"]),
                verdicts={
                    str(key): OpVerdict(
                        op_type=str(item["op_type"]),
                        name=str(item["name"]),
                        planned=str(item["planned"]),
                        verdict=item["verdict"],
                        why=str(item["why"]),
                        witnesses=dict(item["witnesses"]),
                        macs=item["macs"],
                        weight_bytes=item["weight_bytes"],
                    )
                    for key, item in document["verdicts"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise malformed(KIND, where, error) from error


def _verdict_to_json(op: OpVerdict) -> dict[str, Any]:
    return {
        "op_type": op.op_type,
        "name": op.name,
        "planned": op.planned,
        "verdict": op.verdict,
        "why": op.why,
        "witnesses": dict(op.witnesses),
        "macs": op.macs,
        "weight_bytes": op.weight_bytes,
    }
