"""How well `sensitivity` ranks operators against the true one-at-a-time ablation, and what it costs.

    python benchmarks/sensitivity.py resnet20.onnx=calib.npz minilm.onnx=calib2.npz

Prints one line of a Markdown table for each model: Spearman's rank correlation of the costs of all operators with the
ablation on all samples; that of the ablation on one half of the samples with that on the other, which is what a ranking
of the data at hand can tell at most; the cost in plain evaluations of the samples, as counted, and in seconds over
seconds with one thread, loading of models left out. Recipe fp8-full, target reference: every Conv, Gemm and MatMul.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fp8graph.core.options import Options
from fp8graph.flow.feeding import Reading
from fp8graph.flow.job import Job
from fp8graph.flow.judging import Metric
from fp8graph.flow.sensing import sense
from fp8graph.runners.reference import reference


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of the ranks of two lists without ties."""
    ranks = [np.argsort(np.argsort(np.asarray(item))) for item in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


class Seconds:
    """A progress that measures how long the runs of `sense` take: what loads models lies before them."""

    def __init__(self) -> None:
        self.taken, self._begin = 0.0, 0.0

    def start(self, what: str, total: int | None, unit: str) -> None:
        self._begin = time.perf_counter()

    def step(self, n: int = 1) -> None:
        pass

    def done(self) -> None:
        self.taken += time.perf_counter() - self._begin


def measured(model: str, data: str) -> str:
    """The row of one model."""
    job = Job(Options(), [data], Reading(), progress=Seconds())
    job.open(model, "fp8-full", "reference", None, None, None)
    plan = job.settled_plan(None, plan_only=False)
    assert job.feeds is not None
    runner, feeds = reference(Path(model)), list(job.feeds)
    runner.run(feeds[0])
    begin = time.perf_counter()
    for feed in feeds:
        runner.run(feed)
    plain = time.perf_counter() - begin
    clock = Seconds()
    job.progress = clock
    quick, _ = sense(job, plan, job.feeds, Metric(), jobs=1)
    taken = clock.taken
    halves = [sense(job, plan, job.feeds.shard(part, 2), Metric(), exact=True)[0] for part in (0, 1)]
    keys = [cost.key for cost in quick.costs]
    one, other = ([half.of(key).total for key in keys] for half in halves)
    truth = [a + b for a, b in zip(one, other, strict=True)]
    rank = spearman([cost.total for cost in quick.costs], truth)
    split = sum(len(cost.parts) > 1 for cost in quick.costs)
    return (
        f"| {Path(model).stem} | {len(keys)} | {len(feeds)} | {rank:.3f} | {spearman(one, other):.3f} | "
        f"{quick.spent:.1f} | {taken / plain:.1f} | {split} |"
    )


def main() -> int:
    """Runs all that are named."""
    if len(sys.argv) < 2 or any("=" not in pair for pair in sys.argv[1:]):
        print(__doc__)
        return 2
    print("| model | ops | samples | rank correlation | of halves | cost, counted | cost, measured | ops split |")
    print("|---|---|---|---|---|---|---|---|")
    for pair in sys.argv[1:]:
        model, _, data = pair.partition("=")
        print(measured(model, data), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
