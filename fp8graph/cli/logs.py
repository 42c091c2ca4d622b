"""Where `fp8graph.*` logs go: stderr, and a file when asked for."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from fp8graph.base.errors import UsageError
from fp8graph.base.files import same_file

_FIRST_LINE = "# fp8graph log"
# What commands write beside their output.
_BESIDE = (".plan.json", ".plan.safetensors", ".data", ".json", ".log", ".resume")


def start(*, verbose: int, quiet: bool, file: str | None, paint: Callable[[str, str], str]) -> None:
    """Warnings go to stderr; -v adds information, -vv everything, -q leaves errors only. A file gets everything.

    Warnings that Python modules raise count as information: they speak to programmers.
    Raises UsageError where `file` cannot be written or holds something else than our log.
    """
    stop()
    logger, python = _loggers()
    logging.captureWarnings(True)
    logger.propagate = python.propagate = False
    handlers: list[logging.Handler] = []
    shown = logging.StreamHandler()
    shown.setFormatter(_Short(paint))
    shown.setLevel(logging.ERROR if quiet else {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))
    handlers.append(shown)
    if file is not None:
        handlers.append(_to_file(Path(file)))
    logger.setLevel(logging.DEBUG if file is not None else shown.level)
    for handler in handlers:
        logger.addHandler(handler)
        if handler is not shown or (verbose and not quiet):
            python.addHandler(handler)
    if not python.handlers:
        python.addHandler(logging.NullHandler())


def note(text: str, *, error: bool = False) -> None:
    """Writes to the log file alone, where there is one: what stderr and stdout are told in another form."""
    record = logging.LogRecord("fp8graph", logging.ERROR if error else logging.INFO, "", 0, text, None, None)
    for handler in _loggers()[0].handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def refuse_taken(args: argparse.Namespace) -> None:
    """Raises UsageError FG103 where the log file is one that the command reads or writes; nothing is written yet."""
    log = Path(args.log_file)
    for option, text in _texts(args):
        named = [Path(text)]
        if option == "output":
            named += [Path(text + suffix) for suffix in _BESIDE]
        elif option == "pass_file":
            named = [Path(text.rpartition(":")[0])]
        elif option in ("a", "b") and not named[0].exists():
            named = [Path(text.rpartition("@")[0] or text)]
        for path in named:
            if same_file(log, path) or log.absolute() == path.absolute():
                raise UsageError(
                    "the log file is one that this command reads or writes",
                    where=f"--log-file {args.log_file}",
                    why=f"{path} is named, too",
                    do="choose another name after --log-file",
                    code="FG103",
                )


def _texts(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for option, value in vars(args).items():
        if option not in ("log_file", "color", "progress"):
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str) and item:
                    yield option, item


def stop() -> None:
    """Closes what `start` has opened; logging is then as it was for a library."""
    logging.captureWarnings(False)
    for one in _loggers():
        for handler in list(one.handlers):
            one.removeHandler(handler)
            handler.close()
        one.setLevel(logging.NOTSET)
        one.propagate = True
    _loggers()[0].addHandler(logging.NullHandler())


def _loggers() -> tuple[logging.Logger, logging.Logger]:
    return logging.getLogger("fp8graph"), logging.getLogger("py.warnings")


def _to_file(path: Path) -> logging.Handler:
    where = str(path)
    if not path.parent.is_dir():
        raise UsageError(
            "the log file's folder does not exist", where=where, do=f"mkdir -p '{path.parent}'", code="FG112"
        )
    try:
        if path.exists() and path.stat().st_size:
            with path.open("rb") as old:
                if not old.readline(200).startswith(_FIRST_LINE.encode()):
                    raise UsageError(
                        "the log file exists and is no log of ours",
                        where=where,
                        why="a log is only ever appended to a log",
                        do="choose another name after --log-file",
                        code="FG102",
                    )
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        if not path.stat().st_size:
            path.write_text(_FIRST_LINE + "\n", encoding="utf-8")
    except OSError as error:
        do = "choose another name after --log-file"
        raise UsageError("the log file cannot be written", where=where, why=str(error), do=do, code="FG130") from error
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


class _Short(logging.Formatter):
    """`warning: text`, without names and times; tracebacks are for files only."""

    def __init__(self, paint: Callable[[str, str], str]) -> None:
        super().__init__()
        self._paint = paint

    def format(self, record: logging.LogRecord) -> str:
        style = "bad" if record.levelno >= logging.ERROR else "warn" if record.levelno >= logging.WARNING else "dim"
        return f"{self._paint(style, record.levelname.lower())}: {record.getMessage()}"
