"""What one code is."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

_WIDTH = 96


@dataclass(frozen=True)
class Code:
    """One code with its page: a title, what it means, why it matters and what to do. All are plain sentences."""

    code: str
    title: str
    means: str
    why: str
    do: str

    @property
    def page(self) -> str:
        """The page as text: a heading and three short paragraphs."""
        parts = [f"{self.code}  {self.title}"]
        for label, text in (("what it means", self.means), ("why it matters", self.why), ("what to do", self.do)):
            body = textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
            parts.append(label + "\n" + "\n".join(f"  {line}" for line in body))
        return "\n\n".join(parts)

    def to_json(self) -> dict[str, str]:
        """The code as a part of a result document."""
        return {"code": self.code, "title": self.title, "means": self.means, "why": self.why, "do": self.do}
