"""Targets: what an engine can run, and what that costs, as rows with sources. Rows are data, never code."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, TypeVar, get_args

from fp8graph.base.errors import InternalError, UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.data.qdq import Qdq
from fp8graph.formats.spec import ScaleRule

_NO_QDQ = Qdq()
Status = Literal["native", "costly", "emulated", "refused"]
Fact = bool | int | str
Terms = Literal["all", "constant", "none"]
Sourced = TypeVar("Sourced", "TypeRow", "Epilogue")
# From best to worst: of several chips the worst row counts.
_ORDER: tuple[Status, ...] = ("native", "costly", "emulated", "refused")


@dataclass(frozen=True)
class Bound:
    """A bound on one fact: `min <= fact <= max`, or equality. A fact that is not known fulfils no bound."""

    fact: str
    min: int | None = None
    max: int | None = None
    equals: Fact | None = None

    def holds(self, facts: Mapping[str, Fact]) -> bool:
        """Whether the facts of an op lie within the bound."""
        value = facts.get(self.fact)
        if value is None:
            return False
        if self.equals is not None:
            return value == self.equals
        if isinstance(value, str):
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


@dataclass(frozen=True)
class Row:
    """One line of a target's table: these ops in these formats, under these bounds, have this status.

    `weights` is the coarsest granularity that a constant operand must have: `tensor` or `channel`, or `any`;
    `activations` likewise, `token` for one scale per row.
    `rule` is how scales that are powers of two are rounded there, whatever the recipe says: `max` where operators of
    the target round them up. `asked` says that the row is for those who ask for it (--fp8-everywhere, or the op by name
    or type): all others it refuses.
    `chips` narrows the row to some chips. `source` is a document, or a probe with its version.
    """

    ops: tuple[str, ...]
    formats: tuple[str, ...]
    status: Status
    source: str
    text: str
    weights: Literal["any", "channel", "tensor"] = "any"
    chips: tuple[str, ...] = ()
    when: tuple[Bound, ...] = ()
    activations: Literal["any", "token"] = "any"
    rule: ScaleRule | Literal[""] = ""
    asked: bool = False

    @property
    def rank(self) -> int:
        """How bad the status is: 0 for the best."""
        return _ORDER.index(self.status)

    def applies(self, op_type: str, format: str, facts: Mapping[str, Fact], chip: str) -> bool:
        """Whether the row speaks about this op on this chip."""
        return (
            op_type in self.ops
            and format in self.formats
            and (not self.chips or chip in self.chips)
            and all(bound.holds(facts) for bound in self.when)
        )


@dataclass(frozen=True)
class TypeRow:
    """High-precision types that these ops cannot have: the engine cannot be built, whatever else is in FP8.

    The op `*` says that no op can: the type is refused where it is asked for.
    """

    ops: tuple[str, ...]
    types: tuple[str, ...]
    source: str
    text: str


@dataclass(frozen=True)
class Ragged:
    """Blocks of a stored weight have to divide their axis: a DequantizeLinear with others is not read, or wrongly.

    `single` says that one block may be longer than its axis.
    """

    source: str
    text: str
    single: bool = False

    def cuts(self, size: int, length: int) -> bool:
        """Whether blocks of this size cannot be on an axis of this length."""
        return length % size != 0 and not (self.single and length < size)


@dataclass(frozen=True)
class Epilogue:
    """What is one kernel with these ops in half precision, and a kernel of its own behind them in FP8."""

    ops: tuple[str, ...]
    behind: tuple[str, ...]
    source: str
    text: str


@dataclass(frozen=True)
class Target:
    """One engine with its chips.

    chips       those asked for; where none were, all that run FP8
    opset       least opset of the default domain that its FP8 graphs want
    ir_version  highest that its readers load
    through     op types between DQ and op that keep the op in FP8
    forms       LEGALIZE passes that spell things this target's way
    builder     engine builder, or empty where there is none
    terms       which products may have an operand in two terms: `all`; `constant`, those with a weight; `none`
    decompose   op types that are written out as simpler ones before planning, where that can be done
    types       high-precision types that some ops cannot have
    scales      formats that scales may be stored in beside float32; other powers of two are written as float32
    epilogues   what FP8 ops lose that half precision has: a note, no cost
    ragged      why it reads no blocks that do not divide their axis; None where it does
    qdq         how it reads Q/DQ of anybody's
    """

    name: str
    summary: str
    chips: tuple[str, ...]
    all_chips: Mapping[str, bool]
    opset: int
    ir_version: int
    through: tuple[str, ...]
    forms: tuple[str, ...]
    rows: tuple[Row, ...]
    builder: str = ""
    asked: str = ""
    decompose: tuple[str, ...] = ()
    terms: Terms = "none"
    types: tuple[TypeRow, ...] = ()
    scales: tuple[str, ...] = ()
    epilogues: tuple[Epilogue, ...] = ()
    ragged: Ragged | None = None
    qdq: Qdq = _NO_QDQ

    def worst(self, op_type: str, formats: Iterable[str], facts: Mapping[str, Fact]) -> tuple[str, Row]:
        """The row that decides about an op with operands in these formats, and the format it speaks of: the worst."""
        found = [(format, self.row(op_type, format, facts)) for format in dict.fromkeys(formats)]
        return max(found, key=lambda item: item[1].rank)

    def untyped(self, op_type: str, high: str) -> TypeRow | None:
        """Why an op cannot have this high-precision type; None where it can."""
        return next((row for row in self.types if op_type in row.ops and high in row.types), None)

    def lacks(self, high: str) -> TypeRow | None:
        """Why nothing runs in this high-precision type; None where something does."""
        return self.untyped("*", high)

    def row(self, op_type: str, format: str, facts: Mapping[str, Fact]) -> Row:
        """The row that decides about an op: for each chip the first that applies, of these the worst."""
        found = [self._row_of_chip(op_type, format, facts, chip) for chip in self.chips or ("",)]
        return max(found, key=lambda row: row.rank)

    def _row_of_chip(self, op_type: str, format: str, facts: Mapping[str, Fact], chip: str) -> Row:
        for row in self.rows:
            if row.applies(op_type, format, facts, chip):
                return row
        return Row(
            (op_type,),
            (format,),
            "refused",
            f"table of {self.name}",
            f"{self.name} has no row for {op_type} in {format}",
        )


def names() -> list[str]:
    """Names of the packaged targets."""
    return sorted(
        entry.name.removesuffix(".toml").replace("_", "-")
        for entry in resources.files("fp8graph.targets").iterdir()
        if entry.name.endswith(".toml")
    )


def load(spec: str) -> Target:
    """A target from `NAME[:CHIP[+CHIP...]]`. Raises UsageError for an unknown name or chip, or a chip without FP8."""
    name, colon, chip_list = spec.partition(":")
    if name not in names():
        raise UsageError(f"there is no target '{name}'", where="--target", do=did_you_mean(name, names()), code="FG101")
    text = resources.files("fp8graph.targets").joinpath(f"{name.replace('-', '_')}.toml").read_text(encoding="utf-8")
    try:
        return _from_table(tomllib.loads(text), spec, chip_list.split("+") if colon else [])
    except (KeyError, TypeError, ValueError) as error:
        raise InternalError(f"the table of target '{name}' is damaged", why=repr(error), code="FG900") from error


def _from_table(table: dict[str, Any], spec: str, asked: list[str]) -> Target:
    chips: dict[str, bool] = {str(chip): bool(item["fp8"]) for chip, item in table.get("chips", {}).items()}
    for chip in asked:
        if not chip:
            able = ", ".join(name for name, fp8 in chips.items() if fp8)
            raise UsageError(
                f"'{spec}' names no chip behind ':' or '+'",
                where="--target",
                do=f"choose one of {able}" if able else f"write --target {table['name']}: it has no chips",
                code="FG101",
            )
        if chip not in chips:
            raise UsageError(
                f"target '{table['name']}' does not know the chip '{chip}'",
                where="--target",
                do=did_you_mean(chip, chips),
                code="FG101",
            )
        if not chips[chip]:
            able = ", ".join(name for name, fp8 in chips.items() if fp8)
            raise UsageError(
                f"the chip '{chip}' has no FP8",
                where="--target",
                why=str(table["chips"][chip].get("source", "the target's table")),
                do=f"choose one of {able}",
                code="FG303",
            )
    return Target(
        name=str(table["name"]),
        summary=str(table["summary"]),
        chips=tuple(asked) or tuple(chip for chip, fp8 in chips.items() if fp8),
        all_chips=chips,
        opset=int(table["opset"]),
        ir_version=int(table["ir_version"]),
        through=tuple(table["through"]),
        forms=tuple(table["forms"]),
        rows=tuple(_row(item) for item in table["rows"]),
        builder=str(table.get("builder", "")),
        asked=spec,
        decompose=tuple(table.get("decompose", ())),
        terms=table.get("terms", "none"),
        scales=tuple(table.get("scales", ())),
        types=tuple(_sourced(TypeRow, item, "types") for item in table.get("types", ())),
        epilogues=tuple(_sourced(Epilogue, item, "behind") for item in table.get("epilogues", ())),
        ragged=_ragged(table["ragged"]) if "ragged" in table else None,
        qdq=Qdq.from_table(table.get("qdq")),
    )


def _sourced(made: type[Sourced], item: dict[str, Any], lists: str) -> Sourced:
    """A line of the table with a source: its two lists of names, source and text."""
    if not item["source"] or not item["text"]:
        raise ValueError(f"row {item}")
    return made(tuple(item["ops"]), tuple(item[lists]), str(item["source"]), str(item["text"]))


def _ragged(item: dict[str, Any]) -> Ragged:
    if not item["source"] or not item["text"]:
        raise ValueError(f"ragged {item}")
    return Ragged(str(item["source"]), str(item["text"]), bool(item.get("single", False)))


def _row(item: dict[str, Any]) -> Row:
    said = item["status"] in get_args(Status) and item.get("rule", "") in ("", *get_args(ScaleRule))
    if not said or not item["source"] or not item["text"]:
        raise ValueError(f"row {item}")
    return Row(
        ops=tuple(item["ops"]),
        formats=tuple(item["formats"]),
        status=item["status"],
        source=str(item["source"]),
        text=str(item["text"]),
        weights=item.get("weights", "any"),
        activations=item.get("activations", "any"),
        rule=item.get("rule", ""),
        asked=bool(item.get("asked", False)),
        chips=tuple(item.get("chips", ())),
        when=tuple(
            Bound(fact, bound.get("min"), bound.get("max"), bound.get("equals"))
            for fact, bound in item.get("when", {}).items()
        ),
    )
