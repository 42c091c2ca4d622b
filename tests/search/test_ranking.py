"""How many runs sensitivity spends, and what it makes of them, on costs without models."""

from __future__ import annotations

import random

import pytest

from fp8graph.search.sensitivity import AFFORDABLE, Operand, rank, spread


class Bench:
    """Operands whose costs differ by sample; counts the runs, weighted by their share of the model."""

    def __init__(self, ops: int, share: float = 1.0) -> None:
        self.operands = [
            Operand(f"op{op}", slot, f"op{op}.{slot}", bool(slot), share) for op in range(ops) for slot in (0, 1)
        ]
        self.true = {item.name: 10 ** random.Random(item.name).uniform(-6, -3) for item in self.operands}
        self.share, self.spent, self.seen = share, 0.0, set()

    def measure(self, active, chosen):
        self.spent += len(chosen) * (1 + self.share * len(active))
        self.seen |= set(chosen)
        return [sum(self._of(name, chosen) for name in names) for names in active]

    def _of(self, name: str, chosen) -> float:
        return self.true[name] * sum(random.Random(f"{name} {i}").lognormvariate(0, 0.5) for i in chosen) / len(chosen)


@pytest.mark.parametrize("samples", [64, 128, 500])
@pytest.mark.parametrize("ops", [3, 20, 50])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_it_costs_what_is_affordable_and_says_so(ops, samples, share):
    bench = Bench(ops, share)
    found = rank(bench.operands, samples, bench.measure, run_cost=2.0)
    assert bench.spent * 2.0 / samples == pytest.approx(found.spent)
    if samples * 2 >= ops + 1:
        assert found.spent <= AFFORDABLE
    assert [cost.total for cost in found.costs] == sorted((cost.total for cost in found.costs), reverse=True)
    assert sum(cost.share for cost in found.costs) == pytest.approx(1)
    assert len(found.costs) == ops


def test_with_enough_samples_every_op_is_split_and_the_order_is_the_true_one():
    bench = Bench(8)
    found = rank(bench.operands, 4000, bench.measure, run_cost=1.25)
    true = {f"op{op}": bench.true[f"op{op}.0"] + bench.true[f"op{op}.1"] for op in range(8)}
    assert [cost.key for cost in found.costs] == sorted(true, key=lambda key: -true[key])
    for cost in found.costs:
        assert cost.weight == 1 and sum(cost.parts.values()) == pytest.approx(cost.total)


def test_too_few_samples_still_measure_every_op_once():
    bench = Bench(30)
    found = rank(bench.operands, 2, bench.measure, run_cost=2.0)
    assert len(found.costs) == 30 and found.seen == 1 and found.spent > AFFORDABLE


def test_exact_measures_all_on_all_samples():
    bench = Bench(5)
    found = rank(bench.operands, 7, bench.measure, exact=True)
    assert bench.seen == set(range(7)) and found.runs == 7 * (5 + 1 + 10 + 1)
    for cost in found.costs:
        assert sum(cost.parts.values()) == pytest.approx(cost.total)


@pytest.mark.parametrize(("samples", "wanted"), [(1, 1), (10, 3), (10, 10), (128, 7)])
def test_samples_are_spread_evenly(samples, wanted):
    chosen = spread(samples, wanted)
    assert len(set(chosen)) == wanted and min(chosen) >= 0 and max(chosen) < samples
