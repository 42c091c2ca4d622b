"""The only place that writes results: atomically, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8graph.base.errors import BackendError, InputError, UsageError

# A kill can leave a folder of this name beside the output; the next save there removes it.
_STAGING = ".fp8graph-"
_LARGEST_TEXT = 1 << 30


@dataclass(frozen=True)
class WrittenFile:
    """A file that a command made or replaced."""

    path: str
    sha256: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """The file as an item of a result document's `files`."""
        return {"path": self.path, "sha256": self.sha256, "bytes": self.bytes}


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> WrittenFile:
    """The file at `path` with its digest and size."""
    return WrittenFile(str(path), sha256_of(path), path.stat().st_size)


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths name one file, links followed; False where one does not exist."""
    return a.exists() and b.exists() and a.samefile(b)


def check_writable(output: Path, *, force: bool, inputs: Sequence[Path] = (), also: Sequence[str] = ()) -> None:
    """Refuses an output before any work is done for it.

    `inputs` may not be overwritten even with `force`; `also` are suffixes of files written beside the output.
    Raises UsageError (the parent is missing, the output exists, is a folder, or is an input).
    """
    if output.is_dir():
        raise UsageError("the output is a folder", where=str(output), do="name a file in it", code="FG102")
    if not output.parent.is_dir():
        raise UsageError(
            "the output's folder does not exist",
            where=str(output.parent),
            why="folders are not created silently",
            do=f"mkdir -p '{output.parent}'",
            code="FG112",
        )
    targets = [output, *(output.with_name(output.name + suffix) for suffix in also)]
    for target in targets:
        if target.is_dir():
            raise UsageError(
                "a folder is in the way of a file beside the output", where=str(target), do="remove it", code="FG102"
            )
        for path in inputs:
            if same_file(target, path) or target.absolute() == path.absolute():
                raise UsageError(
                    "the output would overwrite an input",
                    where=str(target),
                    why="inputs are never changed",
                    do="choose another name after -o",
                    code="FG103",
                )
        if target.exists() and not force:
            raise UsageError(
                "the output exists already", where=str(target), do="add --force, or choose another name", code="FG102"
            )


def read_text(path: Path, what: str) -> str:
    """The text of a small input file. Raises InputError where it is missing, too large or no UTF-8 text."""
    try:
        if (size := path.stat().st_size) > _LARGEST_TEXT:
            why = f"it has {size} bytes, and {_LARGEST_TEXT} are read at most"
            do = f"give {what}, which is never so large"
            raise InputError(f"{what} is larger than 1 GiB", where=str(path), why=why, do=do, code="FG111")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"{what} does not exist", where=str(path), why="there is no such file", do="check the path", code="FG111"
        ) from error
    except UnicodeDecodeError as error:
        do = f"give {what}, which is a text file"
        raise InputError(
            f"{what} cannot be read", where=str(path), why=f"it is no UTF-8 text: {error.reason}", do=do, code="FG111"
        ) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(
            f"{what} cannot be read", where=str(path), why=why, do="check the path and its permissions", code="FG111"
        ) from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`; what lies in it at the end is moved to the output's folder, or nothing is.

    Files are synced, then moved in the order: everything else, then the file called like `output` itself, so that
    whoever sees the output sees what belongs to it. A full disk or a missing permission is a BackendError, and
    leaves nothing.
    """
    prefix = f"{_STAGING}{output.name}-"
    folder: Path | None = None
    try:
        for stale in output.parent.iterdir():
            # What follows is mkdtemp's: another output's name may begin like this one and go on with a hyphen.
            if stale.name.startswith(prefix) and "-" not in stale.name[len(prefix) :]:
                shutil.rmtree(stale, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=output.parent))
        yield folder
        made = sorted(folder.iterdir(), key=lambda path: (path.name == output.name, path.name))
        for path in made:
            _sync(path)
            path.chmod(0o666 & ~_umask())
        _move(made, output.parent)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise BackendError("the result could not be written", where=str(output), why=reason, code="FG130") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _move(files: Sequence[Path], folder: Path) -> None:
    """Moves the files one by one; where one cannot be moved, those that are new in the folder are taken away again."""
    new: list[Path] = []
    try:
        for path in files:
            target = folder / path.name
            new += [] if target.exists() else [target]
            path.replace(target)
    except OSError:
        for target in new:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(output: Path, text: str) -> None:
    """Writes one small document atomically."""
    with staged(output) as folder:
        (folder / output.name).write_text(text, encoding="utf-8")
