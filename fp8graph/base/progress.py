"""Progress of long work, told to whoever wants to know. Silent by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the progress of one piece of work after another."""

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Work `what` begins; `total` units are expected, None where nobody knows."""

    def step(self, n: int = 1) -> None:
        """`n` more units are done."""

    def done(self) -> None:
        """The work that was started last has ended."""


class SilentProgress:
    """Tells nobody."""

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Nothing to do."""

    def step(self, n: int = 1) -> None:
        """Nothing to do."""

    def done(self) -> None:
        """Nothing to do."""


SILENT = SilentProgress()


@contextmanager
def stage(progress: Progress, what: str, total: int | None = None, unit: str = "") -> Iterator[Progress]:
    """Frames one piece of work: `done` is called on failure, too."""
    progress.start(what, total, unit)
    try:
        yield progress
    finally:
        progress.done()
