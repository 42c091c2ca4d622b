"""What an engine really does with every op that the plan quantizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fp8graph.base.findings import Finding, Severity
from fp8graph.data.document import check_schema, malformed

Verdict = Literal["fp8", "int8", "fp4", "storage", "emulated", "fell-back", "folded", "absent", "unknown", "high"]
Measure = Literal["macs", "weight_bytes"]
KIND, VERSION = "attestation", 1
HIGH: Verdict = "high"
SILENT = "silent: "  # how the word of a witness begins that was not heard
# What can be done about an op that is not as planned, by the code of its verdict.
_DO = {
    "FG501": "python -m fp8graph check MODEL finds most causes before a build",
    "FG502": "attest with the very model that the engine was built from",
    "FG503": "report it with the attestation document (--json)",
    "FG508": "build it anew: python -m fp8graph build MODEL -o ENGINE --target TARGET",
    "FG509": "give --model the file that the engine was built from, or build it anew from this one",
    "FG512": "write the model anew: python -m fp8graph optimize SOURCE -o MODEL --plan PLAN",
}


@dataclass(frozen=True)
class OpVerdict:
    """One op: what was planned, what the engine does in all its programs, and what each witness saw.

    planned     a verdict; `high` for an op that was left in high precision
    why, code   why it is not as planned, and the code of that; `why` may hold a caution where it is
    witnesses   the word of each; one that was not heard begins with `silent: `
    profiles    the verdict in each optimisation profile, where they differ
    row         status of the target's row for it (`native`, `costly` ...); empty where there is none
    head        no other product lies behind it: it counts among what could run in FP8 only if it was planned so
    forecast    what was expected before the build; empty where nobody has forecast
    macs, weight_bytes   None where the shapes are not known; a byte for each element of the weight
    """

    op_type: str
    name: str
    planned: str
    verdict: Verdict
    why: str = ""
    witnesses: Mapping[str, str] = field(default_factory=dict)
    macs: int | None = None
    weight_bytes: int | None = None
    code: str = ""
    profiles: tuple[Verdict, ...] = ()
    row: str = ""
    head: bool = False
    forecast: str = ""

    def __post_init__(self) -> None:
        for verdict in (self.verdict, *self.profiles):
            if verdict not in get_args(Verdict):
                raise ValueError(f"unknown verdict '{verdict}'")
        if any(size is not None and (type(size) is not int or size < 0) for size in (self.macs, self.weight_bytes)):
            raise ValueError(f"MACs and weight bytes are counts, not {self.macs} and {self.weight_bytes}")

    @property
    def as_planned(self) -> bool:
        """Whether the engine does what the plan says; `unknown` is no success."""
        return self.verdict == self.planned

    @property
    def rests_on(self) -> tuple[str, ...]:
        """The witnesses that were heard, in their order."""
        return tuple(name for name, word in self.witnesses.items() if not word.startswith(SILENT))

    @property
    def eligible(self) -> bool:
        """Whether it counts among what could run in FP8: planned, or native in the table and no head of the model."""
        return self.planned != HIGH or (self.row == "native" and not self.head)


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of constants: those that the engine's programs read, and those that the model promises."""

    engine: int | None = None
    forecast: int | None = None

    @property
    def excess(self) -> float | None:
        """By how much the engine holds more than forecast, as a share of the forecast."""
        return None if self.engine is None or not self.forecast else self.engine / self.forecast - 1


