"""The search for the smallest set, on questions that are sets of numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8graph.search.bisect import smallest


class Question:
    """Good where all of `needed` are kept; counts what was asked."""

    def __init__(self, needed):
        self.needed, self.asked = frozenset(needed), []

    def __call__(self, kept):
        self.asked.append(kept)
        return self.needed <= kept


@pytest.mark.parametrize("mode", ["bisect", "linear"])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("needed", [{0}, {63}, {31}, {5, 6, 7}, {0, 63}, set(range(64)), set(range(0, 64, 7))])
def test_exactly_what_is_needed_is_found(mode, direction, needed):
    question = Question(needed)
    assert smallest(list(range(64))[::direction], question, mode) == sorted(needed, reverse=direction < 0)
    assert len(question.asked) == len(set(question.asked)), "no question twice"


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_the_number_of_questions_is_bounded(case):
    count, needed = case
    question = Question(needed)
    assert set(smallest(range(count), question)) == needed
    each = 2 * math.ceil(math.log2(count + 1)) + 1
    assert len(question.asked) <= len(needed) * each + each


def test_one_culprit_among_a_thousand_takes_about_twenty_questions():
    question = Question({412})
    assert smallest(range(1000), question) == [412]
    assert len(question.asked) <= 20


def test_where_all_are_needed_it_takes_little_more_than_one_question_each():
    question = Question(range(100))
    assert len(smallest(range(100), question)) == 100
    assert len(question.asked) <= 110


def test_of_several_sets_that_are_good_the_order_says_which_is_found():
    def good(kept):
        return 2 in kept or 7 in kept

    assert smallest(range(10), good) == [2]
    assert smallest(range(9, -1, -1), good) == [7]


@pytest.mark.parametrize("mode", ["bisect", "linear"])
@given(answers=st.dictionaries(st.frozensets(st.integers(0, 5)), st.booleans()))
def test_what_is_found_was_found_good_even_where_answers_make_no_sense(mode, answers):
    asked = {frozenset(range(6)): True, frozenset(): False}

    def good(kept):
        return asked.setdefault(kept, answers.get(kept, False))

    assert asked[frozenset(smallest(range(6), good, mode))]
