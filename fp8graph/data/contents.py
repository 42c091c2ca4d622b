"""What is in a file, whatever its kind: the one form that `inspect` prints and `diff` lays side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fp8graph.data.attestation import Attestation
from fp8graph.data.plan import Decision, Plan, Quant, shapes_to_json

# Sections that name their own entries: the rows of `ops` and `scales` say nothing more.
_TOLD = {"verdicts": "rows", "values": "scales"}


@dataclass(frozen=True)
class OpContent:
    """One op of a file.

    key         empty for a node that was inserted for another and has none
    precision   what it computes in: fp8, int8, fp4, fp16 ...; of an attestation and an engine the verdict or word
    detail      the types of its operands, where the file tells them
    why         the reason, its code first
    weight      type that its weight is stored in, of `weight_bytes` bytes
    minor       it serves another op (a Q/DQ that was inserted, a node merged into a kernel): no row of its own
    more        what else its row says
    """

    key: str
    name: str
    op_type: str
    precision: str
    detail: str = ""
    why: str = ""
    weight: str = ""
    weight_bytes: int | None = None
    minor: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The row; what is not known is left out."""
        row: dict[str, Any] = {"key": self.key, "op_type": self.op_type, "name": self.name, "precision": self.precision}
        known = {"detail": self.detail, "weight": self.weight, "weight_bytes": self.weight_bytes}
        return {**row, **{name: value for name, value in known.items() if value not in ("", None)}, **self.more}


@dataclass(frozen=True)
class ScaleContent:
    """The scales of one tensor, or what was seen of its values.

    tensor          its name; `key` the op that reads it quantized
    scales          how many numbers there are; None where they are not in the file
    least, largest  of these numbers
    digest          of all of them, where only the file holds them
    """

    tensor: str
    key: str = ""
    format: str = ""
    per: str = ""
    origin: str = ""
    scales: int | None = None
    least: float | None = None
    largest: float | None = None
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row; what is not known is left out."""
        row: dict[str, Any] = {"key": self.key, "tensor": self.tensor, "format": self.format, "per": self.per}
        row |= {"scales": self.scales, "least": self.least, "largest": self.largest, "origin": self.origin}
        return {name: value for name, value in row.items() if value not in ("", None)}


@dataclass(frozen=True)
class Contents:
    """What is in one file.

    kind      model, plan, ranges, engine, attestation, comparison, result ...
    about     single values that say what the file is; two files may differ here and hold the same
    io        what goes in and out and where it runs: inputs, shapes, chips
    weights   bytes of stored weights by type
    unknown   why the inside could not be read; empty where it was
    sections  what else there is to show, by name
    """

    kind: str
    about: Mapping[str, Any] = field(default_factory=dict)
    io: Mapping[str, Any] = field(default_factory=dict)
    ops: tuple[OpContent, ...] = ()
    scales: tuple[ScaleContent, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    unknown: str = ""
    sections: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The contents as the result of `inspect`: `ops` by type and precision, `rows` one by one."""
        found: dict[str, Any] = {"kind": self.kind, **self.about, **self.io}
        if self.ops:
            found["ops"] = by_precision(self.ops)
            found["rows"] = [op.to_json() for op in self.ops if not op.minor]
        if self.scales:
            found["scales"] = [scale.to_json() for scale in self.scales]
        if self.weights:
            found["weights"] = dict(self.weights)
        for section, told in _TOLD.items():
            if section in self.sections:
                found.pop(told, None)
        return {**found, **self.sections}


def by_precision(ops: Iterable[OpContent]) -> dict[str, dict[str, int]]:
    """How many ops of each type there are in each precision."""
    kinds: dict[str, dict[str, int]] = {}
    for op in ops:
        if op.op_type:
            by = kinds.setdefault(op.op_type, {})
            by[op.precision] = by.get(op.precision, 0) + 1
    return dict(sorted(kinds.items()))


def of_plan(plan: Plan) -> Contents:
    """What a plan decides, op by op."""
    about = {
        "target": plan.target,
        "recipe": plan.recipe.get("name"),
        "settled": plan.settled,
        "data": plan.data,
        "quantized": sum(1 for _ in plan.quantized()),
        "kept": sum(1 for _ in plan.kept()),
    }
    scales: dict[tuple[str, str], ScaleContent] = {}
    for key, op in plan.quantized():
        for quant in op.inputs.values():
            scales.setdefault((quant.value, quant.format), _scale(key, quant))
    ops = tuple(_planned(key, op) for key, op in plan.ops.items())
    io = {"structure": plan.structure, "shapes": shapes_to_json(plan.shapes)}
    return Contents("plan", about, io, ops, tuple(scales.values()))


def of_attestation(said: Attestation) -> Contents:
    """What an attestation says, op by op; `precision` is the verdict."""
    document = said.to_json()
    held = ("schema", "chips", "profiles", "counts", "totals", "weight_bytes", "notes", "verdicts", "others")
    about = {name: value for name, value in document.items() if name not in held}
    ops = tuple(
        OpContent(key, op.name, op.op_type, op.verdict, why=op.why, weight_bytes=op.weight_bytes)
        for key, op in {**said.others, **said.verdicts}.items()
    )
    io = {"chips": list(said.chips), "profiles": said.profiles}
    named = ("counts", "totals", "weight_bytes", "notes", "verdicts", "others")
    sections = {name: document[name] for name in named if document.get(name)}
    return Contents("attestation", about, io, ops, sections=sections)


def of_result(said: Mapping[str, Any]) -> Contents:
    """What a command printed by --json, where its result is no document of its own."""
    error = said.get("error")
    about: dict[str, Any] = {"command": said.get("command"), "status": said.get("status")}
    if isinstance(error, Mapping):
        about |= {"error": f"{error.get('code')}: {error.get('what')}"}
    sections: dict[str, Any] = {name: said[name] for name in ("files", "findings") if said.get(name)}
    result = said.get("result")
    for name, value in result.items() if isinstance(result, Mapping) else ():
        (sections if isinstance(value, Mapping | list) else about)[str(name)] = value
    return Contents("result", about, sections=sections)


def _planned(key: str, op: Decision) -> OpContent:
    formats = " x ".join(quant.format for _, quant in sorted(op.inputs.items()))
    found = "".join(f", {adjust.kind} by {adjust.rule}" for adjust in op.adjust)
    detail = f"{formats} in {op.high}{found}" if formats else ""
    operands = []
    for slot, quant in sorted(op.inputs.items()):
        number = f"{quant.scale.value:.6g}" if quant.scale.value is not None else quant.scale.rule
        operands.append(f"{slot}: {quant.format} {_per(quant)}, {number} {quant.scale.origin}")
    more = {"do": op.do, "high": op.high, "code": op.why.code, "why": op.why.text, "by": op.why.by, "inputs": operands}
    return OpContent(key, op.name, op.op_type, op.precision, detail, f"{op.why.code} {op.why.text}", more=more)


def _scale(key: str, quant: Quant) -> ScaleContent:
    number = quant.scale.value
    origin = f"{quant.scale.origin} {quant.scale.rule}"
    count = None if number is None else 1
    return ScaleContent(quant.value, key, quant.format, _per(quant), origin, count, number, number)


def _per(quant: Quant) -> str:
    blocks = quant.granularity.blocks
    if not blocks:
        return "per tensor"
    if len(blocks) == 1 and blocks[0][1] == 1:
        return f"per index of axis {blocks[0][0]}"
    return "per block " + " x ".join(f"{size} on axis {axis}" for axis, size in blocks)
