"""What listing commands print: catalogues, targets, the state of the machine, and the inside of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fp8graph.data.target import Bound, Row, Target
from fp8graph.report.narrowing import SECTIONS
from fp8graph.report.tables import Cell, Paint, facts, listed, plain, size, table, tally, wrapped

# What of a row is too wide for a table: --json has it.
_WIDE = frozenset({"witnesses", "rests_on", "names", "keys", "profiles"})
# Shown where they are asked for: a model's rows are its whole graph, an engine's and a plan's are told elsewhere.
_LONG = {"model": ("rows",), "engine": ("rows",), "plan": ("scales",)}
_SHAPES = frozenset({"shape", "min", "opt", "max"})
_SOURCE_INDENT = 13


def catalogue(rows: Sequence[Sequence[str]], *, empty: str = "there is none", paint: Paint = plain) -> str:
    """Names in the first columns, what they are in the last, which is wrapped."""
    if not rows:
        return empty
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        head = "  ".join(text.ljust(width) for text, width in zip(row[:-1], widths, strict=True)) + "  "
        first, *more = wrapped(row[-1], first=head)
        lines += [paint("bold", first[: len(row[0])]) + first[len(row[0]) :], *more]
    return "\n".join(lines)


def target_page(target: Target, rows: Sequence[Row], *, op_type: str | None = None, paint: Paint = plain) -> str:
    """What a target runs: its chips and the rows of its table, each with its source."""
    chips = ", ".join(f"{chip}" if fp8 else f"{chip} (no FP8)" for chip, fp8 in target.all_chips.items())
    lines = [f"{paint('bold', target.name)}  {target.summary}", ""]
    lines += facts(
        [
            ("chips", chips or "none to choose from"),
            ("builder", target.builder or "none"),
            ("opset", f"{target.opset} at least, IR version {target.ir_version} at most"),
            ("imports", ", ".join(target.qdq.imports) if target.qdq.imports is not None else "all formats"),
            ("FP8 passes", "\n".join(wrapped(", ".join(target.through) or "nothing", width=80))),
        ],
        width=12,
    )
    lines += ["", f"rows for {op_type}" if op_type else "rows; the first that applies decides"]
    styles = {"native": "good", "costly": "warn", "emulated": "warn", "refused": "bad"}
    for row in rows:
        where = f" on {'+'.join(row.chips)}" if row.chips else ""
        when = f" where {', '.join(map(_bound, row.when))}" if row.when else ""
        head = f"{', '.join(row.ops)} in {', '.join(row.formats)}{where}{when}"
        one = "; wants one scale for the whole weight" if row.weights == "tensor" else ""
        lines += ["", f"  {paint(styles[row.status], f'{row.status:<9}')}  {head}"]
        asked = "; only where it is asked for: --fp8-everywhere, or by name or type" if row.asked else ""
        lines += wrapped(row.text + one + asked, first=" " * _SOURCE_INDENT)
        lines += [paint("dim", line) for line in wrapped(f"source: {row.source}", first=" " * _SOURCE_INDENT)]
    if not rows:
        lines.append(f"  none: {target.name} refuses {op_type or 'everything'}")
    lines += _remarks(target, op_type, paint)
    return "\n".join(lines)


def _remarks(target: Target, op_type: str | None, paint: Paint) -> list[str]:
    """Types that ops cannot have, epilogues that they lose in FP8, ops that are not imported; each with its source."""
    told = [("no kernel", item.ops, f"in {', '.join(item.types)}", item.text, item.source) for item in target.types]
    told += [
        ("note", item.ops, f"in front of {', '.join(item.behind)}", item.text, item.source) for item in target.epilogues
    ]
    told += [("no import", item.ops, "in any form", item.text, item.source) for item in target.qdq.refused]
    lines: list[str] = []
    for word, ops, where, text, source in told:
        if op_type is None or op_type in ops:
            lines += ["", *wrapped(f"{', '.join(ops)} {where}", first=f"  {word:<9}  ")]
            lines += wrapped(text, first=" " * _SOURCE_INDENT)
            lines += [paint("dim", line) for line in wrapped(f"source: {source}", first=" " * _SOURCE_INDENT)]
    return lines


def row_json(row: Row) -> dict[str, Any]:
    """A row as a part of a result document."""
    return {
        "ops": list(row.ops),
        "formats": list(row.formats),
        "status": row.status,
        "chips": list(row.chips),
        "when": {
            bound.fact: {
                name: value for name in ("min", "max", "equals") if (value := getattr(bound, name)) is not None
            }
            for bound in row.when
        },
        "weights": row.weights,
        "asked": row.asked,
        "text": row.text,
        "source": row.source,
    }


def machine(state: Mapping[str, Any], *, missing: Iterable[str] = (), paint: Paint = plain) -> str:
    """The view of `doctor`: versions, devices, targets."""
    lines = facts([("python", str(state.get("python", ""))), ("platform", str(state.get("platform", "")))])
    packages = state.get("packages", {})
    rows: list[list[Cell]] = [
        [name, str(version) if version else ("warn", "not installed")] for name, version in packages.items()
    ]
    lines += ["", "packages", *table((), rows, paint=paint)] if rows else []
    devices = state.get("devices", ())
    lines += ["", "devices", *(f"  {_inline(device)}" for device in devices or ("none that an engine could use",))]
    lines += ["", "targets"]
    for target in state.get("targets", ()):
        usable = bool(target.get("usable"))
        word = paint("good", "usable") if usable else paint("bad", "not usable")
        can = ", ".join(map(str, target.get("can", ())))
        note = f": {can}" if usable and can else f", still: {can}" if can else ""
        lines.append(f"  {target['name']:<14}  {word}{note}")
        if target.get("why_not"):
            lines += wrapped(str(target["why_not"]), first=" " * 18)
        if target.get("install") and (not usable or target.get("why_not")):
            lines.append(" " * 18 + f"install: {target['install']}")
    lines += ["", *(paint("bad", f"required and not usable: {name}") for name in missing)] if missing else []
    return "\n".join(lines)


def inside(
    document: Mapping[str, Any], *, show: Sequence[str] = (), narrowed: bool = False, paint: Paint = plain
) -> str:
    """Any document of `inspect`: single values first, then a table for each section.

    A section is a list of mappings (a row each), a mapping of mappings (a row each, its key first), or a mapping of
    numbers. `show` names the sections to print (see SECTIONS); none means all but the longest, and these, too, where
    the document was `narrowed`.
    """
    wanted = {name for kind in show for name in SECTIONS[kind]}
    order = [name for names in SECTIONS.values() for name in names]
    single = [(name, value) for name, value in document.items() if not _is_section(value)]
    sections = {name: value for name, value in document.items() if _is_section(value)}
    hidden = () if show or narrowed else _LONG.get(str(document.get("kind")), ())
    lines: list[str] = []
    pairs = [
        (name.replace("_", " "), _inline(value, name))
        for name, value in single
        if value not in (None, "", []) and (name in wanted or not show)
    ]
    lines += facts(pairs, width=max((len(name) for name, _ in pairs), default=0) + 2)
    names = sorted(sections, key=lambda name: (order.index(name) if name in order else len(order), name))
    for name in names:
        if (name in wanted if show else name not in hidden) and sections[name]:
            told = _decisions(sections[name], paint) if _holds_decisions(sections[name]) else None
            lines += ["", paint("bold", name.replace("_", " ")), *(told or _section(name, sections[name], paint))]
    text = "\n".join(lines).strip("\n")
    return text or f"this {document.get('kind', 'file')} has no {' or '.join(show) or 'content'}"


def _holds_decisions(value: Any) -> bool:
    """Whether these are the rows of a plan: each with what is done and why."""
    return isinstance(value, list) and all(
        isinstance(row, Mapping) and {"do", "code", "why"} <= row.keys() for row in value
    )


def _decisions(rows: Sequence[Mapping[str, Any]], paint: Paint) -> list[str]:
    """A line for each op with its reason, and under it one for each operand that is quantized."""
    names = ("key", "op_type", "do")
    widths = [max(len(str(row.get(name, ""))) for row in rows) for name in names]
    lines = []
    for row in rows:
        cells = [str(row.get(name, "")).ljust(width) for name, width in zip(names, widths, strict=True)]
        cells[2] = paint("good" if row["do"] == "quantize" else "dim", cells[2])
        lines.append("  " + "  ".join([*cells, str(row["code"]), str(row["why"])]))
        lines += [" " * (widths[0] + 4) + paint("dim", str(operand)) for operand in row.get("inputs", ())]
    return lines


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value)
    )


def _section(section: str, value: Any, paint: Paint) -> list[str]:
    if isinstance(value, Mapping) and not any(isinstance(v, Mapping) for v in value.values()):
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in value.values())
        if whole and not section.startswith("weight"):
            return wrapped(tally({str(k) or "ai.onnx": v for k, v in value.items()}, limit=40), first="  ")
        shown = [(str(k), _inline(v, "bytes" if whole else str(k))) for k, v in value.items() if v is not None]
        return [f"  {line}" for line in facts(shown, width=max(len(name) for name, _ in shown) + 2 if shown else 0)]
    items = [(str(k), v) for k, v in value.items()] if isinstance(value, Mapping) else [("", v) for v in value]
    rows = [(label, item if isinstance(item, Mapping) else {"": item}) for label, item in items]
    columns = [
        name
        for name in dict.fromkeys(name for _, item in rows for name in item)
        if name not in _WIDE and any(item.get(name) not in (None, "", [], {}, False) for _, item in rows)
    ]
    if any("layer" in item for _, item in rows):  # the names of merged nodes are long: last, and not all of them
        columns = [name for name in columns if name != "name"] + ["name"]
    keyed = any(label for label, _ in rows)
    body: list[list[Cell]] = []
    for label, item in rows:
        cells: list[Cell] = [_cell(item, name) for name in columns]
        body.append([label, *cells] if keyed else cells)
    numeric = [
        index + keyed
        for index, name in enumerate(columns)
        if all(isinstance(item.get(name), int | float | None) for _, item in rows)
    ]
    return table([*([""] if keyed else []), *columns], body, right=numeric, paint=paint)


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name == "name" and len(row.get("names", ())) > 1:
        return listed((str(one) for one in row["names"]), 2)
    return _inline(row.get(name), name)


def _inline(value: Any, name: str = "") -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("bytes"):
        return size(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_inline(v, str(k))}" for k, v in value.items())
    if isinstance(value, list | tuple):
        if name in _SHAPES or (value and all(isinstance(v, int | None) for v in value)):
            return "[" + ", ".join("?" if v is None else str(v) for v in value) + "]"
        return ", ".join(_inline(v) for v in value)
    return str(value)


def _bound(bound: Bound) -> str:
    name = bound.fact.replace("_", " ")
    if bound.equals is not None:
        if isinstance(bound.equals, bool):
            return name if bound.equals else f"not {name}"
        return f"{name} = {bound.equals}"
    if bound.min is not None and bound.max is not None:
        return f"{bound.min} <= {name} <= {bound.max}"
    return f"{name} >= {bound.min}" if bound.min is not None else f"{name} <= {bound.max}"
