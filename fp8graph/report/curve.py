"""Accuracy over the share of low-precision arithmetic: as data, and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 400, 64, 16, 16, 48


@dataclass(frozen=True)
class Point:
    """One plan: its part of the low-precision arithmetic (0 to 1), the ops in low precision, its value by the metric
    (None where that is not finite), the keys that were kept, and whether it was chosen."""

    arithmetic: float
    quantized: int
    value: float | None
    kept: tuple[str, ...]
    chosen: bool = False


@dataclass(frozen=True)
class Curve:
    """All plans that were seen, those with the most arithmetic first; `goal` is None where there was none."""

    metric: str
    goal: float | None
    points: tuple[Point, ...]


def as_json(curve: Curve) -> str:
    """The curve as a document."""
    points = [
        {
            "arithmetic": p.arithmetic,
            "quantized": p.quantized,
            "value": p.value,
            "kept": list(p.kept),
            "chosen": p.chosen,
        }
        for p in curve.points
    ]
    document = {"schema": "fp8graph.curve/1", "metric": curve.metric, "goal": curve.goal, "points": points}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def as_csv(curve: Curve) -> str:
    """The curve as lines: arithmetic, quantized, value, chosen."""
    lines = ["arithmetic,quantized,value,chosen"]
    lines += [
        f"{p.arithmetic!r},{p.quantized},{'' if p.value is None else repr(p.value)},{int(p.chosen)}"
        for p in curve.points
    ]
    return "\n".join(lines) + "\n"


def as_svg(curve: Curve) -> str:
    """The curve as a picture: each plan a dot, the best of each coverage joined, the goal dashed, the choice filled."""
    shown = [(p.arithmetic, p.value, p) for p in curve.points if p.value is not None]
    values = [value for _, value, _ in shown] + ([curve.goal] if curve.goal is not None else [])
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low or abs(high) or 1.0) * 0.08
    low, high = low - room, high + room

    def x(share: float) -> float:
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for tick in range(0, 101, 20):
        at = x(tick / 100)
        parts.append(f'<path d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick} %</text>')
    for value in _ticks(low, high):
        parts.append(f'<path d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    if curve.goal is not None:
        parts.append(f'<path d="M{_LEFT} {y(curve.goal):.1f}H{_WIDTH - _RIGHT}" stroke="#b00" stroke-dasharray="4 4"/>')
    best = _front([(share, value) for share, value, _ in shown])
    line = " ".join(f"{x(share):.1f},{y(value):.1f}" for share, value in best)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#06c"/>')
    for share, value, point in shown:
        fill = "#06c" if point.chosen else "white"
        tip = escape(f"{value:.4g}, {point.quantized} ops, {100 * share:.1f} %")
        parts.append(
            f'<circle cx="{x(share):.1f}" cy="{y(value):.1f}" r="4" fill="{fill}" stroke="#06c">'
            f"<title>{tip}</title></circle>"
        )
    parts.append(
        f'<text x="{_WIDTH // 2}" y="{_HEIGHT - 10}" text-anchor="middle">low-precision arithmetic of the plan</text>'
    )
    middle = _HEIGHT // 2
    parts.append(
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(curve.metric)}</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those points that no other one beats in both, by coverage."""
    best: list[tuple[float, float]] = []
    for share, value in sorted(points, key=lambda point: (-point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((share, value))
    return best


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers in between, about six."""
    span = high - low
    step = 10 ** math.floor(math.log10(span / 6))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6.5)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
