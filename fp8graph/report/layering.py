"""The error of layers for people: where it starts, which layers add most, and what has come together."""

from __future__ import annotations

import math

from fp8graph.data.comparison import LayerDifference, LayerErrors, OutputDifference
from fp8graph.report.tables import Cell, Paint, count, plain, sqnr, table, wrapped

# Above this an error is another order of summation in fp32, and no layer's doing.
_ROUNDING_DB = 100.0
_SHOWN = 40
_LEFT_SHOWN = 3


def layers_table(errors: LayerErrors, *, paint: Paint = plain) -> list[str]:
    """Layers with an error of their own, in their order; of many, those with the largest. What is left out is said."""
    own = [item for item in errors.layers if _db(item.local) < _ROUNDING_DB]
    lines = [f"layers, {len(own)} of {len(errors.layers)} with an error of their own"]
    if own:
        worst = sorted(own, key=lambda item: _db(item.local))[:_SHOWN]
        shown = {item.key for item in worst}
        rows: list[list[Cell]] = [_row(item, _mark(item, own[0], worst[0])) for item in own if item.key in shown]
        head = ["layer", "op type", "own SQNR", "SQNR so far", "cosine", "max. difference", ""]
        lines += table(head, rows, right=(2, 3, 4, 5), paint=paint)
        if len(own) > len(rows):
            lines.append(f"  and {count(len(own) - len(rows), 'layer')} with less; --json lists all")
    reasons: dict[str, list[str]] = {}
    for key, why in errors.left_out.items():
        reasons.setdefault(why, []).append(key)
    for why, keys in list(reasons.items())[:_LEFT_SHOWN]:
        text = f"{count(len(keys), 'op')} left out, first '{keys[0]}': {why}"
        lines += wrapped(text, first="  ")
    return lines


def _row(item: LayerDifference, mark: str) -> list[Cell]:
    both = item.accumulated
    cosine, largest = both.cosine, both.max_abs
    return [
        item.key,
        item.op_type,
        sqnr(item.local),
        sqnr(both),
        "-" if cosine is None else f"{cosine:.6f}",
        "-" if largest is None else f"{largest:.3g}",
        mark,
    ]


def _mark(item: LayerDifference, first: LayerDifference, worst: LayerDifference) -> str:
    said = (["the error starts here"] if item is first else []) + (["adds most"] if item is worst else [])
    return ", ".join(said)


def _db(item: OutputDifference) -> float:
    """SQNR, infinite where equal; what has none although it differs (NaN, or zeros) is the worst."""
    if item.sqnr_db is not None:
        return item.sqnr_db
    return math.inf if item.equal else -math.inf
