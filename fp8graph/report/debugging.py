"""What `debug precision` found, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fp8graph.base.files import WrittenFile
from fp8graph.report.tables import Cell, Paint, count, facts, plain, size, table, wrapped

_SHOWN = 30


def debugged(
    found: Mapping[str, Any],
    *,
    model: str,
    files: Sequence[WrittenFile],
    next_command: str = "",
    paint: Paint = plain,
) -> str:
    """The summary of `debug precision`; `found` is its result as a document holds it."""
    kept, steps = found["keep"], found["steps"]
    whole = len(kept) + found["quantized"]
    if kept:
        lines = [
            f"{paint('bold', model)}: {len(kept)} of {count(whole, 'quantized op')} have to stay in high precision",
            "",
        ]
        rows: list[list[Cell]] = [[item["key"], item["op_type"], item["why"]] for item in kept[:_SHOWN]]
        lines += table(["op", "op type", "why"], rows, paint=paint)
        lines += [f"  and {count(len(kept) - _SHOWN, 'op')} more"] if len(kept) > _SHOWN else []
    else:
        text = "it is good with all of them in low precision, and no operator has to stay in high precision"
        lines = wrapped(text, first=f"{model}: ")
    lines += ["", f"{count(len(steps), 'step')}, {found['units']} sets of ops that flip as one"]
    told: list[list[Cell]] = [
        [str(number), str(len(step["kept"])), ("good", "good") if step["good"] else ("bad", "bad"), step["said"]]
        for number, step in enumerate(steps, 1)
    ]
    if len(told) > _SHOWN:
        told = [*told[: _SHOWN // 2], ["...", "", "", ""], *told[-_SHOWN // 2 :]]
    lines += table(["step", "kept", "", "said"], told, right=(0, 1), paint=paint)
    written = "\n".join(f"{file.path}  ({size(file.bytes)})" for file in files)
    return "\n".join([*lines, "", *facts([("wrote", written), ("next", next_command)])])
