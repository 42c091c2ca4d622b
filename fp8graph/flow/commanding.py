"""The user's own command as a judge: a model is written for it, and how it ends says whether the model is good."""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fp8graph.base.errors import UsageError
from fp8graph.base.files import check_writable, staged
from fp8graph.graph.save import save
from fp8graph.graph.stages import Legal

log = logging.getLogger(__name__)
DEBUG_MODEL = "fp8graph_debug.onnx"
# Of what a command prints so much is searched and logged, from the end.
_READ = 64 << 20


@dataclass(frozen=True)
class Command:
    """A command, and what its end means, as in Polygraphy.

    words       the command and its arguments; no shell is between
    fail_codes  statuses that mean bad; without any, all but 0 do
    fail_regex  expressions searched in what it prints, on both streams: bad is only where one is found, and, with
                `fail_codes`, where the status is one of them, too
    """

    words: tuple[str, ...]
    fail_codes: tuple[int, ...] = ()
    fail_regex: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in self.fail_regex:
            try:
                re.compile(text)
            except re.error as error:
                raise UsageError(
                    "a pattern is no regular expression",
                    where=f"--fail-regex {text}",
                    why=str(error),
                    do="write it as Python's re module reads it",
                    code="FG100",
                ) from error

    def refuse_taken(self) -> None:
        """Raises UsageError FG102 where a file lies in the way of the model that is written for the command."""
        check_writable(Path(DEBUG_MODEL), force=False, also=(".data",))

    def judged(self, legal: Legal) -> tuple[bool, str]:
        """Whether the model is good, and how the command ended. The model lies in the working folder meanwhile.

        Raises UsageError FG101 where the command cannot be run.
        """
        with _lying_here(legal), tempfile.TemporaryFile() as file:
            log.info("running %s", shlex.join(self.words))
            try:
                done = subprocess.run(
                    self.words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False
                )
            except OSError as error:
                raise UsageError(
                    "the command after --check cannot be run",
                    where=f"--check {self.words[0]}",
                    why=error.strerror or str(error),
                    do="give a program on PATH, or a path to one: --check python eval.py",
                    code="FG101",
                ) from error
            size = file.tell()
            file.seek(max(0, size - _READ))
            said = file.read().decode("utf-8", "replace")
        for line in said.splitlines():
            log.info("| %s", line)
        return self._verdict(done.returncode, said)

    def _verdict(self, status: int, said: str) -> tuple[bool, str]:
        found = next((text for text in self.fail_regex if re.search(text, said)), None)
        ended = f"status {status}" if status >= 0 else f"ended by signal {-status}"
        bad = status in self.fail_codes if self.fail_codes else status != 0
        if self.fail_regex:
            ended += f", '{found}' was printed" if found else ", no pattern was printed"
            bad = found is not None and (bad or not self.fail_codes)
        return not bad, ended


@contextmanager
def _lying_here(legal: Legal) -> Iterator[None]:
    """The model as a file in the working folder, for as long as it lasts."""
    path, made = Path(DEBUG_MODEL), [DEBUG_MODEL]
    try:
        with staged(path) as folder:
            made = [item.name for item in save(legal, folder, path.name)]
        yield
    finally:
        for name in made:
            path.with_name(name).unlink(missing_ok=True)


def command_of(words: Sequence[str] | None, fail_codes: Sequence[int], fail_regex: Sequence[str]) -> Command | None:
    """The command that was asked for. Raises UsageError FG100 for what says how a command ends, without one."""
    if words:
        return Command(tuple(words), tuple(fail_codes), tuple(fail_regex))
    stray = "--fail-code" if fail_codes else "--fail-regex" if fail_regex else "--check" if words is not None else ""
    if stray:
        raise UsageError(
            "there is no command to run",
            where=stray,
            why="--check takes all that follows it, and was left out or last on the line",
            do="end the line with --check and the command: --check python eval.py",
            code="FG100",
        )
    return None
