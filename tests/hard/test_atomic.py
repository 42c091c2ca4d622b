"""A kill at any moment, or a disk without room, leaves no half result; the next run tidies up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import BackendError
from tests.conftest import ROOT
from tests.small import contents, feeds, model, refused

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and kills")
TEXT = """(float[2,64] x, float[64,64] w_a, float[64,64] w_b) => (float[2,64] y) {
    h = MatMul(x, w_a) r = Relu(h) y = MatMul(r, w_b)
}"""
NAMES = ["o.onnx", "o.onnx.data", "o.onnx.plan.json"]
Ask = Callable[[str, float, Path], tuple[int, float]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its data."""
    folder = tmp_path_factory.mktemp("given")
    onnx.save(model(TEXT), str(folder / "m.onnx"))
    np.savez(folder / "c.npz", x=np.stack([feed["x"] for feed in feeds(model(TEXT), 6)]))
    return folder


@pytest.fixture(scope="module")
def ask(given: Path) -> Iterator[Ask]:
    """Optimises in a process of its own that dies as asked; how it ended, and the seconds that it took."""
    argv = [sys.executable, str(Path(__file__).with_name("dying.py")), str(given / "m.onnx"), str(given / "c.npz")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdin is not None and child.stdout is not None

        def answer(kind: str, number: float, output: Path) -> tuple[int, float]:
            assert child.stdin is not None and child.stdout is not None
            print(kind, number, output, file=child.stdin, flush=True)
            status, seconds = child.stdout.readline().split()
            return int(status), float(seconds)

        yield answer
        child.stdin.close()
        child.wait()


@pytest.fixture(scope="module")
def whole(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """What a run makes that nothing stops, and the seconds of the second one."""
    folder = tmp_path_factory.mktemp("whole")
    assert ask("time", 0, folder / "o.onnx")[0] == 0
    status, seconds = ask("time", 0, folder / "o.onnx")
    assert status == 0 and sorted(contents(folder)) == NAMES
    return dict(contents(folder)), seconds


def hold(folder: Path, whole: dict[str, str]) -> None:
    """Files that are there are whole, the model last; a run after the kill leaves these alone."""
    seen = {path.name for path in folder.iterdir() if not path.name.startswith(".fp8graph-")}
    assert {name: contents(folder)[name] for name in seen} == {name: whole[name] for name in seen}
    assert "o.onnx" not in seen or seen == set(NAMES)


@pytest.mark.parametrize("moment", range(10))
def test_a_kill_at_any_moment_leaves_no_half_model(ask, whole, given, tmp_path, moment):
    before = contents(given)
    files, seconds = whole
    status, _ = ask("time", seconds * (moment + 0.5) / 10, tmp_path / "o.onnx")
    assert status in (-14, 0)  # a quick machine may be done before
    hold(tmp_path, files)
    assert contents(given) == before
    assert ask("time", 0, tmp_path / "o.onnx")[0] == 0
    assert contents(tmp_path) == files and len(list(tmp_path.iterdir())) == len(NAMES)


def test_a_kill_before_any_touch_of_the_disk_leaves_no_half_model(ask, whole, tmp_path):
    """Every file that is made, written, synced or moved is one moment; half a write is one of them."""
    ends = []
    for step in range(40):
        folder = tmp_path / str(step)
        folder.mkdir()
        status, _ = ask("step", step, folder / "o.onnx")
        ends.append(status)
        hold(folder, whole[0])
        if status == 0:
            break
        assert status == -9
        if step % 4 == 0:
            assert ask("time", 0, folder / "o.onnx")[0] == 0
            assert contents(folder) == whole[0] and len(list(folder.iterdir())) == len(NAMES)
    assert ends[-1] == 0 and len(ends) > 8


@pytest.mark.parametrize("room", [0, 100, 3000, 8000])
def test_a_disk_without_room_leaves_nothing(ask, tmp_path, room):
    """The files take 8 to 9 kB: each of the limits cuts another write short."""
    assert ask("room", room, tmp_path / "o.onnx")[0] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("old", [False, True], ids=["nothing there", "an old result there"])
def test_a_move_that_fails_takes_back_what_is_new(given, tmp_path, monkeypatch, number, old):
    output = tmp_path / "o.onnx"
    if old:
        output.write_bytes(b"old")
    moves, replace = [], Path.replace

    def refuse(path: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) > number:
            raise OSError(5, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with refused(BackendError, "FG130", "o.onnx", "Input/output error"):
        fp8graph.optimize(
            given / "m.onnx", data=given / "c.npz", output=output, force=True, external_data_size_threshold=0
        )
    assert [path.name for path in tmp_path.iterdir()] == (["o.onnx"] if old else [])
    assert not old or output.read_bytes() == b"old"
