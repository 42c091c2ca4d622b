"""What `sensitivity` found, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fp8graph.base.files import WrittenFile
from fp8graph.base.findings import Finding
from fp8graph.report.tables import Cell, Paint, count, facts, plain, share, size, table, wrapped

_SHOWN = 20


def ranked(
    found: Mapping[str, Any],
    *,
    model: str,
    files: Sequence[WrittenFile],
    findings: Sequence[Finding] = (),
    next_command: str = "",
    paint: Paint = plain,
) -> str:
    """The summary of `sensitivity`; `found` is its result as a document holds it."""
    how = "exact" if found["exact"] else f"{found['plain_evaluations']:.1f} plain evaluations"
    title = f"{paint('bold', model)}: {count(len(found['ops']), 'op')} by what FP8 costs the output ({found['metric']})"
    lines = [title, "", *_table(found, paint)]
    if len(found["ops"]) > _SHOWN:
        lines.append(f"  and {count(len(found['ops']) - _SHOWN, 'op')} more; --json has all of them")
    lines += ["", f"{count(found['runs'], 'run')} on {found['seen']} of {count(found['samples'], 'sample')}: {how}"]
    if found["reached"] is not None:
        lines.append(
            f"{count(len(found['keep']), 'op')} in high precision reach {found['reached']:.4g} {found['metric']}"
        )
    for item in findings:
        lines += wrapped(item.text, first=f"{item.code}  ")
    written = "\n".join(f"{file.path}  ({size(file.bytes)})" for file in files)
    return "\n".join([*lines, "", *facts([("wrote", written), ("next", next_command)])]).rstrip()


def _table(found: Mapping[str, Any], paint: Paint) -> list[str]:
    kept = set(found["keep"])
    decibels = found["metric"] == "sqnr"
    rows: list[list[Cell]] = []
    for op in found["ops"][:_SHOWN]:
        alone = op["sqnr_db"] if decibels else op["cost"]
        told = "-" if alone is None else f"{alone:.1f} dB" if decibels else f"{alone:.3g}"
        rows.append(
            [op["key"], op["op_type"], told, share(op["share"]), _split(op), "keep" if op["key"] in kept else ""]
        )
    return table(["op", "op type", "alone", "share", "split", ""], rows, right=(2, 3), paint=paint)


def _split(op: Mapping[str, Any]) -> str:
    """The parts of the cost: of the weight, and of each input."""
    parts = {slot: part for slot, part in (op["inputs"] or {}).items() if part is not None}
    whole = sum(parts.values())
    if not whole:
        return ""
    names = {slot: "weight" if op["weight"] == int(slot) else f"input {slot}" for slot in parts}
    return ", ".join(f"{names[slot]} {share(part / whole)}" for slot, part in parts.items())
