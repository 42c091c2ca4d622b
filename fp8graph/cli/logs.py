"""Where `fp8graph.*` logs go: stderr, and a file when asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from fp8graph.base.errors import UsageError

_FIRST_LINE = "# fp8graph log"


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
        raise UsageError("the log file cannot be written", where=where, why=str(error), code="FG130") from error
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
