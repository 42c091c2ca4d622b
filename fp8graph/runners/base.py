"""What a runner is: something that maps feeds to outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Feeds = Mapping[str, np.ndarray[Any, Any]]
Outputs = dict[str, np.ndarray[Any, Any]]


class Runner(Protocol):
    """Runs one model. `run` may be called from several threads at once."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""

    def run(self, feeds: Feeds) -> Outputs:
        """Arrays by output name for arrays by input name. Raises BackendError where the runtime refuses."""
