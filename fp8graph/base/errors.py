"""Typed errors. The exit status belongs to the class, so a script can tell whose turn it is.

Fp8GraphError
  UnmetError      1   asked for, honestly not reached: nothing to quantize, accuracy out of reach
  UsageError      2   options, recipe, unknown name, data needed and not given, a wish the target refuses
  InputError      3   model, data, plan or path refused
  BackendError    4   builder or runtime failed or missing, device, memory, disk
  InternalError   5   our bug; `PassContractError` is one
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing: errors are part of every `--help`
if TYPE_CHECKING:
    from typing import ClassVar

    from fp8graph.base.files import WrittenFile
    from fp8graph.base.findings import Finding


class Fp8GraphError(Exception):
    """What went wrong, where, why, and what to do about it.

    `what` is one sentence without jargon, `where` a thing the user can find (file, op key, recipe path), `why` the
    fact that decided with the values compared, `do` something that can be typed. `code` is an `FGnnn` of
    `fp8graph.base.codes`. Optional parts may be empty; `what` may not.
    """

    status: ClassVar[int] = 5

    def __init__(self, what: str, *, where: str = "", why: str = "", do: str = "", code: str = "FG900") -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.do, self.code = what, where, why, do, code
        # What was found before the error, for a result document.
        self.findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.what}"]
        for label, text in (("where", self.where), ("why", self.why), ("do", self.do)):
            if text:
                lines.append(f"  {label + ':':<6} {text}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, str]:
        """The error as the `error` part of a result document."""
        return {"code": self.code, "what": self.what, "where": self.where, "why": self.why, "do": self.do}


class UnmetError(Fp8GraphError):
    """The work ran to its end and the answer is no."""

    status = 1


class UsageError(Fp8GraphError):
    """The call is wrong: fix the call."""

    status = 2


class InputError(Fp8GraphError):
    """A model, data, plan or path was refused: fix the input."""

    status = 3


class BackendError(Fp8GraphError):
    """A builder or runtime failed or is missing: retry elsewhere."""

    status = 4


class InternalError(Fp8GraphError):
    """Our bug: report it."""

    status = 5


class PassContractError(InternalError):
    """A pass broke a promise of its class; the message names the pass."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal that is handled like it, in work that has left something to go on from.

    what, do   a sentence each; `files` is what was left
    """

    def __init__(self, what: str, *, do: str, files: tuple[WrittenFile, ...] = ()) -> None:
        super().__init__(what)
        self.what, self.do, self.files = what, do, files
