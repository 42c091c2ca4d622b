"""What `bench` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp8graph.report.tables import Paint, facts, plain, table


def benched(
    result: Mapping[str, Any], *, a: str, b: str, least: float | None, missed: bool, paint: Paint = plain
) -> str:
    """The times of one engine or two, and the speedup with its bound."""
    rows = [_row(a, result["a"])] + ([_row(b, result["b"])] if result["b"] is not None else [])
    shapes = ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in result["shapes"].items())
    about = [
        ("device", result["device"]),
        ("runtime", ", ".join(dict.fromkeys(result["runtimes"]))),
        ("shapes", shapes),
    ]
    lines = [*facts(about), "", *table(["engine", "median ms", "p90 ms", "p99 ms", "runs/s"], rows, paint=paint)]
    speedup = result["speedup"]
    if speedup is not None:
        bound = f"{speedup['low']:.3f} to {speedup['high']:.3f} with 95 % confidence"
        said = f"{b} is {speedup['median']:.3f} times as fast as {a}, {bound}"
        if least is not None:
            holds = paint("bad", "does not hold") if missed else paint("good", "holds")
            said += f"; at least {least:g}: {holds}"
        lines += ["", said]
    return "\n".join(lines)


def _row(name: str, times: Mapping[str, Any]) -> list[str]:
    return [name, *(f"{times[key]:.3f}" for key in ("median_ms", "p90_ms", "p99_ms")), f"{times['runs_per_s']:,.1f}"]