@dataclass(frozen=True)
class Attestation:
    """The verdicts on one engine, and what they rest on.

    engine, model, plan   sha256 of the files (plan: empty where the model's own Q/DQ were the promise)
    builder               name and version that wrote the engine
    chips                 chips whose programs the engine holds
    profiles              number of programs read (one for each optimisation profile)
    verdicts              of the ops that the plan quantizes, in its order
    others                of the other Conv, Gemm and MatMul of the model: what of them runs in FP8
    notes                 what was found that concerns the engine as a whole, or the model and the plan
    weights               bytes of constants, read and forecast
    """

    engine: str
    model: str
    plan: str
    builder: str
    chips: tuple[str, ...]
    profiles: int
    verdicts: Mapping[str, OpVerdict]
    others: Mapping[str, OpVerdict] = field(default_factory=dict)
    notes: tuple[Finding, ...] = ()
    weights: WeightBytes = WeightBytes()

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

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The notes, and one finding for each op that is not what the plan says."""
        ops = [
            Finding(
                op.code or "FG501",
                "error",
                key,
                f"{op.op_type}: planned {op.planned}, the engine: {op.verdict}" + (f" ({op.why})" if op.why else ""),
                _DO.get(op.code or "FG501", ""),
            )
            for key, op in self.broken.items()
        ]
        return (*self.notes, *ops)

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against the attestation as a whole, whatever its verdicts are."""
        return not any(note.severity == "error" and not note.op for note in self.notes)

    @property
    def honest(self) -> bool:
        """Whether the engine does what was promised: every op, by an engine, model and plan that belong together.

        Where nothing was promised, because there is neither a plan nor Q/DQ, nothing is kept.
        """
        errors = any(note.severity == "error" for note in self.notes)
        return not self.broken and not errors and bool(self.verdicts or self.plan)

    def share(self, measure: Measure) -> float | None:
        """Share (0..1) that runs in FP8, of the MACs or weight bytes of the eligible ops; None where nothing is known.

        Eligible are the Conv, Gemm and MatMul whose row of the target's table is `native`, and what was planned
        without being so. A head (no other product behind it) counts only where it was planned.
        """
        total = done = 0
        for op in (*self.verdicts.values(), *self.others.values()):
            size = _size(op, measure) if op.eligible else 0
            total += size
            done += size if op.verdict == "fp8" else 0
        return done / total if total else None

    def totals(self, measure: Measure) -> dict[str, int]:
        """MACs or weight bytes of all products of the model, by verdict."""
        sums: dict[str, int] = {"fp8": 0}
        for op in (*self.verdicts.values(), *self.others.values()):
            sums[op.verdict] = sums.get(op.verdict, 0) + _size(op, measure)
        return sums

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
            "totals": {"macs": self.totals("macs"), "weight_bytes": self.totals("weight_bytes")},
            "weight_bytes": {"engine": self.weights.engine, "forecast": self.weights.forecast},
            "notes": [note.to_json() for note in self.notes],
            "verdicts": {key: _verdict_to_json(op) for key, op in self.verdicts.items()},
            "others": {key: _verdict_to_json(op) for key, op in self.others.items()},
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
                verdicts={str(key): _verdict_from_json(item) for key, item in document["verdicts"].items()},
                others={str(key): _verdict_from_json(item) for key, item in document["others"].items()},
                notes=tuple(_note_from_json(item) for item in document["notes"]),
                weights=WeightBytes(*(_count(document["weight_bytes"][name]) for name in ("engine", "forecast"))),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise malformed(KIND, where, error) from error


def _size(op: OpVerdict, measure: Measure) -> int:
    return (op.macs if measure == "macs" else op.weight_bytes) or 0


def _count(number: Any) -> int | None:
    if number is not None and (type(number) is not int or number < 0):
        raise ValueError(f"a number of bytes was expected, not {number!r}")
    return number


def _note_from_json(item: Any) -> Finding:
    if item["severity"] not in get_args(Severity):
        raise ValueError(f"unknown severity {item['severity']!r}")
    return Finding(str(item["code"]), item["severity"], str(item["op"]), str(item["text"]), str(item["do"]))


def _verdict_to_json(op: OpVerdict) -> dict[str, Any]:
    return {
        "op_type": op.op_type,
        "name": op.name,
        "planned": op.planned,
        "forecast": op.forecast,
        "verdict": op.verdict,
        "profiles": list(op.profiles),
        "code": op.code,
        "why": op.why,
        "witnesses": dict(op.witnesses),
        "rests_on": list(op.rests_on),
        "row": op.row,
        "head": op.head,
        "macs": op.macs,
        "weight_bytes": op.weight_bytes,
    }


def _verdict_from_json(item: Any) -> OpVerdict:
    return OpVerdict(
        op_type=str(item["op_type"]),
        name=str(item["name"]),
        planned=str(item["planned"]),
        verdict=item["verdict"],
        why=str(item["why"]),
        witnesses={str(name): str(word) for name, word in item["witnesses"].items()},
        macs=item["macs"],
        weight_bytes=item["weight_bytes"],
        code=str(item["code"]),
        profiles=tuple(item["profiles"]),
        row=str(item["row"]),
        head=bool(item["head"]),
        forecast=str(item["forecast"]),
    )
