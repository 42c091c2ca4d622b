"""Notes, errors and progress: what is said, once, and framed."""

from __future__ import annotations

import time

import pytest

from fp8graph.base.errors import (
    BackendError,
    Fp8GraphError,
    InputError,
    InternalError,
    PassContractError,
    UnmetError,
    UsageError,
)
from fp8graph.base.findings import Finding, Notes
from fp8graph.base.progress import SILENT, stage


def test_equal_notes_are_kept_once_in_the_order_they_came():
    notes = Notes()
    for op in ("b", "a", "b"):
        notes.add("FG214", op, "stays fp32")
    notes.add("FG214", "b", "stays fp32", severity="warning")
    assert notes.items() == (
        Finding("FG214", "info", "b", "stays fp32"),
        Finding("FG214", "info", "a", "stays fp32"),
        Finding("FG214", "warning", "b", "stays fp32"),
    )


def test_ten_thousand_notes_are_no_burden():
    notes, begin = Notes(), time.perf_counter()
    for index in range(10_000):
        notes.add("FG214", f"op{index}", "stays fp32")
    assert len(notes.items()) == 10_000
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    ("kind", "status"),
    [(UnmetError, 1), (UsageError, 2), (InputError, 3), (BackendError, 4), (InternalError, 5), (PassContractError, 5)],
)
def test_the_exit_status_belongs_to_the_class(kind, status):
    error = kind("it broke", where="here", why="1 is not 2", do="write 2", code="FG100")
    assert error.status == status and isinstance(error, Fp8GraphError)
    assert str(error).splitlines() == [
        "error[FG100]: it broke",
        "  where: here",
        "  why:   1 is not 2",
        "  do:    write 2",
    ]
    assert error.to_json() == {
        "code": "FG100",
        "what": "it broke",
        "where": "here",
        "why": "1 is not 2",
        "do": "write 2",
    }


def test_what_an_error_does_not_know_it_leaves_out():
    assert str(InputError("it broke", code="FG106")) == "error[FG106]: it broke"


class Listener:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def start(self, what, total, unit):
        self.heard.append(f"start {what} {total} {unit}")

    def step(self, n=1):
        self.heard.append(f"step {n}")

    def done(self):
        self.heard.append("done")


def test_a_stage_ends_on_failure_too():
    listener = Listener()

    def work() -> None:
        with stage(listener, "calibrating", 2, "samples") as progress:
            progress.step()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert listener.heard == ["start calibrating 2 samples", "step 1", "done"]
    with stage(SILENT, "calibrating") as progress:
        progress.step(3)
