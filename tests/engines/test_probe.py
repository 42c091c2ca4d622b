"""Which builders this machine has, asked in a child process."""

import json
import sys
from pathlib import Path

import pytest

from fp8graph.engines import child, probe, tensorrt, tensorrt_rtx
from fp8graph.engines.job import BUILDERS

KEYS = {"installed", "version", "can_build_here", "why_not", "devices"}


def test_tensorrt_rtx_builds_here(rtx: None):
    found = probe.installed("tensorrt-rtx")
    assert set(found) == KEYS
    assert found["installed"] is True
    assert found["can_build_here"] is True
    assert (found["why_not"], found["version"][:2]) == ("", "1.")
    assert "tensorrt_rtx" not in sys.modules


def test_every_builder_is_answered_for():
    for name in BUILDERS:
        found = probe.installed(name)
        assert set(found) == KEYS
        assert json.loads(json.dumps(found)) == found
        assert found["can_build_here"] or found["why_not"]


def test_a_builder_that_does_not_exist():
    found = probe.installed("tensorrtx")
    assert (found["installed"], found["why_not"]) == (False, "there is no builder 'tensorrtx'")


def test_a_child_that_does_not_answer_or_crashes_is_no_builder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for code, timeout_s, said in (
        ("import time; time.sleep(600)", 1, "importing it took more than 1 s"),
        ("import os; os.kill(os.getpid(), 11)", 20, "importing it ended by signal SIGSEGV"),
        ("print('nonsense')", 20, "importing it ended with status 0"),
    ):
        monkeypatch.setattr(child, "python", lambda module, code=code: [sys.executable, "-c", code])
        found = probe.installed("tensorrt", timeout_s=timeout_s)
        assert (found["can_build_here"], found["why_not"]) == (False, said)


@pytest.mark.parametrize(
    ("version", "devices", "can"),
    [("1.7.1.116", [], True), ("1.5.0.114", [], True), ("1.4.0.76", [], False), ("1.4.0.76", ["sm89"], True)],
)
def test_tensorrt_rtx_needs_a_gpu_before_1_5(version: str, devices: list[str], can: bool):
    assert (tensorrt_rtx.why_not_here(version, devices) == "") is can


def test_tensorrt_needs_a_gpu():
    assert tensorrt.why_not_here("10.16.1", ["sm90"]) == ""
    assert "GPU" in tensorrt.why_not_here("10.16.1", [])
