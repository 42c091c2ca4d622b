"""SIGTERM and SIGHUP end a command as Ctrl-C does: what was begun is taken away first, then it ends.

The status is what a shell says of a process that a signal ended: 130 after Ctrl-C (SIGINT), 143 after SIGTERM, 129
after SIGHUP. SIGKILL cannot be caught: what it leaves, the next save to the same output takes away.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fp8graph.base.errors import Interrupted

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
_LOOK_AGAIN_S, _LOOKS = 0.05, 100


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end; handled wherever Ctrl-C is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def status_of(error: KeyboardInterrupt) -> int:
    """The exit status after this interruption."""
    cause = error.__context__ if isinstance(error, Interrupted) else error
    return 128 + (cause.number if isinstance(cause, Stopped) else signal.SIGINT)


@contextmanager
def stopping() -> Iterator[None]:
    """Turns the signals into Stopped for as long as it lasts. A signal that the caller ignores (nohup) stays so."""
    handler = _Handler()
    before = {number: signal.getsignal(number) for number in _numbers()}
    changed = [number for number in before if before[number] in _DEFAULTS]
    try:
        for number in changed:
            signal.signal(number, handler.stop)
    except ValueError:  # signals are the main thread's
        changed = []
    try:
        yield
    finally:
        handler.disarm()
        for number in changed:
            signal.signal(number, before[number])


class _Handler:
    """Raises Stopped, and not while a module is being imported: an extension that is interrupted there may abort the
    process, and leave what was to be taken away."""

    def __init__(self) -> None:
        self.number, self.looks = 0, 0

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handles one of the signals; those that follow change nothing, for cleaning up must come to its end."""
        for each in _numbers():
            signal.signal(each, signal.SIG_IGN)
        self.number = number
        self._raise_or_wait(frame)

    def look(self, number: int, frame: FrameType | None) -> None:
        """Handles the alarm clock."""
        self._raise_or_wait(frame)

    def disarm(self) -> None:
        """Stops the alarm clock where it was set."""
        if self.looks:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _raise_or_wait(self, frame: FrameType | None) -> None:
        if self.looks < _LOOKS and hasattr(signal, "setitimer") and _importing(frame):
            self.looks += 1
            signal.signal(signal.SIGALRM, self.look)
            signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S)
            return
        raise Stopped(self.number)


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
