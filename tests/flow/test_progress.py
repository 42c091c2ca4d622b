"""Progress: told in order, ended on failure, and silent where nobody asks."""

from __future__ import annotations

import pytest

import fp8graph
from tests.small import feeds, model

TEXT = "(float[n,8] x, float[8,8] w) => (float[n,8] y) { h = Relu(x) y = MatMul(h, w) }"


class Listener:
    """Writes down what it is told; breaks off when `until` begins."""

    def __init__(self, until: str = "") -> None:
        self.heard: list[str] = []
        self.open: list[str] = []
        self.steps: dict[str, int] = {}
        self.until = until

    def start(self, what, total, unit):
        self.heard.append(what)
        self.open.append(what)

    def step(self, n=1):
        self.steps[self.open[-1]] = self.steps.get(self.open[-1], 0) + n
        if self.open[-1] == self.until:
            raise KeyboardInterrupt

    def done(self):
        self.open.pop()


def test_stages_are_told_in_order_and_each_ends(tmp_path):
    listener, proto = Listener(), model(TEXT)
    fp8graph.optimize(proto, data=feeds(proto, 5), output=tmp_path / "o.onnx", progress=listener)
    wanted = ["normalizing", "calibrating", "quantizing", "legalizing", "saving", "comparing"]
    assert [what for what in listener.heard if what in wanted] == wanted
    assert listener.open == []
    assert listener.steps["calibrating"] == listener.steps["comparing"] == 5


@pytest.mark.parametrize("until", ["calibrating", "comparing"])
def test_an_interruption_ends_what_was_begun_and_leaves_nothing(tmp_path, until):
    listener, proto = Listener(until), model(TEXT)
    with pytest.raises(KeyboardInterrupt):
        fp8graph.optimize(proto, data=feeds(proto, 5), output=tmp_path / "o.onnx", progress=listener)
    assert listener.open == [] and list(tmp_path.iterdir()) == []


def test_a_failure_ends_what_was_begun():
    listener, proto = Listener(), model(TEXT)
    bad = [*feeds(proto, 3), {"x": [[float("nan")] * 8]}]
    with pytest.raises(fp8graph.InputError):
        fp8graph.optimize(proto, data=bad, progress=listener)
    assert listener.open == []


def test_calibrate_and_compare_tell_their_progress_too():
    proto = model(TEXT)
    for call, what in (
        (lambda tell: fp8graph.calibrate(proto, data=feeds(proto, 3), progress=tell), "calibrating"),
        (lambda tell: fp8graph.compare(proto, proto, data=feeds(proto, 3), progress=tell), "comparing"),
    ):
        listener = Listener()
        call(listener)
        assert listener.steps[what] == 3 and listener.open == []
