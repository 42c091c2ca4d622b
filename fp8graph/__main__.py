"""`python -m fp8graph`. Ctrl-C is quiet from the first line to the last: hence the imports in `main`."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line of this process and returns its status; 130 where Ctrl-C comes while it is imported."""
    try:
        from fp8graph.cli import main as program

        status = program.main()
    except KeyboardInterrupt:
        status = 130
    if status > 128:
        _leave(status)
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # everything is said and written: no news for the interpreter's end
    return status


def _leave(status: int) -> None:
    """Ends at once: after an interruption Python's own end may die of SIGINT once more, instead of giving a status."""
    import contextlib
    import os

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or its reader has gone away
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
