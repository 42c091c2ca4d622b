"""A process of its own: closed streams, signals at any time, a folder that is gone. Nothing half-written remains."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from fp8graph.cli import signals
from tests.small import model

TEXT = "(float[n,8] x, float[8,8] w) => (float[n,8] y) { y = MatMul(x, w) }"
# Runs the command line in a process that sends itself a signal when a file is staged, when a module of the given name
# has been asked for, or at once.
SENDER = """
import builtins, os, sys
sign, when = int(sys.argv[1]), sys.argv[2]
sys.argv[1:] = sys.argv[3:]
if when == "staged":
    from fp8graph.graph import save
    real = save.to_proto
    save.to_proto = lambda *given: (os.kill(os.getpid(), sign), real(*given))[1]
elif when.startswith("import "):
    found = builtins.__import__
    def asked(name, *rest, **how):
        if name.partition(".")[0] == when[7:] or name == when[7:]:
            builtins.__import__ = found
            os.kill(os.getpid(), sign)
        return found(name, *rest, **how)
    builtins.__import__ = asked
import fp8graph.__main__ as program
sys.exit(program.main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(model(TEXT), str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "d.npz", x=np.ones((4, 8), np.float32))
    return tmp_path


OPTIMIZE = ("optimize", "m.onnx", "-o", "o.onnx", "--data", "d.npz")
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and shells of POSIX")


@POSIX
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda sign: sign.name)
@pytest.mark.parametrize("when", ["staged", "import fp8graph.cli", "import fp8graph.cli.session", "import onnxruntime"])
def test_a_signal_is_quiet_has_its_status_and_leaves_nothing(folder, sign, when):
    before = sorted(path.name for path in folder.iterdir())
    # Under nohup SIGHUP comes ignored, and stays so.
    code = ("import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n" if sign == signal.SIGHUP else "") + SENDER
    done = subprocess.run(
        [sys.executable, "-c", code, str(int(sign)), when, *OPTIMIZE], cwd=folder, capture_output=True, check=False
    )
    if sign is not signal.SIGINT and when in ("import fp8graph.cli", "import fp8graph.cli.session"):
        assert done.returncode == -sign  # nobody listens to it yet, and nothing was begun
    else:
        assert done.returncode == 128 + sign, done.stderr
        assert done.stderr in (b"", b"interrupted\n")
    assert b"Traceback" not in done.stderr and done.stdout == b""
    assert sorted(path.name for path in folder.iterdir()) == before


@POSIX
def test_a_signal_that_the_caller_ignores_stays_ignored(folder):
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SENDER
    done = subprocess.run(
        [sys.executable, "-c", code, str(int(signal.SIGHUP)), "staged", *OPTIMIZE], cwd=folder, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0 and (folder / "o.onnx").exists()


@POSIX
def test_handlers_are_as_before_once_a_command_has_ended():
    before = [signal.getsignal(getattr(signal, name)) for name in signals.NAMES]
    with pytest.raises(KeyboardInterrupt) as raised, signals.stopping():
        signal.raise_signal(signal.SIGTERM)
    assert signals.status_of(raised.value) == 143
    assert [signal.getsignal(getattr(signal, name)) for name in signals.NAMES] == before


@POSIX
def test_an_import_comes_to_its_end_before_a_signal_is_heard(tmp_path, monkeypatch):
    """Measured: ONNX Runtime's extension, interrupted while it is imported, aborts the process."""
    (tmp_path / "interrupted_module.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGTERM)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = []

    def work() -> None:
        seen.append(importlib.import_module("interrupted_module").whole)
        signal.pause()  # until the alarm clock of the handler

    with pytest.raises(signals.Stopped), signals.stopping():
        work()
    assert seen == [True]


@POSIX
@pytest.mark.parametrize(
    ("closed", "argv", "status"),
    [
        (">&-", ("recipes",), 0),
        ("2>&-", ("recipes",), 0),
        ("2>&-", ("recipes", "--nope"), 2),
        (">&-", ("--help",), 0),
        ("<&- >&- 2>&-", OPTIMIZE, 0),
    ],
)
def test_a_closed_stream_changes_no_status_and_no_file(folder, closed, argv, status):
    command = f'exec "$@" {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", command, "sh", sys.executable, "-m", "fp8graph", *argv],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert (done.stdout if ">&-" in closed.replace("2>&-", "") else b"") == b""
    if argv is OPTIMIZE:
        onnx.checker.check_model(str(folder / "o.onnx"))
    if "2>&-" in closed and status:
        assert b"error" not in done.stdout  # what is for stderr does not end up on stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("argv", [("--help",), ("--version",), ("optimize", "--help")])
def test_a_full_disk_behind_help_is_status_4(argv):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fp8graph", *argv], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 4 and b"error[FG130]" in done.stderr and b"Traceback" not in done.stderr


@POSIX
def test_a_working_folder_that_is_gone_is_a_wrong_call(folder):
    script = 'mkdir gone; cd gone; rmdir ../gone; "$@"'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", sys.executable, "-m", "fp8graph", *OPTIMIZE],
        cwd=folder, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and b"error[FG112]" in done.stderr and b"cd to a folder" in done.stderr
