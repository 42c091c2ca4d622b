"""Building an engine, seen from the parent: starts the child, watches it, and writes the result whole or not at all."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import onnx_ir as ir

from fp8graph.base import errors, files
from fp8graph.base.errors import BackendError, Fp8GraphError, InternalError
from fp8graph.base.files import WrittenFile
from fp8graph.base.progress import SILENT, Progress
from fp8graph.engines import child, listing, manifest, reading, words
from fp8graph.engines.job import BuildJob
from fp8graph.engines.sites import sites
from fp8graph.engines.witness import EngineOp
from fp8graph.graph.load import load

WORKER = (*child.python("fp8graph.engines.worker"),)
_LOOK_S = 0.05  # how often the clock and the child's memory are looked at
_log = logging.getLogger("fp8graph.engines")


@dataclass(frozen=True)
class EngineBuilt:
    """What a build made: the files, the manifest as a document, and what the builder warned of."""

    files: list[WrittenFile]
    manifest: dict[str, Any]
    warnings: list[str]


def build_engine(
    job: BuildJob,
    output: Path,
    *,
    plan: str = "",
    timeout_s: float | None = None,
    memory_limit_bytes: int | None = None,
    progress: Progress = SILENT,
    worker: Sequence[str] = WORKER,
) -> EngineBuilt:
    """Builds `job` in a child process and writes `output`, `output`.json (manifest) and `output`.log, and nothing else.

    plan                sha256 of the plan that belongs to the model, or empty; it goes into the manifest
    timeout_s           the child and all that it started is killed after so many seconds
    memory_limit_bytes  the same, for the child's resident memory (Linux; elsewhere a warning says that nobody looks).
                        Its address space is not limited: CUDA reserves far more of that than it uses
    worker              command of the child; its last argument will be the job's folder

    Raises InputError (status 3) for a model that cannot be read, UsageError (2) for what the builder or chip does not
    have, BackendError (4) for a builder that is missing, refuses, crashes or does not end. An existing output is
    replaced: whether it may be is the caller's matter.
    """
    given, output = output, output.absolute()
    source = load(job.model)
    with files.staged(output) as folder, tempfile.TemporaryDirectory(prefix="fp8graph-") as temporary:
        run = _Run(job, folder / output.name, Path(temporary), list(worker), memory_limit_bytes)
        made = run.result(source.model, timeout_s, progress)
        warnings = list(made["warnings"]) + run.warnings
        rows, problem = _rows(made) if "layers" in made else _listing(run.folder / "layers.txt")
        if problem:
            warnings.append(problem)
        keys = reading.keys(job.builder, rows or (), sites(source.model))
        document = manifest.make(job, folder / output.name, plan, made, rows, source.external, keys)
        (folder / manifest.beside(output).name).write_text(manifest.spell(document), encoding="utf-8")
        shutil.copyfile(run.folder / "log.txt", folder / f"{output.name}.log")
        cache = run.timing_cache.read_bytes() if run.timing_cache.exists() else None
    made_files = (given, manifest.beside(given), given.with_name(given.name + ".log"))  # named as the caller does
    written = [files.describe(path) for path in made_files]
    if cache is not None:
        target = Path(job.save_timing_cache)
        with files.staged(target) as folder:
            (folder / target.name).write_bytes(cache)
        written.append(files.describe(target))
    return EngineBuilt(written, document, warnings)


def _rows(made: Mapping[str, Any]) -> tuple[list[EngineOp], str]:
    """The layers of a builder that gives them as rows of a manifest."""
    return [EngineOp.from_json(row) for row in made["layers"]], ""


def _listing(path: Path) -> tuple[list[EngineOp] | None, str]:
    """The layers that the builder listed; None with a warning where it listed none, or not as expected."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return listing.parse(text), ""
    except listing.FormError as error:
        return None, f"the builder's layer listing cannot be read ({error}): attest has the engine file alone"


