"""The child process of a build: everything that touches a builder happens here, so that its crash is a status.

    python -m fp8graph.engines.worker JOBDIR

In JOBDIR: job.json in; log.txt (all lines of the builder), layers.txt (its layer listing) and result.json out. The
engine goes to the path that job.json names. Progress goes to stdout as JSON lines; what libraries print there goes to
stderr. When stdin is closed, the parent is gone, and so is this process.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from fp8graph.base.errors import BackendError, Fp8GraphError, InputError, UsageError
from fp8graph.engines.job import EXTRAS, BuildJob
from fp8graph.engines.probe import MODULES, devices, short
from fp8graph.engines.settings import add_profiles, apply_args

# Lines that say nothing: no driver on a machine that builds ahead of time, the importer's frame around an error, and
# that an int64 input is one.
_NOISE = re.compile(
    r"\[checkMacros\.cpp|The logger passed into"
    r"|ModelImporter\.cpp:\d+: (While parsing node|--- Begin node|--- End node|Make sure input)"
)
_KEPT_LINES = 200
Emit = Callable[[Mapping[str, Any]], None]


class Backend(Protocol):
    """What `tensorrt_rtx.py` and `tensorrt.py` each say about their builder."""

    NAME: str

    def load(self) -> Any:
        """The third-party module; ImportError where it is missing."""

    def refuse(self, job: BuildJob, devices: Sequence[str]) -> list[str]:
        """Warnings; UsageError for what the builder does not have, BackendError for what it cannot do here."""

    def why_not_here(self, version: str, devices: Sequence[str]) -> str:
        """Why this machine cannot build; empty where it can."""

    def chips(self, trt: Any, job: BuildJob, devices: Sequence[str]) -> tuple[str, ...]:
        """The chips to build for."""

    def configure(self, trt: Any, config: Any, job: BuildJob, asked: Sequence[str]) -> None:
        """Settings that only this builder has."""

    def timing_cache(self, trt: Any, config: Any, job: BuildJob) -> Any:
        """The timing cache in use, or None."""


class RefusedError(Exception):
    """The builder said no; `said` is what it said: stage, parser errors, log lines."""

    def __init__(self, stage: str, errors: list[dict[str, str]], log: list[str]) -> None:
        super().__init__(stage)
        self.said = {"stage": stage, "errors": errors, "log": log}


class Log:
    """Takes the builder's lines: all go to a file, errors and warnings are kept, and the layer listing."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "log.txt").open("w", encoding="utf-8", errors="replace")
        self._lock = threading.Lock()  # builders log from several threads
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""

    def write(self, severity: str, message: str) -> None:
        """One message with its severity, such as ERROR."""
        with self._lock:
            self._file.write(f"{severity} {message}\n")
            self._file.flush()  # a crash must not take the last lines with it
            if message.startswith("Layers:"):
                self.layers = message
            kept = {"ERROR": self.errors, "INTERNAL_ERROR": self.errors, "WARNING": self.warnings}.get(severity)
            if kept is None or len(kept) >= _KEPT_LINES or message in kept or _NOISE.match(message):
                return
            kept.append(message)


def build(backend: Backend, job: BuildJob, engine: Path, cache: str, log: Log, emit: Emit) -> dict[str, Any]:
    """Parses and builds; writes the engine to `engine`, and the timing cache to `cache` where that is not empty.

    Gives version, chips and warnings. Raises Fp8GraphError, or RefusedError where parser or builder said no.
    """
    gpus = [gpu["chip"] for gpu in devices()]
    warnings = backend.refuse(job, gpus)
    trt = _module(backend)
    chips = backend.chips(trt, job, gpus)
    why_not = backend.why_not_here(str(trt.__version__), gpus)
    if why_not:
        raise BackendError(f"{backend.NAME} cannot build on this machine", why=why_not, code="FG505")
    logger = _logger(trt, log)
    builder = trt.Builder(logger)  # first: without one the registry has nobody to tell why it refuses a library
    _load_plugins(trt, logger, job, log)
    # Needed by 10.x, ignored by later ones, where every network is strongly typed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    emit({"event": "phase", "name": "Parsing"})
    _parse(trt, network, logger, job, log)
    config = builder.create_builder_config()
    # The layer listing, the first witness of an attestation, is written at this verbosity only.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    backend.configure(trt, config, job, chips)
    apply_args(trt, config, job)
    warnings += add_profiles(builder, network, config, job.profiles)
    held = backend.timing_cache(trt, config, job)
    config.progress_monitor = _monitor(trt, emit)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise RefusedError("build", [], log.errors)
    with engine.open("wb") as file:
        file.write(memoryview(serialized))
    if cache and held is not None:
        Path(cache).write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
    return {"version": str(trt.__version__), "chips": list(chips), "warnings": warnings + log.warnings}


