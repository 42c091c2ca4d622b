"""One command from its arguments to its exit status. Every exception ends here."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Sequence
from types import ModuleType

from fp8graph.base.errors import BackendError, Fp8GraphError, UsageError
from fp8graph.cli.console import Console
from fp8graph.cli.main import COMMANDS, top_help, version
from fp8graph.cli.parser import Parser, before_dashes, spelled
from fp8graph.cli.signals import status_of, stopping


def run(command: str | None, rest: Sequence[str], given: Sequence[str]) -> int:
    """Runs `command` with the other arguments; `given` is the whole line, for the report of a bug."""
    tokens = spelled(rest)
    console = Console.for_tokens(command or "", list(before_dashes(tokens)), given)
    try:
        with stopping():
            return _run(command, tokens, console)
    except Fp8GraphError as error:
        return console.fail(error)
    except KeyboardInterrupt as error:
        return console.interrupted(status_of(error), error)
    except MemoryError:
        return console.fail(_out_of_memory())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return console.fail(
                BackendError(
                    "the disk is full",
                    where=str(error.filename or ""),
                    why=str(error),
                    do="make room, or name a file on another disk",
                    code="FG130",
                )
            )
        if error.errno == errno.ENOENT and not _is_somewhere():
            return console.fail(_nowhere())
        return console.fail(_out_of_memory()) if error.errno == errno.ENOMEM else console.crash(error)
    except Exception as error:
        return console.crash(error)
    finally:
        console.close(logs=True)


def _run(command: str | None, tokens: list[str], console: Console) -> int:
    if command is None:
        if not console.json:
            console.say_error(top_help())
            return UsageError.status
        raise UsageError(
            "no command was given", where="python -m fp8graph", do="add one of " + ", ".join(COMMANDS), code="FG100"
        )
    module = _module(command)
    parser = Parser(command, module)
    flags = set(before_dashes(tokens))
    if flags & {"-h", "--help"}:
        return console.say(parser.format_help().rstrip())
    if "--version" in flags:
        return console.say(version())
    args = parser.parse(tokens)
    console.configure(args)
    return console.emit(module.run(args, console))


def _module(command: str) -> ModuleType:
    if command in COMMANDS:
        return importlib.import_module(f"fp8graph.cli.commands.{command}")
    if command.startswith("-"):
        raise UsageError(
            f"the option '{command}' stands before the command",
            where="python -m fp8graph",
            do=f"name the command first: python -m fp8graph COMMAND {command} ...",
            code="FG101",
        )
    import difflib

    near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.4)
    raise UsageError(
        f"there is no command '{command}'",
        where="python -m fp8graph",
        do=f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(COMMANDS),
        code="FG101",
    )


def _is_somewhere() -> bool:
    from pathlib import Path

    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _nowhere() -> UsageError:
    return UsageError(
        "the folder that this was started in does not exist any more",
        where="the working folder",
        why="names without a path lie in it",
        do="cd to a folder that exists",
        code="FG112",
    )


def _out_of_memory() -> BackendError:
    return BackendError(
        "memory ran out",
        where="this machine",
        why="the next step wanted more than there is",
        do="give --batch 1 or fewer --samples, or use a machine with more memory",
        code="FG132",
    )
