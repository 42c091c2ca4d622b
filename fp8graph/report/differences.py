"""What `diff` prints: two files side by side, what changed first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fp8graph.data.contents import OpContent, ScaleContent
from fp8graph.data.difference import Difference, OpChange, ScaleChange
from fp8graph.report.tables import Cell, Paint, count, listed, plain, size, table, tally, wrapped

_KEYS_SHOWN = 8
_HIGH = frozenset({"fp16", "bf16", "fp32", "fp64", "high", "generated"})
_SCALES_SHOWN = 20
_HARDLY = 1 + 1e-5  # what the order of sums and a runtime's fusions move
# What of `about` says what the files are, in the order of reading; the rest is for --json.
_ABOUT = ("builder", "target", "recipe", "data", "samples", "producer", "ir_version", "opset")


def differing(found: Difference, *, a: str, b: str, paint: Paint = plain) -> str:
    """The summary of `diff`: what the files are, ops, scales, bytes by type, and one closing line."""
    lines = [f"a  {paint('bold', a)}", f"b  {paint('bold', b)}"]
    about = {name: pair for name, pair in found.about.items() if name in _ABOUT and pair[0] != pair[1]}
    told = {**dict(sorted(about.items(), key=lambda item: _ABOUT.index(item[0]))), **found.io}
    if told:
        rows: list[list[Cell]] = [
            [name.replace("_", " "), _text(one), _text(other)] for name, (one, other) in told.items()
        ]
        lines += ["", *table(["", "a", "b"], rows, paint=paint)]
    lines += _ops(found, paint)
    lines += _moved(found, paint)
    if found.weights:
        body: list[list[Cell]] = [
            [name, size(one), size(other), _growth(one, other)] for name, (one, other) in found.weights.items()
        ]
        lines += ["", "bytes of weights by type", *table(["", "a", "b", ""], body, right=(1, 2), paint=paint)]
    for side, why in found.unknown.items():
        lines += ["", *wrapped(f"{side} cannot be read: {why}", first="")]
    return "\n".join([*lines, "", _closing(found, paint)])


def _closing(found: Difference, paint: Paint) -> str:
    if found.unknown:
        return paint("warn", "unknown: what cannot be read is not known to be the same")
    things = count(found.same, "op") if found.same else count(found.scales[2], "tensor")
    if found.equal:
        return paint("good", f"the same: {things}")
    moves = tally(found.moves)
    parts = [
        f"{count(len(found.changed), 'op')} changed" + (f" ({moves})" if moves else "") if found.changed else "",
        f"{count(len(found.removed), 'op')} only in a" if found.removed else "",
        f"{count(len(found.added), 'op')} only in b" if found.added else "",
        f"{count(len(found.moved), 'tensor')} with other scales" if found.moved else "",
        f"{found.same:,} the same" if found.same else "",
    ]
    return paint("warn", ", ".join(part for part in parts if part) or "they differ")


def _ops(found: Difference, paint: Paint) -> list[str]:
    lines: list[str] = []
    groups: dict[tuple[str, str, str, str], list[OpChange]] = {}
    for change in found.changed:
        kind = change.b.op_type or change.a.op_type
        reason = change.b.why if change.a.why != change.b.why else ""
        groups.setdefault((kind, _op(change.a), _op(change.b), reason), []).append(change)
    if groups:
        lines += ["", "ops that compute otherwise"]
    ordered = sorted(groups.items(), key=lambda group: not _is_low(group[1][0]))
    for (kind, one, other, reason), changes in ordered:
        head = f"  {len(changes):>3}  {paint('bold', kind)}: {one} -> {other}"
        sizes = [(change.a.weight_bytes, change.b.weight_bytes) for change in changes]
        known = [(low, high) for low, high in sizes if low is not None and high is not None]
        if known and any(low != high for low, high in known):
            head += f", weights {size(sum(low for low, _ in known))} -> {size(sum(high for _, high in known))}"
        lines.append(head)
        lines += wrapped(reason, first="       ") if reason else []
        keys = [c.a.key if c.a.key == c.b.key else f"{c.a.key} (in b {c.b.key})" for c in changes]
        lines += wrapped(listed(keys, _KEYS_SHOWN), first="       ")
    for side, ops in (("a", found.removed), ("b", found.added)):
        lines += _only(side, ops, paint)
    return lines


def _is_low(change: OpChange) -> bool:
    return change.a.precision != change.b.precision and not {change.a.precision, change.b.precision} <= _HIGH


def _only(side: str, ops: Sequence[OpContent], paint: Paint) -> list[str]:
    kinds: dict[tuple[str, str], list[str]] = {}
    for op in ops:
        kinds.setdefault((op.op_type, _op(op)), []).append(op.key)
    lines = ["", f"ops only in {side}"] if kinds else []
    for (kind, word), keys in kinds.items():
        lines.append(f"  {len(keys):>3}  {paint('bold', kind)}: {word}")
        lines += wrapped(listed(keys, 3), first="       ")
    return lines


def _moved(found: Difference, paint: Paint) -> list[str]:
    only_a, only_b, _ = found.scales
    if not (found.moved or only_a or only_b):
        return []
    what = "values seen" if found.kind == "ranges" else "scales"
    lines = ["", f"{what} that moved, the farthest first"] if found.moved else ["", what]
    hardly = sum(_distance(change) <= _HARDLY for change in found.moved)
    ordered = sorted((change for change in found.moved if _distance(change) > _HARDLY), key=_distance, reverse=True)
    rows: list[list[Cell]] = []
    for change in ordered[:_SCALES_SHOWN]:
        one, other = _scale(change.a, change.b), _scale(change.b, change.a)
        rows.append([change.a.tensor, one, other, _ratio(change)])
    lines += table(["", "a", "b", "b / a"], rows, right=(3,), paint=paint) if rows else []
    if len(ordered) > _SCALES_SHOWN:
        lines.append(f"  and {count(len(ordered) - _SCALES_SHOWN, 'tensor')} more; --json lists them all")
    if hardly:
        lines.append(f"  {count(hardly, 'tensor')} by less than one part in 100,000")
    alone = [f"{count(number, 'tensor')} only in {side}" for side, number in (("a", only_a), ("b", only_b)) if number]
    return [*lines, *([f"  {', '.join(alone)}"] if alone else [])]


def _distance(change: ScaleChange) -> float:
    """How far apart the numbers are, 1 at least; infinite where more than the number differs."""
    ratio = change.ratio
    words = [(one.format, one.per, one.origin, one.scales) for one in (change.a, change.b)]
    if ratio is None or ratio <= 0 or words[0] != words[1]:
        return float("inf")
    least = change.b.least / change.a.least if change.a.least and change.b.least else 1.0
    return max(ratio, 1 / ratio, abs(least), abs(1 / least))


def _ratio(change: ScaleChange) -> str:
    return "" if change.ratio is None else f"{change.ratio:.4g}"


def _scale(scale: ScaleContent, other: ScaleContent) -> str:
    """The numbers of one side, and of what else differs, what it is."""
    number = "" if scale.largest is None else f"{scale.largest:.6g}"
    if scale.least is not None and scale.least != scale.largest:
        number = f"{scale.least:.6g} .. {number}"
    parts = [number]
    for name in ("format", "per", "origin"):
        if getattr(scale, name) != getattr(other, name):
            parts.append(getattr(scale, name))
    if scale.scales != other.scales and scale.scales is not None:
        parts.append(f"{scale.scales:,} of them")
    return " ".join(part for part in parts if part) or "-"


def _op(op: OpContent) -> str:
    inside = op.detail if op.detail not in ("", op.precision) else f"weight {op.weight}" if op.weight else ""
    return f"{op.precision} ({inside})" if inside else op.precision


def _growth(one: int, other: int) -> str:
    return f"{other / one:.0%}" if one and other else ""


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name or 'ai.onnx'} {_text(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        whole: Iterable[Any] = value
        return "[" + ", ".join(_text(item) for item in whole) + "]"
    return str(value)
