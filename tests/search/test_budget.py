"""The search for the plan with the most low-precision arithmetic, on costs without models."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from fp8graph.search.budget import Budget
from fp8graph.search.units import Unit


def noise(value: float) -> float:
    return 10 ** (-value / 10)


def problem(seed: int):
    """Units whose costs were measured with an error of 1.5 dB, and what plans of them are really worth."""
    rng = random.Random(seed)
    number = rng.randint(1, 10)
    true = [10 ** rng.uniform(-5, -2) for _ in range(number)]
    units = [
        Unit((str(place),), cost * 10 ** rng.uniform(-0.15, 0.15), rng.uniform(0.1, 1) / number)
        for place, cost in enumerate(true)
    ]

    def value(kept: frozenset[int]) -> float:
        return -10 * math.log10(sum(cost for place, cost in enumerate(true) if place not in kept) + 1e-9)

    return units, value, rng.uniform(15, 45)


@pytest.mark.parametrize("seed", range(60))
def test_it_holds_the_goal_with_nearly_all_the_arithmetic_that_can_in_few_evaluations(seed):
    units, value, goal = problem(seed)
    budget = Budget(units, value, goal, noise)
    found = budget.search()
    assert found is not None and found.value >= goal and found.value == value(found.kept)
    sets = [
        frozenset(kept) for size in range(len(units) + 1) for kept in itertools.combinations(range(len(units)), size)
    ]
    best = max(budget.worth(kept) for kept in sets if value(kept) >= goal)
    assert budget.worth(found.kept) >= best - 0.25 * budget.worth(frozenset())
    assert len(budget.steps) <= 12


@pytest.mark.parametrize("measure", [noise, None], ids=["adds up", "does not"])
def test_nothing_is_kept_where_everything_holds_and_none_is_found_where_nothing_does(measure):
    units = [Unit((str(place),), 1e-3, 0.5) for place in range(2)]
    easy = Budget(units, lambda kept: 30.0, 20.0, measure)
    assert easy.search() is not None and len(easy.steps) == 1 and easy.steps[0].kept == frozenset()
    hard = Budget(units, lambda kept: 10.0 + len(kept), 20.0, measure)
    assert hard.search() is None and hard.best().value == 12.0


def test_without_a_measure_that_adds_up_it_bisects():
    units = [Unit((str(place),), 2.0**-place, 1 / 64) for place in range(64)]
    budget = Budget(units, lambda kept: float(kept >= set(range(5))), 1.0)
    found = budget.search()
    assert found is not None and found.kept == frozenset(range(5))
    assert len(budget.steps) <= 20


def test_what_costs_much_for_little_arithmetic_is_kept_first():
    units = [Unit(("dear",), 1e-3, 0.9), Unit(("small",), 1e-3, 0.01), Unit(("fine",), 1e-6, 0.09)]
    assert Budget(units, lambda kept: 0.0, 0.0).order == [1, 0, 2]


def test_the_curve_holds_every_plan_once_those_with_the_most_arithmetic_first():
    units, value, goal = problem(3)
    budget = Budget(units, value, goal, noise)
    budget.search()
    steps = budget.curve(17)
    assert len({step.kept for step in steps}) == len(steps) >= len(units) + 1
    assert [step.worth for step in steps] == sorted((step.worth for step in steps), reverse=True)
