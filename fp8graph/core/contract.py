"""What a pass raises or returns against its contract, told as an error that names the pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from fp8graph.base.errors import Fp8GraphError, PassContractError
from fp8graph.core.passes import Opinion

Kind = Literal["pass", "rule", "repair"]
T = TypeVar("T")


@contextmanager
def holding(kind: Kind, name: str, where: str = "") -> Iterator[None]:
    """Runs somebody's code: whatever it raises beside our own errors becomes PassContractError FG901."""
    try:
        yield
    except Fp8GraphError:
        raise
    except (Exception, SystemExit) as error:
        raise PassContractError(
            f"the {kind} {name} failed",
            where=where,
            why=f"{type(error).__name__}: {error}",
            do=f"mend the {kind}, or leave it out",
            code="FG901",
        ) from error


def opinion_of(name: str, given: Any, where: str) -> Opinion | None:
    """What a rule returned, where it is an Opinion or None. Raises PassContractError FG901."""
    if given is None:
        return None
    wrong = "" if isinstance(given, Opinion) else f"it returned {_told(given)}"
    if isinstance(given, Opinion):
        if given.do not in ("quantize", "keep"):
            wrong = f"its opinion is to {given.do!r}"
        elif not all(isinstance(part, str) and part for part in (given.code, given.text)):
            wrong = f"its opinion lacks a code or a text: {given}"
    if wrong:
        raise _broken("rule", name, where, wrong, "return Opinion('keep' or 'quantize', code, text), or None")
    checked: Opinion = given
    return checked


def changes_of(name: str, given: Any) -> int:
    """What a rewriting pass returned, where it is a number of changes. Raises PassContractError FG901."""
    if not isinstance(given, int) or given < 0:
        raise _broken(
            "pass", name, "", f"rewrite() returned {_told(given)}", "return the number of changes, 0 for none"
        )
    return given


def sequence_of(name: str, given: Any, of: type[T] | tuple[type[T], ...] | None, where: str) -> Sequence[T]:
    """What a repair returned, where it is a sequence (of tensor names, or of pairs). Raises PassContractError FG901."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise _broken("repair", name, where, f"it returned {_told(given)}", "return a list")
    wrong = next((item for item in given if of is not None and not isinstance(item, of)), None)
    if wrong is not None:
        raise _broken("repair", name, where, f"its list holds {_told(wrong)}", "return what its base class asks for")
    return given


def _told(given: Any) -> str:
    return f"{type(given).__name__} {given!r:.60}" if given is not None else "None"


def _broken(kind: Kind, name: str, where: str, why: str, do: str) -> PassContractError:
    return PassContractError(f"the {kind} {name} broke its contract", where=where, why=why, do=do, code="FG901")
