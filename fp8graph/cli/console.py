"""What a command says: the result on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from fp8graph.base.errors import BackendError, Fp8GraphError, InternalError, Interrupted
from fp8graph.base.progress import SILENT, Progress
from fp8graph.cli.main import detach_stdout, version

if TYPE_CHECKING:  # `--help` needs none of these
    import argparse

    from fp8graph.base.files import WrittenFile
    from fp8graph.base.findings import Finding

SCHEMA = "fp8graph.result/1"
_ANSI = {"bold": "1", "dim": "2", "bad": "31", "good": "32", "warn": "33"}
_FINDINGS_SHOWN = 12


class Outcome(NamedTuple):
    """What a command has come to: `text` for people, the rest for the result document."""

    text: str
    result: Mapping[str, Any] = MappingProxyType({})
    status: int = 0
    files: Sequence[WrittenFile] = ()
    findings: Sequence[Finding] = ()


class Console:
    """stdout, stderr and progress of one command."""

    def __init__(self, command: str, *, json: bool, color: str, verbose: int, given: Sequence[str]) -> None:
        self.command, self.json, self.verbose, self.given = command, json, verbose, list(given)
        self.progress: Progress = SILENT
        self._color = color
        self._logs: Any = None  # the module, once the options are known; `--help` needs none
        for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to fail
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    @staticmethod
    def for_tokens(command: str, tokens: Sequence[str], given: Sequence[str]) -> Console:
        """A console that is right also where the arguments cannot be parsed."""
        pairs = set(itertools.pairwise(tokens))
        wants_json = "--json" in tokens or "--output-format=json" in tokens or ("--output-format", "json") in pairs
        never = "--color=never" in tokens or ("--color", "never") in pairs
        verbose = sum(token == "--verbose" or token.count("v") for token in tokens if _short_or_verbose(token))
        return Console(command, json=wants_json, color="never" if never else "auto", verbose=verbose, given=given)

    def configure(self, args: argparse.Namespace) -> None:
        """Takes over the common options. Raises UsageError for a log file that cannot be written."""
        self._color, self.verbose = args.color, args.verbose
        from fp8graph.cli import logs

        if args.log_file is not None:
            logs.refuse_taken(args)
        self._logs = logs
        logs.start(verbose=args.verbose, quiet=args.quiet, file=args.log_file, paint=self.paint_error)
        self._note(f"{version()}, arguments: {self.given}")
        if not args.quiet:
            from fp8graph.cli.progress import choose

            self.progress = choose(args.progress, sys.stderr, color=self._colored(sys.stderr))

    def paint(self, style: str, text: str) -> str:
        """`text` for stdout in a style (bold, dim, good, warn, bad), plain where there is no colour."""
        return _painted(style, text) if text and self._colored(sys.stdout) else text

    def paint_error(self, style: str, text: str) -> str:
        """`text` for stderr, likewise."""
        return _painted(style, text) if text and self._colored(sys.stderr) else text

    def emit(self, outcome: Outcome) -> int:
        """Prints the result and returns its status."""
        self.close()
        if not self.json:
            self.say(outcome.text)
        else:
            self._document(outcome.status, outcome.files, outcome.findings, None, outcome.result)
        self._note(f"status {outcome.status}; wrote {', '.join(file.path for file in outcome.files) or 'nothing'}")
        return outcome.status

    def fail(self, error: Fp8GraphError) -> int:
        """Reports an error and returns its status. The error may carry `findings`, and a `result` mapping."""
        self.close()
        if isinstance(error, InternalError) and error.__cause__ is not None:
            saved = f"traceback in {self._save_traceback(error)}"
            error.where = f"{error.where}, {saved}" if error.where else saved
        findings: Sequence[Finding] = getattr(error, "findings", ())
        if self.json:
            self._failure(error.status, error.to_json(), findings, getattr(error, "result", {}))
        else:
            self._explain_findings(findings)
        self._say_error_form(error)
        if self.verbose > 1 or (self.verbose and isinstance(error, InternalError)):
            import traceback

            self.say_error(traceback.format_exc().rstrip())
        return error.status

    def crash(self, error: BaseException) -> int:
        """Reports an exception that nobody expected: one error, and the traceback in a file."""
        self.close()
        first = str(error).strip().partition("\n")[0][:200]
        shown = InternalError(
            f"something broke inside fp8graph: {type(error).__name__}" + (f": {first}" if first else ""),
            where=self._save_traceback(error),
            do="report it together with that file; -v prints what is in it",
            code="FG900",
        )
        if self.json:
            self._failure(shown.status, shown.to_json())
        self._say_error_form(shown)
        import traceback

        told = "".join(traceback.format_exception(error)).rstrip()
        self._note(told, error=True)
        if self.verbose:
            self.say_error(told)
        return shown.status

    def interrupted(self, status: int, cause: KeyboardInterrupt | None = None) -> int:
        """Reports Ctrl-C, or a signal that asked for the end, and what it has left to go on from."""
        self.close()
        left = cause if isinstance(cause, Interrupted) else None
        why, do = (left.what, left.do) if left is not None else ("", "run the command again")
        self._note(f"interrupted, status {status}" + (f"; {why}" if why else ""), error=True)
        if self.json:
            error = {"code": "FG131", "what": "interrupted", "where": "", "why": why, "do": do}
            self._failure(status, error, files=left.files if left is not None else ())
        self.say_error(f"interrupted: {why}; {do}" if why else "interrupted")
        return status

    def say(self, text: str) -> int:
        """Prints to stdout, status 0. A reader that has gone away is no error; a full disk is."""
        try:
            print(text, flush=True)
        except BrokenPipeError:
            detach_stdout()
        except OSError as error:
            detach_stdout()
            raise unprintable(error) from error
        return 0

    def say_error(self, text: str) -> None:
        """Prints to stderr; where nobody listens, nothing is said."""
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)

    def close(self, *, logs: bool = False) -> None:
        """Ends what is still shown as running, with `logs` also the log. May be called again."""
        close = getattr(self.progress, "close", None)
        if close:
            close()
        if logs and self._logs is not None:
            self._logs.stop()

    def _note(self, text: str, *, error: bool = False) -> None:
        if self._logs is not None:
            self._logs.note(text, error=error)

    def _colored(self, stream: TextIO) -> bool:
        if os.environ.get("NO_COLOR") or self._color == "never":
            return False
        return self._color == "always" or (stream.isatty() and os.environ.get("TERM") != "dumb")

    def _document(
        self,
        status: int,
        files: Sequence[WrittenFile],
        findings: Sequence[Finding],
        error: Mapping[str, str] | None,
        result: Mapping[str, Any],
    ) -> None:
        document = {
            "schema": SCHEMA,
            "command": self.command,
            "status": status,
            "files": [file.to_json() for file in files],
            "findings": [finding.to_json() for finding in findings],
            "error": error,
            "result": _finite(result),
        }
        import json

        self.say(json.dumps(document, indent=2, allow_nan=False))

    def _failure(
        self,
        status: int,
        error: Mapping[str, str],
        findings: Sequence[Finding] = (),
        result: Mapping[str, Any] | None = None,
        files: Sequence[WrittenFile] = (),
    ) -> None:
        with contextlib.suppress(BackendError):  # a stdout that takes nothing: stderr still tells
            self._document(status, files, findings, error, result or {})

    def _explain_findings(self, findings: Sequence[Finding]) -> None:
        from fp8graph.report.text import grouped

        for line in grouped(findings, limit=_FINDINGS_SHOWN):
            self.say_error(line)

    def _say_error_form(self, error: Fp8GraphError) -> None:
        self._note(f"status {error.status}; {error}", error=True)
        first, *rest = str(error).split("\n")
        head, _, what = first.partition(": ")
        self.say_error("\n".join([f"{self.paint_error('bad', head)}: {what}", *rest]))
        from fp8graph.base.codes import CODES

        if error.code in CODES:
            self.say_error(f"  more:  python -m fp8graph explain {error.code}")

    def _save_traceback(self, error: BaseException) -> str:
        import platform
        import tempfile
        import traceback

        lines = [
            f"{version()}, Python {platform.python_version()}, {platform.platform()}",
            f"arguments: {self.given}",
            "",
            *traceback.format_exception(error),
        ]
        try:
            with tempfile.NamedTemporaryFile(
                "w",
                prefix="fp8graph-",
                suffix=".traceback.txt",
                delete=False,
                encoding="utf-8",
                errors="backslashreplace",
            ) as file:
                file.write("\n".join(lines))
        except OSError:
            return "no file could be written; run it again with -v"
        return file.name


def unprintable(error: OSError) -> BackendError:
    """The error for a stdout that takes nothing more."""
    do = "make room, or send stdout elsewhere"
    return BackendError("the result could not be printed", where="stdout", why=str(error), do=do, code="FG130")


def _short_or_verbose(token: str) -> bool:
    return token == "--verbose" or (token[:1] == "-" and token[1:2] != "-" and not token[1:].strip("vq"))


def _painted(style: str, text: str) -> str:
    return f"\x1b[{_ANSI[style]}m{text}\x1b[0m" if style in _ANSI else text


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
