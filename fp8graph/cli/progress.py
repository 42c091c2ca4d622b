"""Progress on stderr: bars on a terminal, lines where asked for, else nothing."""

from __future__ import annotations

import contextlib
import time
from typing import Any, TextIO

from fp8graph.base.progress import SILENT, Progress

_HEARTBEAT_S = 10.0


def choose(kind: str, stream: TextIO, *, color: bool) -> Progress:
    """The progress for `--progress auto|plain|none`."""
    import os

    if kind == "none":
        return SILENT
    if kind == "plain":
        return PlainProgress(stream)
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return SILENT
    try:
        return BarProgress(color=color)
    except ImportError:  # rich is only for terminals; without it a line does
        return PlainProgress(stream)


class PlainProgress:
    """A line when work starts and ends, and one every ten seconds between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._open: list[dict[str, Any]] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Says what begins."""
        now = time.monotonic()
        self._open.append({"what": what, "total": total, "unit": unit, "n": 0, "began": now, "said": now})
        self._say(f"{what} ..." if total is None else f"{what}: {total} {unit}".rstrip() + " ...")

    def step(self, n: int = 1) -> None:
        """Counts, and now and then says how far it is."""
        if not self._open:
            return
        work = self._open[-1]
        work["n"] += n
        now = time.monotonic()
        if now - work["said"] >= _HEARTBEAT_S:
            work["said"] = now
            of = f" of {work['total']}" if work["total"] is not None else ""
            self._say(f"{work['what']}: {work['n']}{of} {work['unit']}".rstrip())

    def done(self) -> None:
        """Says how long it took."""
        if self._open:
            work = self._open.pop()
            self._say(f"{work['what']}: {time.monotonic() - work['began']:.1f} s")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody listens
            print(text, file=self._stream, flush=True)


class BarProgress:
    """rich's bars, which vanish when the work is done. Raises ImportError where rich is not installed."""

    def __init__(self, *, color: bool) -> None:
        from rich import progress as bars
        from rich.console import Console

        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[count]}"),
            bars.TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True, no_color=not color),
            transient=True,
        )
        self._open: list[Any] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Shows one more bar."""
        if not self._open:
            self._bars.start()
        self._open.append(self._bars.add_task(what, total=total, unit=unit, count=""))

    def step(self, n: int = 1) -> None:
        """Moves the newest bar."""
        if not self._open:
            return
        self._bars.advance(self._open[-1], n)
        task = next(one for one in self._bars.tasks if one.id == self._open[-1])
        of = "" if task.total is None else f" of {task.total:.0f}"
        self._bars.update(task.id, count=f"{task.completed:.0f}{of} {task.fields['unit']}")

    def done(self) -> None:
        """Takes the newest bar away."""
        if self._open:
            self._bars.remove_task(self._open.pop())
        if not self._open:
            self._bars.stop()

    def close(self) -> None:
        """Takes everything away, so that a message does not end up among bars."""
        while self._open:
            self.done()
