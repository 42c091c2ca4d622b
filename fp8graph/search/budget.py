"""The plan with the most low-precision arithmetic that holds an accuracy, in few full evaluations.

1. All units quantized. If that holds, there is nothing to search.
2. The units in the order of cost over worth: the first of them cost much accuracy for little arithmetic.
3. How many of the first to keep: bisection over full evaluations, begun where the costs, which nearly add up, and
   the noise that was measured say that it holds.
4. Giving back: what the noise leaves room for is quantized again, the most arithmetic first; halved where the
   evaluation does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fp8graph.search.units import Unit

# Places of units that are kept.
Kept = frozenset[int]
_BACK = 8  # evaluations for giving back, at most


@dataclass(frozen=True)
class Step:
    """One full evaluation: what was kept, its value by the metric, and the part of the arithmetic that is left."""

    kept: Kept
    value: float
    worth: float


@dataclass
class Budget:
    """A search over plans of `units`.

    judge   the value of the plan that keeps some of the units, more for better
    goal    the least value that holds
    noise   turns a value into what costs are measured in, which add up (`10 ** (-dB / 10)`); None where nothing does
    told    hears of each evaluation
    """

    units: Sequence[Unit]
    judge: Callable[[Kept], float]
    goal: float
    noise: Callable[[float], float] | None = None
    told: Callable[[Step], None] = lambda step: None
    steps: list[Step] = field(default_factory=list)

    @property
    def order(self) -> list[int]:
        """Places of the units, those to keep first: the most cost for the least worth."""
        least = min((unit.worth for unit in self.units if unit.worth > 0), default=1.0)

        def rate(place: int) -> float:
            unit = self.units[place]
            return unit.cost / max(unit.worth, least / 2)

        return sorted(range(len(self.units)), key=lambda place: (-rate(place), place))

    def worth(self, kept: Kept) -> float:
        """The part of the arithmetic that is left in low precision."""
        return math.fsum(unit.worth for place, unit in enumerate(self.units) if place not in kept)

    def found(self) -> Step | None:
        """The best plan that holds the goal; None where none does. Ties go to fewer kept units."""
        return max(
            (step for step in self.steps if step.value >= self.goal),
            key=lambda step: (step.worth, -len(step.kept)),
            default=None,
        )

    def best(self) -> Step:
        """The most accurate plan that was seen."""
        return max(self.steps, key=lambda step: step.value)

    def try_(self, kept: Kept) -> Step:
        """One evaluation; what was seen before is not evaluated again."""
        seen = next((step for step in self.steps if step.kept == kept), None)
        if seen is None:
            seen = Step(kept, self.judge(kept), self.worth(kept))
            self.steps.append(seen)
            self.told(seen)
        return seen

    def search(self) -> Step | None:
        """Runs the search; None where keeping every unit does not hold the goal either."""
        if self._holds(frozenset()):
            return self.found()
        order = self.order
        least = self._least(order)
        if least is None:
            return None
        self._give_back(frozenset(order[:least]))
        return self.found()

    def curve(self, points: int) -> list[Step]:
        """Evaluates the plans along the order, evenly spread, and returns all that were seen, by their worth."""
        order = self.order
        wanted = {round(place * len(order) / max(points - 1, 1)) for place in range(points)}
        for number in sorted(wanted):
            self.try_(frozenset(order[:number]))
        return sorted(self.steps, key=lambda step: (-step.worth, -step.value))

    def _holds(self, kept: Kept) -> bool:
        return self.try_(kept).value >= self.goal

    def _least(self, order: Sequence[int]) -> int | None:
        """The fewest of the first units to keep; None where keeping all is not enough."""
        bad, good = 0, len(order)
        checked = False
        while good - bad > 1:
            guess = min(max(self._guess(order, bad), bad + 1), good - 1)
            if self._holds(frozenset(order[:guess])):
                good, checked = guess, True
            else:
                bad = guess
                if not checked and 2 * guess > len(order):  # most are kept and it does not hold: is there any?
                    checked = True
                    if not self._holds(frozenset(order)):
                        return None
        return good if checked or self._holds(frozenset(order)) else None

    def _guess(self, order: Sequence[int], bad: int) -> int:
        """Where the goal is held as the costs have it, scaled to the noise measured last; else the middle."""
        good = min((len(step.kept) for step in self.steps if step.value >= self.goal), default=len(order))
        middle = (bad + good) // 2
        if self.noise is None:
            return middle
        left = self._left(frozenset(order[:bad]))
        measured = self.noise(self.try_(frozenset(order[:bad])).value)
        wanted = self.noise(self.goal)
        if not (0 < left < math.inf and 0 < measured < math.inf):
            return middle
        for number in range(bad + 1, good):
            if measured * self._left(frozenset(order[:number])) / left <= wanted:
                return number
        # The costs say that more is to be kept than is known to do: they are wrong here.
        return middle

    def _left(self, kept: Kept) -> float:
        """The costs of what is quantized, added up."""
        return math.fsum(unit.cost for place, unit in enumerate(self.units) if place not in kept)

    def _give_back(self, kept: Kept) -> None:
        """Quantizes again what there is room for."""
        budget = _BACK
        refused: set[Kept] = set()
        while budget > 0 and kept:
            chosen = self._room(kept, refused)
            while chosen and budget > 0:
                budget -= 1
                if self._holds(kept - chosen):
                    kept = kept - chosen
                    break
                refused.add(chosen)
                ranked = sorted(chosen, key=lambda place: (self.units[place].cost, place))
                chosen = frozenset(ranked[: len(ranked) // 2])
            else:
                return

    def _room(self, kept: Kept, refused: set[Kept]) -> Kept:
        """What fits into the noise that is left; one unit at least, as long as one was not refused."""
        tried = {place for item in refused if len(item) == 1 for place in item}
        open_ = [place for place in kept if place not in tried]
        ranked = sorted(open_, key=lambda place: (-self.units[place].worth / (self.units[place].cost + 1e-300), place))
        if self.noise is None:
            return frozenset(ranked[:1])
        measured, left = self.noise(self.try_(kept).value), self._left(kept)
        room = self.noise(self.goal) - measured
        scale = measured / left if left > 0 and math.isfinite(measured) else 1.0
        chosen: list[int] = []
        for place in ranked:
            if self.units[place].cost * scale <= room:
                room -= self.units[place].cost * scale
                chosen.append(place)
        found = frozenset(chosen)
        return found if found and found not in refused else frozenset()
