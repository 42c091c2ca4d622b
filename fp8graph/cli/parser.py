"""argparse with our rules: full names only, `_` for `-`, names of other tools, typed errors with the nearest name."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from fp8graph.base.errors import UsageError

# Behind these stands a command with options of its own.
TAKES_THE_REST = ("--check",)


def before_dashes(tokens: Sequence[str]) -> Iterator[str]:
    """The tokens before a `--`, after which nothing is an option, or up to an option that takes all that follows."""
    for token in tokens:
        if token == "--":
            return
        yield token
        if token in TAKES_THE_REST:
            return


def spelled(tokens: Sequence[str]) -> list[str]:
    """The tokens with `-` for `_` in the names of long options; values stay as they are."""
    out = list(tokens)
    for index, token in enumerate(before_dashes(tokens)):
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            out[index] = name.replace("_", "-") + equals + value
    return out


class Parser(argparse.ArgumentParser):
    """The parser of one command, built from the command's module."""

    def __init__(self, command: str, module: ModuleType) -> None:
        prog = f"python -m fp8graph {command}"
        examples = "".join(f"\n  python -m fp8graph {line}" for line in module.EXAMPLES)
        super().__init__(
            prog=prog,
            usage=f"python -m fp8graph {module.USAGE}",
            description=(module.__doc__ or "").strip(),
            epilog=f"examples:{examples}",
            formatter_class=_Formatter,
            add_help=False,
            allow_abbrev=False,
        )
        module.configure(self)
        from fp8graph.cli.groups import Common

        Common.add(self)

    def option(self, group: argparse._ArgumentGroup, *names: str, known_as: Sequence[str] = (), **how: Any) -> None:
        """Declares an option in `group`; `known_as` are names of other tools, accepted and not shown."""
        action = group.add_argument(*names, **how)
        if known_as:
            hidden = {**how, "dest": action.dest, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            self.add_argument(*known_as, **hidden)

    def parse(self, tokens: Sequence[str]) -> argparse.Namespace:
        """The options' values. Raises UsageError for whatever is not declared."""
        self._refuse_unknown(tokens)
        own = list(before_dashes(tokens))
        rest = tokens[len(own) :]
        if not own or own[-1] not in TAKES_THE_REST:
            own, rest = list(tokens), ()
        args, extras = self.parse_known_intermixed_args(own)
        if rest:  # argparse would end it at a `--`
            setattr(args, own[-1].lstrip("-"), list(rest))
        if extras:
            raise UsageError(
                f"unexpected argument '{extras[0]}'",
                where=self.prog,
                why=f"usage: {self.usage}",
                do=f"{self.prog} --help",
                code="FG100",
            )
        return args

    def error(self, message: str) -> NoReturn:
        """argparse's verdict as one of our errors."""
        found = re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL)
        where, what = found.groups() if found else (self.prog, message)
        if what.startswith("expected"):
            what = f"{where} {what}".replace("expected", "needs", 1)
        raise UsageError(what, where=where, do=f"{self.prog} --help", code="FG100")

    def _refuse_unknown(self, tokens: Sequence[str]) -> None:
        known = self._option_string_actions
        for token in before_dashes(tokens):
            name = token.partition("=")[0]
            if not name.startswith("--") or name in known:
                continue
            import difflib

            shown = [option for option, action in known.items() if action.help != argparse.SUPPRESS]
            # without the dashes, which are alike in all of them
            near = difflib.get_close_matches(name[2:], [option[2:] for option in shown if option[:2] == "--"], n=1)
            raise UsageError(
                f"there is no option '{name}'",
                where=self.prog,
                do=f"did you mean '--{near[0]}'?" if near else f"{self.prog} --help lists them",
                code="FG101",
            )


def _columns() -> int:
    """Width of the terminal as shutil tells it, whose import takes longer than all the rest of `--help`."""
    try:
        return int(os.environ["COLUMNS"]) or 80
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with room for long option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=_columns() - 2)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs in ("+", "*") and action.option_strings:
            return f"{action.metavar or default_metavar} ..."
        return super()._format_args(action, default_metavar)
