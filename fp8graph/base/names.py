"""Names that people type: globs over ops, and the nearest name for a typo."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None where none is near."""
    import difflib  # only for messages

    names = sorted(known)
    for other in names:
        if other.casefold() == name.casefold():
            return other
    close = difflib.get_close_matches(name, names, n=8, cutoff=0.5)
    if not close:
        return None

    def like(other: str) -> tuple[float, int]:
        """How alike it is; of two equally alike the one that begins alike."""
        pairs = enumerate(zip(name, other, strict=False))
        begins = next((place for place, (a, b) in pairs if a != b), min(len(name), len(other)))
        return difflib.SequenceMatcher(None, other, name).ratio(), begins

    return max(close, key=like)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence for the `do` of an error: the nearest name, or the list of names."""
    names = sorted(known)
    near = nearest(name, names)
    if near:
        return f"did you mean '{near}'?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown}" if names else "there is none to choose from"


class OpPattern:
    """One pattern that selects ops: a glob on key or node name; `key:`, `name:`, `type:`, `re:` narrow it.

    A glob's `*` also crosses `/`. `re:` must match the whole key or the whole name. Raises ValueError for a broken
    regular expression.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        kind, _, rest = text.partition(":")
        self.kind, self.body = (kind, rest) if kind in ("key", "name", "type", "re") and rest else ("", text)
        try:
            self.regex = re.compile(self.body if self.kind == "re" else fnmatch.translate(self.body))
        except re.error as error:
            raise ValueError(f"'{self.body}' is no regular expression: {error}") from error

    def matches(self, key: str, name: str, op_type: str) -> bool:
        """Whether the op with this key, node name and operator type is selected."""
        if self.kind == "type":
            return self.body == op_type
        candidates = {"key": (key,), "name": (name,)}.get(self.kind, (key, name))
        if self.kind != "re" and self.body in candidates:  # a name with brackets in it is no glob
            return True
        return any(self.regex.fullmatch(candidate) for candidate in candidates if candidate)