class _Run:
    """One child process with its folder."""

    def __init__(
        self, job: BuildJob, engine: Path, folder: Path, worker: list[str], memory_limit_bytes: int | None
    ) -> None:
        self.job, self.engine, self.folder, self.worker = job, engine, folder, worker
        self.memory_limit_bytes = memory_limit_bytes
        self.timing_cache = folder / "timing.cache"
        self.phase = ""  # what the builder was at, for the message about a crash
        self.warnings: list[str] = []
        if memory_limit_bytes is not None and not Path("/proc/self/statm").exists():
            self.warnings.append("the memory limit is not watched on this system")

    def result(self, model: ir.Model, timeout_s: float | None, progress: Progress) -> dict[str, Any]:
        """Runs the child and gives what it made. Raises the error that its end amounts to."""
        order = {
            "job": self.job.to_json(),
            "engine": str(self.engine),
            "timing_cache": str(self.timing_cache) if self.job.save_timing_cache else "",
        }
        (self.folder / "job.json").write_text(json.dumps(order), encoding="utf-8")
        try:
            returncode = self._run(timeout_s, progress)
            answer = self._answer(returncode)
            if "error" in answer:
                raise _error(answer["error"])
            if "refused" in answer:
                raise words.explain(self.job.builder, Path(self.job.model).name, answer["refused"], model)
            made: dict[str, Any] = answer["made"]
            return made
        except Fp8GraphError:
            # The log is no result of a failed build; --log-file and -v take it from here.
            for name in ("log.txt", "stderr.txt"):
                for line in _tail(self.folder / name, 1 << 20).splitlines():
                    _log.debug("%s: %s", self.job.builder, line)
            raise

    def _run(self, timeout_s: float | None, progress: Progress) -> int:
        with (self.folder / "stderr.txt").open("wb") as stderr:
            process = subprocess.Popen(
                [*self.worker, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=self.folder,
                env=child.environment(),
                start_new_session=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        events = _Lines(process.stdout)
        try:
            self._watch(process, events, timeout_s, progress)
        finally:
            child.kill(process)  # also what it has started and left behind
            process.stdin.close()
            events.close()
        return process.returncode

    def _watch(
        self, process: subprocess.Popen[bytes], events: _Lines, timeout_s: float | None, progress: Progress
    ) -> None:
        """Relays events until the child closes its stdout and ends. Raises BackendError FG506 or FG132 on a limit."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with _Relay(progress) as relay:
            while (line := events.next()) is not None:
                self.phase = relay.event(line) or self.phase
                self._check_limits(process.pid, end, timeout_s)
        while not child.has_ended(process):
            self._check_limits(process.pid, end, timeout_s)
            time.sleep(_LOOK_S / 10)

    def _check_limits(self, pid: int, end: float | None, timeout_s: float | None) -> None:
        if end is not None and time.monotonic() > end:
            raise BackendError(
                f"{self.job.builder} did not end within {timeout_s:g} s",
                where=Path(self.job.model).name,
                why=f"it was at: {self.phase or 'starting'}",
                do="give a larger --timeout, or a lower --builder-optimization-level",
                code="FG506",
            )
        used = _resident_bytes(pid) if self.memory_limit_bytes is not None else 0
        if self.memory_limit_bytes is not None and used > self.memory_limit_bytes:
            raise BackendError(
                f"{self.job.builder} took more memory than it may",
                where=Path(self.job.model).name,
                why=f"{used >> 20} MiB of {self.memory_limit_bytes >> 20} MiB, at: {self.phase or 'starting'}",
                do="give a larger --memory-limit, or smaller --max-shapes",
                code="FG132",
            )

    def _answer(self, returncode: int) -> dict[str, Any]:
        if returncode == 0:
            try:
                answer = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
                if isinstance(answer, dict):
                    return answer
            except (OSError, ValueError):
                pass
        tail = _tail(self.folder / "stderr.txt", 4096).strip()
        last = tail.rpartition("\n")[2]
        if returncode > 0 and "Traceback (most recent call last)" in tail:
            raise InternalError("the build process broke", where=Path(self.job.model).name, why=last, code="FG900")
        # A crash says nothing on stderr; the builder's own last line then tells how far it came.
        said = last or _tail(self.folder / "log.txt", 4096).strip().rpartition("\n")[2]
        killed = returncode == -signal.SIGKILL if hasattr(signal, "SIGKILL") else False
        hint = "; killed from outside, most likely because memory ran out" if killed else ""
        raise BackendError(
            f"{self.job.builder} crashed: its process {child.ended(returncode)}",
            where=Path(self.job.model).name,
            why=f"it was at: {self.phase or 'starting'}{hint}" + (f"; last words: {said}" if said else ""),
            do="try a lower --builder-optimization-level or another version of the builder; --log-file F keeps its log",
            code="FG132" if killed else "FG507",
        )


class _Relay:
    """Turns the child's events into progress. What is open at the end is closed, whatever happened."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._open = progress, False

    def __enter__(self) -> _Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._progress.done()

    def event(self, line: bytes) -> str:
        """Takes one line of the child's stdout; gives the name of the phase that it speaks of, or nothing."""
        try:
            event = json.loads(line)
            kind, name = str(event["event"]), str(event["name"])
        except (ValueError, KeyError, TypeError):
            return ""
        if kind == "start":
            self._close()
            self._open = True
            steps = event.get("steps")
            self._progress.start(name, steps if isinstance(steps, int) and steps > 0 else None, "steps")
        elif kind == "step" and self._open:
            self._progress.step()
        elif kind == "done":
            self._close()
        return name


class _Lines:
    """The lines of a pipe as they come. A thread reads: pipes cannot be waited for on every system."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._stream:
                self._lines.put(line)
        self._lines.put(None)

    def next(self) -> bytes | None:
        """The next line; an empty one where none came for a moment; None at the end."""
        try:
            return self._lines.get(timeout=_LOOK_S)
        except queue.Empty:
            return b""

    def close(self) -> None:
        """Closes the pipe, unless somebody else still holds its other end: closing would wait for them."""
        self._thread.join(timeout=1)
        if not self._thread.is_alive():
            self._stream.close()


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    import resource

    return pages * resource.getpagesize()


def _tail(path: Path, size: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _error(said: Mapping[str, str]) -> Fp8GraphError:
    """The error that the child raised, with its class."""
    kind = getattr(errors, said.get("class", ""), None)
    if not (isinstance(kind, type) and issubclass(kind, Fp8GraphError)):
        kind = InternalError
    return kind(said["what"], where=said["where"], why=said["why"], do=said["do"], code=said["code"])
