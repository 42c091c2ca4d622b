"""stdout is the result; log, progress and colour know their places."""

from __future__ import annotations

import io
import logging
import sys
import warnings

import pytest

from fp8graph.base.errors import UsageError
from fp8graph.cli import progress
from fp8graph.cli.commands import recipes
from fp8graph.cli.console import Outcome

OPTIMIZE = ("optimize", "m.onnx", "-o", "o.onnx")


def says(flow, function) -> None:
    """The stand-in does something before it answers."""
    usual = flow.answers["optimize"]

    def answer(asked):
        function(asked)
        return usual(asked)

    flow.answers["optimize"] = answer


def chatter(asked) -> None:
    logger = logging.getLogger("fp8graph.somewhere")
    logger.debug("a detail")
    logger.info("a step")
    logger.warning("a doubt")
    logger.error("a fault")


@pytest.mark.parametrize(
    ("flags", "heard"),
    [
        ((), ["warning: a doubt", "error: a fault"]),
        (("-v",), ["info: a step", "warning: a doubt", "error: a fault"]),
        (("-vv",), ["debug: a detail", "info: a step", "warning: a doubt", "error: a fault"]),
        (("-q",), ["error: a fault"]),
        (("-v", "-q"), ["error: a fault"]),
    ],
)
def test_the_log_is_on_stderr_as_loud_as_asked(cli, flow, flags, heard):
    says(flow, chatter)
    done = cli(*OPTIMIZE, *flags)
    assert done.err.splitlines() == heard
    assert "a doubt" not in done.out


def test_the_log_file_has_everything_and_is_appended_to(cli, flow, tmp_path):
    says(flow, chatter)
    log = tmp_path / "run.log"
    for _ in range(2):
        assert cli(*OPTIMIZE, "--log-file", log).status == 0
    lines = log.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# fp8graph log"
    assert sum("DEBUG fp8graph.somewhere: a detail" in line for line in lines) == 2


def test_a_log_file_that_is_something_else_is_not_touched(cli, flow, tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"weights")
    done = cli(*OPTIMIZE, "--log-file", model)
    assert done.status == 2
    assert "is no log of ours" in done.err
    assert model.read_bytes() == b"weights"


NAMED = [
    (OPTIMIZE, "o.onnx"),
    (OPTIMIZE, "./o.onnx.plan.json"),
    (OPTIMIZE, "o.onnx.data"),
    (OPTIMIZE, "m.onnx"),
    ((*OPTIMIZE, "--data", "a.npz", "b.npz"), "b.npz"),
    ((*OPTIMIZE, "--pass-file", "p.py:Mine"), "p.py"),
    ((*OPTIMIZE, "--ranges", "r.json"), "r.json"),
    ((*OPTIMIZE, "--recipe", "r.toml"), "r.toml"),
    (("build", "m.onnx", "-o", "e"), "e.json"),
    (("compare", "m.onnx@onnxruntime", "n.onnx", "--data", "a.npz"), "m.onnx"),
    (("calibrate", "m.onnx", "-o", "r.json", "--data", "a.npz"), "r.json"),
]


@pytest.mark.parametrize(("argv", "log"), NAMED, ids=str)
def test_a_log_file_that_is_named_otherwise_is_refused_before_anything_is_written(
    cli, flow, tmp_path, monkeypatch, argv, log
):
    monkeypatch.chdir(tmp_path)
    done = cli(*argv, "--log-file", log)
    assert done.status == 2 and "error[FG103]" in done.err and f"--log-file {log}" in done.err
    assert list(tmp_path.iterdir()) == [] and flow.calls == {}


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (UsageError("it cannot be", where="m.onnx", do="try 4", code="FG100"), "error[FG100]: it cannot be"),
        (KeyError("gone"), "KeyError: 'gone'"),
        (KeyboardInterrupt(), "interrupted, status 130"),
    ],
)
def test_the_log_file_says_how_it_ended(cli, flow, tmp_path, monkeypatch, raised, says):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cli(*OPTIMIZE, "--log-file", tmp_path / "run.log")
    flow.answers["optimize"] = raised
    cli(*OPTIMIZE, "--log-file", tmp_path / "run.log")
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "status 0; wrote o.onnx, o.onnx.plan.json" in text and "arguments: ['optimize'" in text
    assert says in text.partition("status 0;")[2]


