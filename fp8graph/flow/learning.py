"""What repairs learn from: moments of operands, in the model as it is quantized so far and as it came."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.base.findings import Notes
from fp8graph.base.progress import SILENT
from fp8graph.calibrate.samples import Samples
from fp8graph.calibrate.stepping import Steps, each
from fp8graph.core import stages
from fp8graph.core.context import Context
from fp8graph.core.pipeline import Pipeline
from fp8graph.core.products import Product, product_of
from fp8graph.core.terms import joined
from fp8graph.data.plan import OpKey, Plan, Quant
from fp8graph.flow.feeding import Reading
from fp8graph.graph import walk
from fp8graph.graph.stages import Normalized
from fp8graph.numerics import sidecar
from fp8graph.numerics.moments import MOST_ROWS, Moments

Array = np.ndarray[Any, Any]
# Samples that repairs learn from at most, and rows of an operand: of more they learn little more.
MOST_SAMPLES, ROWS, ROWS_A_COLUMN = 256, 32768, 4
# Steps of the whole numbers up to the largest value of an operand.
_STEPS = float(448 * 512)


@dataclass(frozen=True)
class _Tap:
    """Where one op's operand is seen: the tensors' names in both models; `channels`: those in two terms."""

    product: Product
    original: str
    planned: str
    unit: float
    columns: int
    channels: Array | None
    axis: int


class Learning:
    """Observes one model for repairs, op after op. A new one is made for each plan."""

    def __init__(
        self, normalized: Normalized, pipeline: Pipeline, ctx: Context, feeds: Samples, reading: Reading
    ) -> None:
        self._normalized, self._pipeline, self._ctx = normalized, pipeline, ctx
        samples = [dict(feed) for feed in islice(feeds, MOST_SAMPLES)]
        how = reading.libraries, reading.providers
        self._original, self._planned = Steps(list(samples), *how), Steps(list(samples), *how)
        self._count = len(samples)

    def __call__(self, plan: Plan, ops: Sequence[OpKey], later: Sequence[OpKey]) -> Mapping[OpKey, Moments]:
        """Moments of the constant products among `ops`, of those whose operand has a range."""
        original, planned = self._normalized.model.clone(), self._quantized(plan)
        nodes = {place.key: place.node for place in walk.walk(original) if place.key}
        others = {place.key: place.node for place in walk.walk(planned) if place.key}
        taps = {key: tap for key in ops if (tap := self._tap(key, nodes[key], others.get(key), plan)) is not None}
        behind = [tap for key in later if (tap := self._tap(key, nodes[key], others.get(key), plan)) is not None]
        self._original.prepare(original, [tap.original for tap in taps.values()], [tap.original for tap in behind])
        self._planned.prepare(planned, [tap.planned for tap in taps.values()], [tap.planned for tap in behind])
        quota = {key: _quota(tap.columns, self._count) for key, tap in taps.items()}

        def one(index: int) -> dict[OpKey, Moments]:
            before, now = self._original.run(index), self._planned.run(index)
            return {key: _seen(tap, before[tap.original], now[tap.planned], quota[key]) for key, tap in taps.items()}

        found: dict[OpKey, Moments] = {}
        for part in each(self._count, one):
            for key, moments in part.items():
                found[key] = found[key].merge(moments) if key in found else moments
        return found

    def _quantized(self, plan: Plan) -> ir.Model:
        ctx = replace(self._ctx, plan=plan, facts=None, notes=Notes(), progress=SILENT)
        copy = Normalized(self._normalized.model.clone(), self._normalized.source, self._normalized.structure)
        return stages.quantize(copy, self._pipeline, ctx).model

    def _tap(self, key: OpKey, node: ir.Node, other: ir.Node | None, plan: Plan) -> _Tap | None:
        product, decision = product_of(node), plan.ops[key]
        if product is None or other is None or other.op_type != node.op_type:
            return None
        original, weight = node.inputs[product.activation], node.inputs[product.weight]
        assert original is not None and weight is not None and weight.shape is not None
        unit = self._unit(decision.inputs.get(product.activation), original.name or "")
        if unit is None:
            return None
        held = (item for item in decision.adjust if item.kind == "terms" and item.slot == product.activation)
        terms = next((sidecar.fetch(plan.arrays, item.value) for item in held), None)
        shape = tuple(int(str(size)) for size in weight.shape)
        columns = math.prod(shape) // shape[product.out]
        axis = product.window.axis
        return _Tap(product, original.name or "", _read(other, product), unit, columns, terms, axis)

    def _unit(self, quant: Quant | None, name: str) -> float | None:
        """One step of the whole numbers in which an operand is counted; None where nothing is known of its range."""
        if quant is not None and quant.scale.value is not None:
            amax = quant.scale.value * float(formats.get(quant.format).max)
        else:
            stat = self._ctx.ranges.values.get(name) if self._ctx.ranges is not None else None
            amax = (stat.amax or 0.0) if stat is not None else 0.0
        return amax / _STEPS if amax > 0 else None


def _read(node: ir.Node, product: Product | None) -> str:
    value = node.inputs[product.activation] if product is not None else None
    return (value.name or "") if value is not None else ""


def _quota(columns: int, samples: int) -> int:
    """Rows that each sample may give."""
    return min(MOST_ROWS, max(1, math.ceil(max(ROWS, ROWS_A_COLUMN * columns) / max(1, samples))))


def _seen(tap: _Tap, original: Array, planned: Array, quota: int) -> Moments:
    """Moments of one sample; where it has more rows than the quota, of rows spread evenly."""
    if tap.channels is not None:
        planned = joined(planned, tap.channels, tap.axis)
    count = tap.product.window.count(original.shape)
    at = None
    if count > quota:
        at = np.linspace(0, count - 1, quota).astype(np.int64)
    window = tap.product.window
    return Moments.of(window.rows(planned, at), window.rows(original, at), tap.unit)
