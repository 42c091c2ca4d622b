"""How data is read and run: what `optimize`, `calibrate` and `compare` have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import Samples, open_samples
from fp8graph.flow import asked
from fp8graph.runners.providers import resolved


@dataclass(frozen=True)
class Reading:
    """How data is read: `samples` feeds at most, of `batch` where the model leaves it open; `seed` for random data.

    libraries     hold the model's own operators for ONNX Runtime
    val_range     of random data: least and largest value by input, the empty name for all others
    input_shapes  of random data, by input
    providers     of ONNX Runtime, as `runners.providers` reads them
    """

    samples: int | None = None
    batch: int | None = None
    seed: int = 0
    libraries: tuple[str, ...] = ()
    val_range: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    providers: tuple[str, ...] = ()

    @staticmethod
    def of(
        samples: Any,
        batch: Any,
        seed: Any,
        libraries: Any,
        val_range: Any = None,
        input_shapes: Any = None,
        providers: Any = None,
    ) -> Reading:
        """The same from what a caller gave.

        Raises UsageError FG100, FG101 and BackendError FG505 for providers that are unknown or missing.
        """
        named = asked.texts(providers, "providers") or ()
        resolved(named)
        return Reading(
            asked.whole(samples, "samples"),
            asked.whole(batch, "batch"),
            asked.whole(seed, "seed", least=0) or 0,
            asked.files(libraries, "custom_ops"),
            asked.value_ranges(val_range),
            asked.sizes(input_shapes, "input_shapes"),
            named,
        )

    def options(self) -> dict[str, Any]:
        """What only says how data is read, by option."""
        return {
            "--samples": self.samples,
            "--batch": self.batch,
            "--val-range": dict(self.val_range) or None,
            "--input-shapes": dict(self.input_shapes) or None,
        }

    def open(self, data: Any, model: ir.Model, notes: Notes) -> Samples:
        """The samples of `data`. Raises as `open_samples` does."""
        return open_samples(
            data,
            model,
            notes,
            samples=self.samples,
            batch=self.batch,
            seed=self.seed,
            val_range=self.val_range,
            input_shapes=self.input_shapes,
        )
