"""Child processes: started so that they import this very fp8graph, and ended with everything they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def python(module: str) -> list[str]:
    """Command that runs a module of ours. -P: the working folder is no place to import from."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """The environment with the folder of this package first on the import path."""
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended. It is not taken off the system's list yet: `kill` still needs its group."""
    if process.returncode is None and hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it has started (POSIX: it leads a group of its own), and waits for it.

    Of a process that was waited for before nothing is done: its number may be another's by now.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
    process.wait()


def ended(returncode: int | None) -> str:
    """How a process ended, as the end of a sentence."""
    if returncode is None:
        return "was stopped"
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        return f"ended by signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"ended by signal {-returncode}"


@dataclass(frozen=True)
class Answer:
    """What a short-lived child printed. `returncode` is None where it did not end in time and was killed."""

    returncode: int | None
    stdout: str


def ask(command: Sequence[str], timeout_s: float) -> Answer:
    """Runs a child to its end, or for `timeout_s` seconds, and gives what it printed to stdout."""
    with tempfile.TemporaryDirectory(prefix="fp8graph-") as folder:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment(),
            start_new_session=True,
        )
        try:
            stdout, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            kill(process)
            return Answer(None, "")
        finally:
            if process.poll() is None:
                kill(process)
            if process.stdout is not None:
                process.stdout.close()
    return Answer(process.returncode, stdout.decode("utf-8", "replace"))
