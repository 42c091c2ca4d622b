"""What Ctrl-C leaves beside the output, `OUTPUT.resume`, for the same command with --resume to go on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fp8graph.base import canon
from fp8graph.base.errors import InputError, Interrupted
from fp8graph.base.files import describe, write_text
from fp8graph.data.document import check_schema, load_json, malformed

RESUME_SUFFIX = ".resume"
_VERSION = 1
T = TypeVar("T")
# What was then, and what is now, by the name of what is compared.
Both = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Leftover:
    """The file of one interrupted command; there is none where nothing is written.

    kind   of the document: `resume`, `search`, `debugging`
    what   was interrupted, for messages: `run`, `search`
    """

    output: Path | None
    kind: str
    what: str = "search"

    @property
    def file(self) -> Path | None:
        """Where it lies."""
        return None if self.output is None else self.output.with_name(self.output.name + RESUME_SUFFIX)

    @property
    def there(self) -> bool:
        """Whether an earlier command has left one."""
        return self.file is not None and self.file.exists()

    def leave(self, about: Mapping[str, Any], found: Mapping[str, Any], told: str) -> None:
        """Writes what was found, and raises Interrupted; `told` says what it is. `about`: what makes a command the
        same."""
        if self.file is None:
            return
        write_text(self.file, canon.pretty({"schema": f"fp8graph.{self.kind}/{_VERSION}", **about, **found}))
        raise Interrupted(
            f"{told} are kept in {self.file}",
            do="run the command again with --resume: it goes on behind them",
            files=(describe(self.file),),
        )

    def load(self, read: Callable[[dict[str, Any]], tuple[T, Both]]) -> T:
        """What an earlier command has found. `read` makes it of the document, with what was then and is now of each
        thing in which the two commands may differ. Raises InputError FG111 (no such file of ours), FG110 (of another
        command)."""
        assert self.file is not None
        where = str(self.file)
        document = check_schema(load_json(self.file, "what --resume goes on from"), self.kind, _VERSION, where)
        try:
            found, both = read(document)
        except (KeyError, TypeError, ValueError) as error:
            raise malformed(self.kind, where, error) from error
        other = next((name for name, (then, now) in both.items() if then != now), None)
        if other is not None:
            then, now = both[other]
            raise InputError(
                f"the {self.what} that was interrupted is not this one",
                where=where,
                why=f"{other}: {then!s:.60} then, {now!s:.60} now",
                do="give the same options as then, or leave --resume out",
                code="FG110",
            )
        return found

    def finish(self) -> None:
        """Takes away what an interrupted command has left."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)
