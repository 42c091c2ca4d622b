"""Whatever happens, it ends in a status, a message that can be acted on and, with --json, one document."""

from __future__ import annotations

import builtins
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from fp8graph.base import errors
from fp8graph.base.findings import Finding

OPTIMIZE = ("optimize", "m.onnx", "-o", "o.onnx")


def failing(cls: type[errors.Fp8GraphError]) -> errors.Fp8GraphError:
    return cls("it did not work", where="m.onnx", why="3 is not 4", do="try 4", code="FG302")


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (errors.UnmetError, 1),
        (errors.UsageError, 2),
        (errors.InputError, 3),
        (errors.BackendError, 4),
        (errors.InternalError, 5),
        (errors.PassContractError, 5),
    ],
)
def test_an_error_becomes_its_status_and_form(cli, flow, cls, status):
    flow.answers["optimize"] = failing(cls)
    done = cli(*OPTIMIZE)
    assert (done.status, done.out) == (status, "")
    assert done.err == (
        "error[FG302]: it did not work\n"
        "  where: m.onnx\n"
        "  why:   3 is not 4\n"
        "  do:    try 4\n"
        "  more:  python -m fp8graph explain FG302\n"
    )


def test_a_failure_with_json_is_one_document_on_stdout_and_the_error_on_stderr(cli, flow):
    error = failing(errors.UnmetError)
    error.findings = (Finding("FG301", "info", "fc1", "the kernel is too large"),)  # type: ignore[attr-defined]
    flow.answers["optimize"] = error
    done = cli(*OPTIMIZE, "--json")
    assert done.json == {
        "schema": "fp8graph.result/1",
        "command": "optimize",
        "status": 1,
        "files": [],
        "findings": [{"code": "FG301", "severity": "info", "op": "fc1", "text": "the kernel is too large", "do": ""}],
        "error": {"code": "FG302", "what": "it did not work", "where": "m.onnx", "why": "3 is not 4", "do": "try 4"},
        "result": {},
    }
    assert "error[FG302]" in done.err


def test_findings_of_a_failure_are_told_by_code(cli, flow):
    error = failing(errors.UnmetError)
    error.findings = tuple(Finding("FG301", "info", f"fc{i}", "too large") for i in range(5))  # type: ignore[attr-defined]
    flow.answers["optimize"] = error
    assert cli(*OPTIMIZE).err.splitlines()[0] == "info[FG301]: too large (5 times) - fc0, fc1, fc2 and 2 more"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["optimise"], "FG101"),
        (["optimize", "--no-such-option"], "FG101"),
        (["optimize"], "FG100"),
        (["compare", "a", "b"], "FG120"),
        (["--data", "x"], "FG101"),
        ([], "FG100"),
    ],
)
def test_a_wrong_call_with_json_is_one_document_too(cli, argv, code):
    done = cli(*argv, "--json")
    assert done.status == 2
    assert done.json["status"] == 2
    assert done.json["error"]["code"] == code
    assert done.json["error"]["what"]


def test_an_unexpected_exception_is_status_5_one_message_and_a_file(cli, flow):
    flow.answers["optimize"] = KeyError("weights")
    done = cli(*OPTIMIZE)
    assert (done.status, done.out) == (5, "")
    assert "Traceback" not in done.err
    assert done.err.startswith("error[FG900]: something broke inside fp8graph: KeyError: 'weights'\n  where: ")
    saved = Path(done.err.splitlines()[1].split("where: ")[1])
    text = saved.read_text(encoding="utf-8")
    saved.unlink()
    assert "Traceback (most recent call last)" in text
    assert "arguments: ['optimize', 'm.onnx'" in text


def test_a_pass_that_fails_is_named_with_the_file_of_its_traceback(cli, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "mine.py").write_text(
        "from fp8graph import PlanRule\n"
        "class Mine(PlanRule):\n"
        "    def decide(self, op, ctx):\n"
        "        return {}['gone']\n"
    )
    asked = ("optimize", digits / "cnn.onnx", "-o", tmp_path / "o.onnx", "--pass-file", f"{tmp_path / 'mine.py'}:Mine")
    done = cli(*asked, "--plan-only", "--json")
    assert done.status == done.json["status"] == 5
    error = done.json["error"]
    assert (error["code"], error["what"], error["why"]) == ("FG901", "the rule mine failed", "KeyError: 'gone'")
    saved = Path(error["where"].partition("traceback in ")[2])
    assert "return {}['gone']" in saved.read_text(encoding="utf-8") and "Traceback" not in done.err


def test_verbose_shows_the_traceback(cli, flow, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    flow.answers["optimize"] = ZeroDivisionError()
    for flag in ("-v", "--verbose", "-vv"):
        assert "Traceback (most recent call last)" in cli(*OPTIMIZE, flag).err
    assert "Traceback" in cli("-v", *OPTIMIZE).err


def test_an_unexpected_exception_with_json_is_one_document(cli, flow, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    flow.answers["optimize"] = ValueError("first line\nTraceback (most recent call last)")
    done = cli(*OPTIMIZE, "--json")
    assert done.json["status"] == 5
    assert done.json["error"]["what"].endswith("ValueError: first line")
    assert "Traceback" not in done.err


def test_a_temporary_folder_that_is_not_there_does_not_hide_the_error(cli, flow, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    flow.answers["optimize"] = ValueError("x")
    done = cli(*OPTIMIZE)
    assert done.status == 5
    assert "no file could be written" in done.err


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (MemoryError(), 4, "FG132"),
        (OSError(errno.ENOMEM, "no memory"), 4, "FG132"),
        (OSError(errno.ENOSPC, "no space", "o.onnx"), 4, "FG130"),
    ],
)
def test_the_machine_s_limits_are_status_4(cli, flow, raised, status, code):
    flow.answers["optimize"] = raised
    done = cli(*OPTIMIZE)
    assert done.status == status
    assert f"error[{code}]" in done.err


def test_ctrl_c_is_status_130(cli, flow):
    flow.answers["optimize"] = KeyboardInterrupt()
    done = cli(*OPTIMIZE)
    assert (done.status, done.out, done.err) == (130, "", "interrupted\n")
    assert cli(*OPTIMIZE, "--json").json["error"]["what"] == "interrupted"


def test_ctrl_c_while_a_command_is_being_imported_is_status_130(cli, monkeypatch):
    real = builtins.__import__

    def interrupted(name, *args, **kwargs):
        if name == "fp8graph.cli.session":
            raise KeyboardInterrupt
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert cli("recipes").status == 130


def python(*argv: str, **how) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "fp8graph", *argv], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, **how
    )


@pytest.mark.parametrize("argv", [("--help",), ("explain",), ("recipes", "--json")])
def test_a_reader_that_has_gone_away_is_no_error(argv):
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys; os.execv(sys.argv[1], sys.argv[1:])",
            sys.executable,
            "-m",
            "fp8graph",
            *argv,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert said == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_status_4():
    with Path("/dev/full").open("wb") as full:
        done = python("explain", stdout=full)
    assert done.returncode == 4
    assert b"error[FG130]" in done.stderr
    assert b"Traceback" not in done.stderr


def test_what_the_terminal_cannot_show_is_no_error():
    done = python(
        "explain", "\u6f22", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 2
    assert b"\\u6f22" in done.stderr
