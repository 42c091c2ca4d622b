"""`compare --layers`: two models on disk or in memory, made comparable layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fp8graph import formats
from fp8graph.base.errors import Fp8GraphError, UsageError
from fp8graph.base.progress import Progress
from fp8graph.calibrate.samples import Samples
from fp8graph.compare.layers import compare_layers
from fp8graph.core import stages
from fp8graph.core.options import Options
from fp8graph.data.comparison import LayerErrors
from fp8graph.data.plan import PLAN_SUFFIX
from fp8graph.flow.feeding import Reading
from fp8graph.flow.job import Job
from fp8graph.graph import tensors, walk
from fp8graph.graph.load import load

log = logging.getLogger(__name__)


def check(sides: Sequence[tuple[Any, str]], stored: Path | None, *, engines: Sequence[Any]) -> None:
    """Raises UsageError FG100 where the sides are not two models in the reference: what a runtime fuses hides the
    tensors between layers."""
    why = "--load-outputs holds outputs, and no tensors between layers" if stored is not None else ""
    why = why or ("" if len(sides) == 2 else "there is one model")
    why = why or (
        f"{Path(engines[0]).name} is an engine, which hides the tensors between its layers" if engines else ""
    )
    other = next((runner for _, runner in sides if runner not in ("", "reference")), "")
    why = why or (f"@{other} is asked for, and layers are measured in the reference" if other else "")
    if why:
        raise UsageError(
            "--layers needs two models, which the reference runs",
            where="--layers",
            why=why,
            do="python -m fp8graph compare A.onnx B.onnx --data FILE --layers",
            code="FG100",
        )


def measured(models: Sequence[Any], how: Reading, feeds: Samples, progress: Progress) -> LayerErrors:
    """The error of each layer that both models have. Raises as `compare_layers` does."""
    a, b = models
    before = _as_planned(a, b, how.libraries) or load(a).model
    count, libraries, providers = feeds.count, how.libraries, how.providers
    after = load(b).model
    return compare_layers(
        before, after, feeds, count=count, libraries=libraries, providers=providers, progress=progress
    )


def _as_planned(a: Any, b: Any, libraries: tuple[str, ...]) -> ir.Model | None:
    """A in the form that was quantized, where the plan beside B was made for A: a fold (BatchNormalization, a scale of
    attention) changes what a tensor holds, and no error of a layer is to come from that.

    None where there is no such plan, or A holds codes itself, which that form takes off the graph.
    """
    beside = Path(b).with_name(Path(b).name + PLAN_SUFFIX) if isinstance(b, (str, Path)) else None
    if beside is None or not beside.is_file() or _coded(load(a).model):
        return None
    try:
        job = Job(Options(), None, Reading(libraries=libraries))
        job.open(a, None, None, beside, None, None)
        assert job.given is not None
        stages.fits(job.given, job.normalized)
    except Fp8GraphError as error:
        log.info("the plan beside B was not made for A: layers go together by name alone (%s)", error.why)
        return None
    return job.moved(job.given).model


def _coded(model: ir.Model) -> bool:
    every = [value.dtype for _, graph in walk.graphs(model) for value in walk.values(graph)]
    ops = {place.node.op_type.lower() for place in walk.walk(model)}
    low = any(formats.family(tensors.word(dtype)).startswith("fp") for dtype in every)
    return low or any(op.endswith("quantizelinear") for op in ops)
