"""Both sample models optimized once, for the tests that only look at what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import fp8graph
from fp8graph.flow import Optimized
from tests.small import sha


@dataclass(frozen=True)
class Made:
    """One run of `optimize`: the model it was given, what was written where, and what was returned."""

    name: str
    source: Path
    before: str
    out: Path
    done: Optimized

    @property
    def plan(self) -> Path:
        """The plan's file."""
        return self.out.with_name(self.out.name + ".plan.json")


@pytest.fixture(scope="session")
def made(sample: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The sample model in FP8 by the default recipe, for `tensorrt-rtx:sm89`."""
    out = tmp_path_factory.mktemp(sample.stem) / "out.onnx"
    before = sha(sample)
    done = fp8graph.optimize(sample, output=out, target="tensorrt-rtx:sm89", data=calibration)
    return Made(sample.stem, sample, before, out, done)