def build_alone(backend: Any, job: BuildJob, engine: Path, cache: str, log: Log, emit: Emit) -> dict[str, Any]:
    """A builder that shares nothing with TensorRT: its module has a `build` of its own, which gives the layers, too.

    Gives what `build` gives, and `layers` as rows of the manifest. Raises Fp8GraphError.
    """
    gpus = [gpu["chip"] for gpu in devices()]
    warnings = backend.refuse(job, gpus)
    module = _module(backend)
    version = short(module.__version__)
    if why_not := backend.why_not_here(version, gpus):
        raise BackendError(f"{backend.NAME} cannot build on this machine", why=why_not, code="FG505")

    def say(line: str) -> None:
        log.write("INFO", line)
        emit({"event": "phase", "name": line})

    made: dict[str, Any] = backend.build(module, job, engine, say)
    return {**made, "version": version, "warnings": warnings + made["warnings"]}


def _module(backend: Backend) -> Any:
    try:
        return backend.load()
    except Exception as error:  # a package that is half there raises whatever it likes
        raise BackendError(
            f"{backend.NAME} is not usable here",
            why=f"{type(error).__name__}: {error}".partition("\n")[0],
            do=f"pip install 'fp8graph[{EXTRAS[backend.NAME]}]'; python -m fp8graph doctor says more",
            code="FG505",
        ) from error


def _parse(trt: Any, network: Any, logger: Any, job: BuildJob, log: Log) -> None:
    # From the file, not from bytes: only so external data is found, of any size.
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job.model):
        errors = []
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            errors.append({"text": error.desc(), "node": error.node_name(), "op_type": error.node_operator()})
        raise RefusedError("parse", errors, log.errors)
    # Random bytes parse with no error, and give a network with nothing in it.
    if not network.num_outputs or not (network.num_layers or network.num_inputs):
        why = "the parser found no graph in it"
        raise InputError("the model cannot be read", where=job.model, why=why, code="FG106")


def _load_plugins(trt: Any, logger: Any, job: BuildJob, log: Log) -> None:
    if not job.plugins:
        return
    trt.init_libnvinfer_plugins(logger, "")
    for library in job.plugins:
        if trt.get_plugin_registry().load_library(library) is None:
            found = re.search(r"\((.+?)\.? In \w+ at ", log.errors[-1]) if log.errors else None
            said = f": {found[1] if found else log.errors[-1]}" if log.errors else ""
            raise InputError(
                "the library of custom ops cannot be loaded",
                where=library,
                why=f"it is missing, or no plugin library of this builder{said}",
                do="build it against the version that `python -m fp8graph doctor` shows",
                code="FG111",
            )


def _logger(trt: Any, log: Log) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.min_severity = trt.ILogger.Severity.VERBOSE

        def log(self, severity: Any, message: str) -> None:
            log.write(str(severity).rpartition(".")[2], message)

    return Logger()


def _monitor(trt: Any, emit: Emit) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases lie in one another and overlap: only the outermost counts steps, of the others the name is told."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outer = ""

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase and not self.outer:
                self.outer = phase_name
                emit({"event": "start", "name": phase_name, "steps": num_steps})
            else:
                emit({"event": "phase", "name": phase_name})

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self.outer:
                emit({"event": "step", "name": phase_name})
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self.outer:
                self.outer = ""
                emit({"event": "done", "name": phase_name})

    return Monitor()


def _result(folder: Path, events: IO[str]) -> dict[str, Any]:
    """Does the job of a folder; every failure that is somebody's turn becomes a part of the result."""
    lock = threading.Lock()

    def emit(event: Mapping[str, Any]) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            events.write(json.dumps(event) + "\n")
            events.flush()

    log = Log(folder)
    try:
        order = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        job = BuildJob.from_json(order["job"])
        backend: Backend = importlib.import_module(MODULES[job.builder])
        own = hasattr(backend, "build")
        how = build_alone if own else build
        made = how(backend, job, Path(order["engine"]), order["timing_cache"], log, emit)
        (folder / "layers.txt").write_text(log.layers, encoding="utf-8", errors="replace")
        return {"made": made}
    except RefusedError as refused:
        return {"refused": refused.said}
    except Fp8GraphError as error:
        return {"error": {"class": type(error).__name__, **error.to_json()}}
    except MemoryError:
        return {"error": _memory()}
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return {"error": _memory()}
        why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        do = "make room, or choose another folder"
        failed = BackendError("the engine could not be written", why=why, do=do, code="FG130")
        return {"error": {"class": "BackendError", **failed.to_json()}}


def _memory() -> dict[str, str]:
    error = BackendError("memory ran out while building", do="use a machine with more memory", code="FG132")
    return {"class": "BackendError", **error.to_json()}


def _end_with_parent() -> None:
    while os.read(0, 4096):  # not sys.stdin: its lock would be held while Python ends
        pass
    os._exit(1)


def main(argv: Sequence[str]) -> int:
    """Entry of the child process: `argv[0]` is the job's folder."""
    if len(argv) != 1:
        raise UsageError("the worker takes one folder", do="python -m fp8graph build", code="FG100")
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no event
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(argv[0])
    result = _result(folder, events)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    events.flush()
    os._exit(0)  # not through the builder's destructors: a crash there would belie a result that is whole


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
