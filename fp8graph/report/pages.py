"""A report as text, Markdown or one HTML page that needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence

from fp8graph.data.comparison import OutputDifference
from fp8graph.report.joined import Report, Row
from fp8graph.report.tables import Cell, Paint, count, facts, plain, share, table, tally, wrapped

_HEAD = ("op", "type", "planned", "reason", "engine", "error of its output")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .7rem;border-bottom:1px solid #ddd;"
    "vertical-align:top}td:first-child{font-family:ui-monospace,monospace;overflow-wrap:anywhere}"
    ".bad{color:#b00020}.good{color:#00691c}dt{float:left;clear:left;width:8rem;color:#666}dd{margin-left:8rem}"
)


def text(report: Report, *, paint: Paint = plain) -> str:
    """The report for a terminal."""
    rows: list[list[Cell]] = []
    for row in report.told:
        key, kind, planned, reason, engine, error = _cells(row)
        rows.append([key, kind, planned, _painted(engine, row), error, reason])
    lines = facts(_facts(report))
    head = [_HEAD[0], _HEAD[1], _HEAD[2], _HEAD[4], _HEAD[5], _HEAD[3]]
    lines += ["", *table(head, rows, paint=paint)] if rows else []
    lines += ["", "kept in high precision"] if report.kept else []
    for (code, why), number in _kept(report):
        lines += wrapped(why, first=f"  {number:>4}  {code}  ")
    for note in _notes(report):
        lines += ["", *wrapped(note, first="note: ", rest="  ")]
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """The report as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"

    lines = ["# FP8 report", "", *(f"- **{label}**: {_escaped(value)}" for label, value in _facts(report) if value)]
    lines += ["", *(f"> {_escaped(note)}" for note in _notes(report))] if _notes(report) else []
    lines += ["", line(_HEAD), "|" + "---|" * len(_HEAD)]
    lines += [line([f"`{row.key}`", *_cells(row)[1:]]) for row in report.told]
    if report.kept:
        lines += ["", "## Kept in high precision", "", "| ops | code | why |", "|---|---|---|"]
        lines += [line([str(number), code, why]) for (code, why), number in _kept(report)]
    return "\n".join(lines) + "\n"


def page(report: Report) -> str:
    """The report as one HTML page."""

    def cells(values: Sequence[str], tag: str = "td", style: Mapping[int, str] | None = None) -> str:
        marks = style or {}
        return "".join(
            f"<{tag}{f' class={chr(34)}{marks[i]}{chr(34)}' if i in marks else ''}>{html.escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    about = "".join(f"<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>" for a, b in _facts(report) if b)
    notes = "".join(f'<p class="bad">{html.escape(note)}</p>' for note in _notes(report))
    rows = "".join(
        f"<tr>{cells(_cells(row), style={4: 'bad' if row.broken else 'good'} if row.verdict else None)}</tr>\n"
        for row in report.told
    )
    kept = "".join(f"<tr>{cells([code, str(n), why])}</tr>\n" for (code, why), n in _kept(report))
    kept = f"<h2>Kept in high precision</h2>\n<table>\n<tr>{cells(['code', 'ops', 'why'], 'th')}</tr>\n{kept}</table>\n"
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>FP8 report</title>\n'
        f"<style>{_STYLE}</style>\n<h1>FP8 report</h1>\n<dl>{about}</dl>\n{notes}"
        f"<table>\n<tr>{cells(_HEAD, 'th')}</tr>\n{rows}</table>\n{kept if report.kept else ''}</html>\n"
    )


def document(report: Report) -> str:
    """The report as JSON."""
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Report], str]] = {"text": text, "md": markdown, "html": page, "json": document}


def _facts(report: Report) -> list[tuple[str, str]]:
    """Label and text, most telling first; empty texts for what no document tells."""
    plan, said, compared = report.plan, report.attestation, report.comparison
    pairs = []
    if plan is not None:
        pairs += [("plan", f"{plan.target}, recipe {plan.recipe.get('name', 'unnamed')}"), ("data", plan.data)]
    if said is not None:
        pairs += [("engine", f"{said.builder} for {'+'.join(said.chips) or 'unknown chips'}")]
    pairs += [("planned", tally(report.planned))]
    if said is not None:
        fine = len(said.verdicts) - len(said.broken)
        pairs += [("attested", f"{fine} of {len(said.verdicts)} as planned: {tally(said.counts)}")]
        parts = [(said.share("macs"), "MACs"), (said.share("weight_bytes"), "weight bytes")]
        told = [f"{share(part)} of the {name}" for part, name in parts if part is not None]
        pairs += [("in FP8", ", ".join(told))]
    if compared is not None:
        on = f" on {count(compared.samples, 'sample')}" if compared.samples else ""
        pairs += [("compared", f"{count(len(compared.outputs), 'output')}{on}")]
    return pairs


def _cells(row: Row) -> list[str]:
    """The cells of a row in the order of `_HEAD`."""
    why = row.decision.why if row.decision is not None else None
    reason = f"{why.code} {why.text}" if why is not None else ""
    engine = ""
    if row.verdict is not None:
        engine = row.verdict.verdict + (f": {row.verdict.why}" if row.broken and row.verdict.why else "")
    return [row.key, row.op_type, row.planned, reason, engine, _error(row)]


def _error(row: Row) -> str:
    """The error of an output; of a layer what has come together there, and what it adds by itself."""
    if row.layer is None:
        return _difference(row.error) if row.error is not None else ""
    both, local = _difference(row.error or row.layer.accumulated), row.layer.local
    return f"{both}; its own: {_ratio(local) or _difference(local)}"


def _difference(item: OutputDifference) -> str:
    if item.equal:
        return "equal"
    parts = [
        _ratio(item),
        f"max {item.max_abs:.3g}" if item.max_abs is not None else "",
        f"{item.new_nonfinite:,} new NaN or Inf" if item.new_nonfinite else "",
    ]
    return ", ".join(part for part in parts if part) or "differs"


def _ratio(item: OutputDifference) -> str:
    return f"SQNR {item.sqnr_db:.1f} dB" if item.sqnr_db is not None else ""


def _painted(engine: str, row: Row) -> Cell:
    return ("bad" if row.broken else "good", engine) if engine else ""


def _kept(report: Report) -> list[tuple[tuple[str, str], int]]:
    return sorted(report.kept.items(), key=lambda item: (-item[1], item[0]))


def _notes(report: Report) -> list[str]:
    problems = report.comparison.problems if report.comparison is not None else ()
    found = report.attestation.notes if report.attestation is not None else ()
    return [*report.notes, *problems, *(f"{note.code} {note.text}" for note in found)]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