def test_verbose_tells_stages_and_passes_and_twice_every_decision(cli, digits, calibration, tmp_path):
    argv = (
        "optimize",
        digits / "cnn.onnx",
        "-o",
        tmp_path / "o.onnx",
        "--data",
        calibration,
        "--samples",
        2,
        "--force",
    )
    assert cli(*argv).err == ""
    once, twice = cli(*argv, "-v").err, cli(*argv, "-vv").err
    for part in ("info: target tensorrt-rtx for sm89+", "info: pass fold-batchnorm: 9 changes", "info: calibrate: "):
        assert part in once
    assert "debug" not in once
    for part in ("debug: quantize Gemm logits: FG201", "debug: range of ", "debug: pass "):
        assert part in twice


def test_logging_is_as_before_once_a_command_has_ended(cli, flow):
    cli(*OPTIMIZE, "-vv")
    assert all(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("fp8graph").handlers)
    assert logging.getLogger("fp8graph").propagate


def test_warnings_of_other_libraries_are_for_the_verbose(cli, flow):
    says(flow, lambda asked: warnings.warn("divide by zero", RuntimeWarning, stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli(*OPTIMIZE).err == ""
        assert "divide by zero" in cli(*OPTIMIZE, "-v").err


def test_colour_is_off_where_nobody_looks(cli, flow):
    assert "\x1b" not in cli(*OPTIMIZE).out


def test_colour_can_be_asked_for_and_no_color_wins(cli, flow, monkeypatch):
    assert "\x1b[" in cli(*OPTIMIZE, "--color", "always").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in cli(*OPTIMIZE, "--color", "always").out
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[" in cli(*OPTIMIZE, "--color=always").out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_on_on_a_terminal_unless_never(cli, flow, monkeypatch):
    for words, expected in (((), True), (("--color", "never"), False), (("--color=never",), False)):
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        cli("optimise", *words)
        assert ("\x1b[31merror[FG101]\x1b[0m: there is no command" in screen.getvalue()) is expected


def test_json_holds_null_for_what_json_has_not(cli, monkeypatch):
    outcome = Outcome("", {"sqnr": float("nan"), "list": [float("inf"), 1.5], "pair": (1, -float("inf"))})
    monkeypatch.setattr(recipes, "run", lambda args, console: outcome)
    assert cli("recipes", "--json").json["result"] == {"sqnr": None, "list": [None, 1.5], "pair": [1, None]}


def work(shown) -> None:
    shown.start("calibrate", 4, "samples")
    for _ in range(4):
        shown.step()
    shown.start("inner", None, "")
    shown.done()
    shown.done()
    shown.done()
    shown.step()


def test_plain_progress_is_lines_on_stderr(cli, flow):
    says(flow, lambda asked: work(asked["progress"]))
    done = cli(*OPTIMIZE, "--progress", "plain", "--json")
    lines = done.err.splitlines()
    assert lines[0] == "calibrate: 4 samples ..."
    assert lines[1] == "inner ..."
    assert [line.rpartition(" ")[0].rpartition(" ")[0] for line in lines[2:]] == ["inner:", "calibrate:"]
    assert done.json["status"] == 0


def test_plain_progress_says_now_and_then_how_far_it_is(monkeypatch):
    screen, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.PlainProgress(screen)
    shown.start("calibrate", 100, "samples")
    for _ in range(25):
        now[0] += 1
        shown.step()
    shown.done()
    assert screen.getvalue().splitlines() == [
        "calibrate: 100 samples ...",
        "calibrate: 10 of 100 samples",
        "calibrate: 20 of 100 samples",
        "calibrate: 25.0 s",
    ]


@pytest.mark.parametrize("words", [(), ("--progress", "none"), ("--progress", "plain", "-q")])
def test_there_is_no_progress_where_there_is_no_terminal_or_no_wish(cli, flow, words):
    says(flow, lambda asked: work(asked["progress"]))
    assert cli(*OPTIMIZE, *words).err == ""


def test_bars_are_for_terminals_and_vanish(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    shown = progress.choose("auto", screen, color=False)
    assert isinstance(shown, progress.BarProgress)
    work(shown)
    shown.start("left open", 2, "")
    shown.close()
    shown.close()
    assert "calibrate" in screen.getvalue()


def test_a_dumb_terminal_gets_no_bar(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert not isinstance(progress.choose("auto", Terminal(), color=False), progress.BarProgress)
