"""What a runner is: something that maps feeds to outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fp8graph.base.errors import BackendError

Feeds = Mapping[str, np.ndarray[Any, Any]]
Outputs = dict[str, np.ndarray[Any, Any]]


class Runner(Protocol):
    """Runs one model. `run` may be called from several threads at once."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""

    def run(self, feeds: Feeds) -> Outputs:
        """Arrays by output name for arrays by input name. Raises BackendError where the runtime refuses."""


def unusable(package: str, extra: str, error: Exception) -> BackendError:
    """The error for a runtime's package whose import failed: one that is half there raises whatever it likes."""
    return BackendError(
        f"{package} is not usable here",
        why=f"{type(error).__name__}: {error}".partition("\n")[0],
        do=f"pip install 'fp8graph[{extra}]'; python -m fp8graph doctor says more",
        code="FG505",
    )
