"""A program for the tests: optimises in forks of itself, each of which dies, or is denied room, at a given moment.

Reads lines `KIND NUMBER OUTPUT`: `time` dies after so many seconds, `step` before the so-manieth touch of the disk,
`room` may write files of so many bytes at most. Answers with the fork's status: 0, -9 or -14 where it died, else 1.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def dying(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """The function, which dies instead where nothing is left; half of what it was to write may be there."""

    def wrapped(*args: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            if call.__name__ == "write_bytes":
                args[0].open("wb").write(args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **named)

    return wrapped


def work(kind: str, number: float, output: str, model: str, data: str) -> int:
    """One optimisation in the fork; its status."""
    import fp8graph

    if kind == "time" and number:
        signal.signal(
            signal.SIGALRM, signal.SIG_DFL
        )  # ends the process at once, whatever it does: nothing is tidied up
        signal.setitimer(signal.ITIMER_REAL, number)
    elif kind == "step":
        left = [int(number)]
        for owner, name in (
            (Path, "write_bytes"),
            (Path, "write_text"),
            (Path, "replace"),
            (os, "fsync"),
            (os, "mkdir"),
        ):
            setattr(owner, name, dying(getattr(owner, name), left))
    elif kind == "room":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), int(number)))
    try:
        fp8graph.optimize(model, data=data, output=output, force=True, external_data_size_threshold=0)
    except fp8graph.Fp8GraphError as error:
        return 0 if kind == "room" and error.code == "FG130" else 1
    return 2 if kind == "room" else 0


def main() -> None:
    """Answers each line with a status and the seconds that the fork took."""
    import fp8graph.flow.optimizing  # loaded once, in the parent

    assert fp8graph.flow.optimizing.optimize
    model, data = sys.argv[1:]
    for line in sys.stdin:
        kind, number, output = line.split()
        begin = time.perf_counter()
        child = os.fork()
        if not child:
            os._exit(work(kind, float(number), output, model, data))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
