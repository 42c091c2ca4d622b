"""Results are written completely or not at all, whatever happens."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fp8graph.base import files
from fp8graph.base.errors import BackendError, InputError, UsageError
from fp8graph.base.files import check_writable, describe, read_text, same_file, sha256_of, staged, write_text
from tests.small import contents, refused


def write(output: Path, **suffixes: str) -> None:
    """Writes OUT and files beside it, each with the same short text."""
    with staged(output) as folder:
        for suffix, text in suffixes.items():
            (folder / f"{output.name}{'' if suffix == 'itself' else '.' + suffix}").write_text(text)


def test_files_appear_together_under_their_names(tmp_path):
    write(tmp_path / "m.onnx", itself="model", data="weights")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.onnx": "model", "m.onnx.data": "weights"}


def test_the_output_itself_comes_last(tmp_path, monkeypatch):
    moved, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (moved.append(Path(to).name), replace(self, to))[1])
    write(tmp_path / "m.onnx", itself="model", data="weights", zzz="last by name")
    assert moved == ["m.onnx.data", "m.onnx.zzz", "m.onnx"]


def test_new_files_have_the_rights_that_the_user_asked_for(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.json", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_leaves_what_was_there_before(tmp_path, error):
    write(tmp_path / "m.onnx", itself="old", data="old weights")
    before = contents(tmp_path)

    def half() -> None:
        with staged(tmp_path / "m.onnx") as folder:
            (folder / "m.onnx").write_text("half")
            raise error

    with pytest.raises(type(error)):
        half()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace", "mkdtemp"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_refuses_is_a_backend_error_and_leaves_nothing(tmp_path, monkeypatch, call, number):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    owner = {"fsync": os, "mkdtemp": files.tempfile}.get(call, Path)
    monkeypatch.setattr(owner, call, refuse)
    says = "the disk is full" if number == errno.ENOSPC else "ermission denied"
    with refused(BackendError, "FG130", "m.onnx", says):
        write(tmp_path / "m.onnx", itself="model")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_writing_leaves_nothing(tmp_path):
    with refused(BackendError, "FG130", "the disk is full"), staged(tmp_path / "m.onnx") as folder:
        (folder / "m.onnx").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_backend_error(tmp_path):
    with refused(BackendError, "FG130"):
        write_text(tmp_path / "none" / "a.json", "{}")


@pytest.mark.parametrize("name", ["m.onnx", "m[1].onnx", "-m*.onnx", "ü n.onnx"])
def test_what_a_kill_left_behind_is_removed_by_the_next_run(tmp_path, name):
    stale = Path(files.tempfile.mkdtemp(prefix=f".fp8graph-{name}-", dir=tmp_path))
    (stale / name).write_text("half")
    write_text(tmp_path / name, "whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_folder_of_another_output_is_left_alone(tmp_path):
    """Two runs side by side: `-o m` and `-o m-fp8`, of which one name begins like the other."""
    with staged(tmp_path / "m-fp8") as folder:
        write_text(tmp_path / "m", "one")
        (folder / "m-fp8").write_text("two")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m": "one", "m-fp8": "two"}


WRITER = """
import sys
from pathlib import Path
from fp8graph.base.files import staged
output, block = Path(sys.argv[1]), b"x" * (1 << 20)
print("ready", flush=True)
while True:
    with staged(output) as folder:
        for suffix in (".data", ""):
            with (folder / (output.name + suffix)).open("wb") as file:
                for _ in range(4):
                    file.write(block)
"""


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_at_any_moment_leaves_no_half_file(tmp_path, moment):
    output = tmp_path / "m.onnx"
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(output)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        until = time.monotonic() + 0.003 + 0.017 * moment  # spread over the writing, syncing and moving of a round
        while time.monotonic() < until:
            pass
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    seen = {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}
    assert set(seen.values()) <= {4 << 20}, seen
    assert "m.onnx" not in seen or "m.onnx.data" in seen
    write_text(output, "next")
    assert {path.name for path in tmp_path.iterdir()} <= {"m.onnx", "m.onnx.data"}
    assert output.read_text() == "next"


TABLE = [  # output, force, inputs, also -> code, or None where it may be written
    ("new.onnx", False, [], [], None),
    ("old.onnx", False, [], [], "FG102"),
    ("old.onnx", True, [], [], None),
    ("folder", False, [], [], "FG102"),
    ("folder", True, [], [], "FG102"),
    ("none/new.onnx", True, [], [], "FG112"),
    ("old.onnx", True, ["old.onnx"], [], "FG103"),
    ("link.onnx", True, ["old.onnx"], [], "FG103"),
    ("hard.onnx", True, ["old.onnx"], [], "FG103"),
    ("folder/../old.onnx", True, ["old.onnx"], [], "FG103"),
    ("new.onnx", True, ["new.onnx"], [], "FG103"),  # an input that is missing is not made by the way
    ("new.onnx", False, ["old.onnx"], [".data"], None),
    ("x.onnx", False, [], [".plan.json"], "FG102"),
    ("x.onnx", True, [], [".plan.json"], None),
    ("x.onnx", True, ["x.onnx.plan.json"], [".plan.json"], "FG103"),
    ("y.onnx", True, [], [".plan.json"], "FG102"),  # a folder where a file is to come
    ("dangling.onnx", False, [], [], None),
]


@pytest.mark.parametrize(("output", "force", "inputs", "also", "code"), TABLE)
def test_an_output_is_refused_before_any_work(tmp_path, output, force, inputs, also, code):
    for name in ("old.onnx", "x.onnx.plan.json"):
        (tmp_path / name).write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "y.onnx.plan.json").mkdir()
    (tmp_path / "link.onnx").symlink_to("old.onnx")
    (tmp_path / "dangling.onnx").symlink_to("nowhere.onnx")
    (tmp_path / "hard.onnx").hardlink_to(tmp_path / "old.onnx")
    before = contents(tmp_path)
    inputs = [tmp_path / name for name in inputs]
    if code is None:
        check_writable(tmp_path / output, force=force, inputs=inputs, also=also)
    else:
        with refused(UsageError, code):
            check_writable(tmp_path / output, force=force, inputs=inputs, also=also)
    assert contents(tmp_path) == before


def test_a_small_document_is_read_or_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    assert read_text(tmp_path / "a.json", "the plan") == "{}"
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    for name, says in (("none.json", "does not exist"), ("b.json", "cannot be read"), ("", "cannot be read")):
        with refused(InputError, "FG111", "the plan", says):
            read_text(tmp_path / name, "the plan")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate((1 << 30) + 1)  # sparse: refused by its size, unread
    with refused(InputError, "FG111", "larger than 1 GiB"):
        read_text(tmp_path / "large.json", "the plan")


def test_a_file_is_described_by_digest_and_size(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    said = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(path) == said
    assert describe(path).to_json() == {"path": str(path), "sha256": said, "bytes": 3}
    assert same_file(path, tmp_path / "." / "a") and not same_file(path, tmp_path / "b")
