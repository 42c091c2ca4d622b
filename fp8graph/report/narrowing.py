"""Less of what `inspect` found: the sections asked for, and the rows that patterns select."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.base.names import OpPattern, did_you_mean

# Sections in the order of reading, by what `--show` calls them.
SECTIONS = {
    "io": ("inputs", "outputs", "shapes", "chips", "profiles"),
    "ops": ("ops", "counts", "totals", "verdicts", "others", "rows", "outputs", "reasons"),
    "scales": ("scales", "values", "weights"),
    "layers": ("layers",),
}
# Sections that count what others list: narrowed, they would be wrong.
_COUNTED = ("counts", "totals", "weights", "weight_bytes", "ops")


def selects(
    patterns: Sequence[OpPattern], keys: Iterable[str], names: Iterable[str], op_type: str, hit: set[str]
) -> bool:
    """Whether a pattern selects the op by a key, a name or its type; the texts of those that do are added to `hit`."""
    called = list(product(keys, names))
    matching = [pattern.text for pattern in patterns if any(pattern.matches(*pair, op_type) for pair in called)]
    hit.update(matching)
    return bool(matching)


def refuse_unused(patterns: Sequence[OpPattern], hit: set[str]) -> None:
    """Raises UsageError FG109 for a pattern that selected nothing."""
    for pattern in patterns:
        if pattern.text not in hit:
            raise UsageError(
                f"the pattern '{pattern.text}' matches nothing here",
                where="--op",
                why="globs are matched against key and node name; of ranges against the tensor; "
                "of an engine against keys only where its manifest lies beside it and tells them",
                do="leave --op out to see all there is",
                code="FG109",
            )


def narrowed(document: Mapping[str, Any], patterns: Sequence[OpPattern]) -> dict[str, Any]:
    """The document with only the rows that a pattern selects, in every section that has rows.

    A row is selected by its own key, name or type, by any of the ONNX nodes that it names, by the key of one, or
    because it belongs to an op that is selected. `ops` is counted anew; what cannot be narrowed is left out. Raises
    UsageError FG109 for a pattern that selects nothing.
    """
    if not patterns:
        return dict(document)
    hit: set[str] = set()
    sections = {name: _rows(value) for name, value in document.items() if name not in _COUNTED}
    keys = {
        str(row.get("key", label))
        for rows in sections.values()
        for label, row in rows or ()
        if "op_type" in row and _selected(label, row, patterns, hit)
    }
    found: dict[str, Any] = {}
    for name, value in document.items():
        rows = sections.get(name)
        if rows is None:
            single = not isinstance(value, Mapping) and not (isinstance(value, list) and _holds_rows(value))
            if name not in _COUNTED and single:
                found[name] = value
            continue
        chosen = [
            (label, row)
            for label, row in rows
            if str(row.get("key", label)) in keys or _selected(label, row, patterns, hit)
        ]
        if chosen:
            found[name] = dict(chosen) if isinstance(value, Mapping) else [row for _, row in chosen]
    refuse_unused(patterns, hit)
    if "ops" in document and "rows" in found:
        found["ops"] = _counted(found["rows"])
    return found


def shown(document: Mapping[str, Any], show: Sequence[str]) -> dict[str, Any]:
    """The document with the sections of `show` only, and its kind. Raises UsageError FG101 for an unknown one."""
    for name in show:
        if name not in SECTIONS:
            raise UsageError(
                f"there is nothing called '{name}' to show",
                where="--show",
                do=did_you_mean(name, SECTIONS),
                code="FG101",
            )
    wanted = {section for name in show for section in ("kind", *SECTIONS[name])}
    return {name: value for name, value in document.items() if not show or name in wanted}


def _rows(value: Any) -> list[tuple[str, Mapping[str, Any]]] | None:
    """The rows of a section, each with its label; None for what has none."""
    if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) for row in value.values()):
        return [(str(label), row) for label, row in value.items()]
    if isinstance(value, list) and value and _holds_rows(value):
        return [("", row) for row in value]
    return None


def _holds_rows(value: Sequence[Any]) -> bool:
    return all(isinstance(row, Mapping) for row in value)


def _selected(label: str, row: Mapping[str, Any], patterns: Sequence[OpPattern], hit: set[str]) -> bool:
    key = str(row.get("key") or row.get("tensor") or row.get("op") or label)
    op_type = str(row.get("op_type", row.get("type", "")))
    names = [str(row.get("name", "")), *(str(name) for name in row.get("names", ())), str(row.get("tensor", ""))]
    keys = [key, *(str(one) for one in row.get("keys", ()))]
    return selects(patterns, keys, dict.fromkeys(names), op_type, hit)


def _counted(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        by = counts.setdefault(str(row.get("op_type", "")), {})
        word = str(row.get("precision", row.get("do", "")))
        by[word] = by.get(word, 0) + 1
    return dict(sorted(counts.items()))
