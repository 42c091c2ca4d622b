"""The smallest set of things that has to stay for something to be good, found by asking whether sets are.

Knows nothing of models: things are numbers, in an order that says which are kept first. What is returned was asked and
found good. That none of it can be let go holds for questions that are monotone: what is good stays good where more is
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

Mode = Literal["bisect", "linear"]
# Whether it is good where these things are kept.
Ask = Callable[[frozenset[int]], bool]


def smallest(order: Sequence[int], ask: Ask, mode: Mode = "bisect") -> list[int]:
    """Things none of which can be let go; keeping everything has to be good, keeping nothing bad.

    The shortest good beginning of `order` ends in one that has to stay; what stands before it is shortened from its end
    in the same way, until those that were found are good alone.

    `bisect` halves: about 2 log2(n) questions for each thing that is found, about one where all have to stay.
    `linear` goes one by one, about 2 n questions, and fits questions whose answers are not monotone.
    """
    found: list[int] = []
    kept = list(order)  # with `found` it is good
    first = True
    while kept:
        length = _shortest(found, kept, ask, mode, first)
        if length == 0:
            break
        found.append(kept[length - 1])
        kept = kept[: length - 1]
        first = False
    return sorted(found, key=list(order).index)


def _shortest(found: Sequence[int], kept: Sequence[int], ask: Ask, mode: Mode, first: bool) -> int:
    """The length of the shortest beginning of `kept` that is good together with `found`; the whole is."""

    def good(length: int) -> bool:
        return ask(frozenset([*found, *kept[:length]]))

    if mode == "linear":
        if first:
            return next((length for length in range(1, len(kept)) if good(length)), len(kept))
        return next((length + 1 for length in range(len(kept) - 1, -1, -1) if not good(length)), 0)
    bad, fine, step = 0, len(kept), 1
    if not first:  # of what has to stay, much often lies together: from the end, in growing steps
        while fine > 0:
            length = max(fine - step, 0)
            if not good(length):
                bad = length
                break
            fine, step = length, 2 * step
    while fine - bad > 1:
        middle = (fine + bad) // 2
        if good(middle):
            fine = middle
        else:
            bad = middle
    return fine
