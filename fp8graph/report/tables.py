"""Plain text building blocks: aligned tables, wrapped lines, sizes and counts."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from fp8graph.data.comparison import OutputDifference

# Paints a text in a style: bold, dim, good, warn, bad. The default leaves it as it is.
Paint = Callable[[str, str], str]
# A cell is a text, or a style and a text.
Cell = str | tuple[str, str]
WIDTH = 100


def plain(style: str, text: str) -> str:
    """No colour."""
    return text


def table(
    header: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: Sequence[int] = (), paint: Paint = plain
) -> list[str]:
    """Lines of a table indented by two spaces. Columns in `right` are flush right; the last one may be long."""
    body = [[_cell(cell) for cell in row] for row in rows]
    columns = range(max([len(header), *map(len, body)], default=0))
    heads = [("dim", text) for text in header]
    grid = ([heads] if any(header) else []) + body
    widths = [max(len(row[i][1]) if i < len(row) else 0 for row in grid) for i in columns] if grid else []
    lines = []
    for row in grid:
        parts = []
        for i, (style, text) in enumerate(row):
            last = i == len(row) - 1 and i not in right
            padded = text if last else text.rjust(widths[i]) if i in right else text.ljust(widths[i])
            parts.append(paint(style, padded) if style and text else padded)
        lines.append(("  " + "  ".join(parts)).rstrip())
    return lines


def facts(pairs: Iterable[tuple[str, str]], *, width: int = 11) -> list[str]:
    """`label      text` lines; a text of several lines hangs under its first; empty texts are left out."""
    lines = []
    for label, text in pairs:
        for number, line in enumerate(text.split("\n") if text else ()):
            lines.append((label if number == 0 else "").ljust(width) + line)
    return lines


def wrapped(text: str, *, first: str = "", rest: str | None = None, width: int = WIDTH) -> list[str]:
    """`text` in lines of at most `width`, the first with a prefix, the others with `rest` (spaces of its length)."""
    hang = " " * len(first) if rest is None else rest
    return textwrap.wrap(
        text,
        max(width, len(first) + 40),
        initial_indent=first,
        subsequent_indent=hang,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def count(number: int, one: str, many: str = "") -> str:
    """`1 op`, `2 ops`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size(number: int) -> str:
    """Bytes for people: `812 B`, `1.3 MiB`."""
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def share(part: float) -> str:
    """0..1 as per cent; only what is all of it is called 100 %."""
    text = f"{100 * part:.1f}"
    return ("99.9" if text == "100.0" and part < 1 else text) + " %"


def listed(names: Iterable[str], limit: int = 6) -> str:
    """`a, b, c and 4 more`."""
    every = list(names)
    if len(every) <= limit:
        return ", ".join(every)
    return ", ".join(every[:limit]) + f" and {len(every) - limit} more"


def tally(numbers: Mapping[str, int], limit: int = 6) -> str:
    """`Relu 12, Add 9 and 3 more`, the most frequent first."""
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return listed((f"{name} {number}" for name, number in ordered), limit)


def sqnr(item: OutputDifference) -> Cell:
    """The ratio of an output, painted by how good it is."""
    if item.sqnr_db is None:
        return "equal" if item.equal else "-"
    return ("good" if item.sqnr_db >= 20 else "warn" if item.sqnr_db >= 10 else "bad", f"{item.sqnr_db:.1f} dB")


def _cell(cell: Cell) -> tuple[str, str]:
    return ("", cell) if isinstance(cell, str) else cell
