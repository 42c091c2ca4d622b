"""What repairs learn from: moments of operands, in the model as it is quantized so far and as it came."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
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
from fp8graph.core.renewing import renew
from fp8graph.core.terms import joined
from fp8graph.data.plan import OpKey, Plan, Quant
from fp8graph.flow.feeding import Reading
from fp8graph.graph import tensors, walk
from fp8graph.graph.stages import Normalized
from fp8graph.numerics import sidecar
from fp8graph.numerics.moments import MOST_ROWS, Moments, beside
from fp8graph.numerics.ranges import Ranges

Array = np.ndarray[Any, Any]
# Rows of an operand for each of its columns at least: of fewer little is learned.
ROWS_A_COLUMN = 4
# One of so many samples tells whether what was learned from the others holds.
_HELD_BACK = 4
# Rows that are multiplied at once: measured for K = 576, 128 at a time take four times as long.
_JOINED = 4096
# Tensors that are held at once at most, as a guess; of the original and of the quantized model; bytes of an element.
_AT_ONCE, _MODELS, _FLOAT = 3, 2, 4
# Samples where nothing is known of their tensors' sizes.
_UNKNOWN = 16
# Steps of the whole numbers up to the largest value of an operand.
_STEPS = float(448 * 512)


@dataclass(frozen=True)
class Effort:
    """How much learning may take. It is counted, not clocked: the same input gives the same plan on every machine.

    samples   that are learned from at most
    judged    samples held back at most, which tell whether repairs have helped
    rows      of each operand at most, where `ROWS_A_COLUMN` for each of its columns are fewer
    work      multiply-accumulates that moments and solving may take for the whole model, by an estimate
    bytes     that tensors of all samples may hold between two pieces of the model, by an estimate
    nodes     that may be gone through: those of the model for each op that is learned for
    weights   that the model's products may hold: of a large model learning is seldom done in a few seconds
    """

    samples: int
    judged: int
    rows: int
    work: float = math.inf
    bytes: float = math.inf
    nodes: float = math.inf
    weights: float = math.inf

    def samples_of(self, ranges: Ranges | None) -> int:
        """How many samples are learned from: four at least, so that one can be held back."""
        if self.bytes == math.inf:
            return self.samples
        if ranges is None:  # nothing is known of sizes
            return min(self.samples, _UNKNOWN)
        largest = sorted(stat.count for stat in ranges.values.values())[-_AT_ONCE:]
        each = _MODELS * _FLOAT * sum(largest) / max(ranges.samples, 1)
        return max(_HELD_BACK, min(self.samples, int(self.bytes / max(each, 1.0))))

    def left_out(self, model: ir.Model, plan: Plan) -> set[OpKey]:
        """Ops of the main graph that learning of all would take too long with: those that take the longest."""
        costs: list[tuple[float, OpKey]] = []
        weights = 0
        for place in walk.walk(model):
            product = product_of(place.node) if not place.scope else None
            decision = plan.ops.get(place.key)
            if product is not None and decision is not None and decision.do == "quantize":
                shape = tensors.dims(place.node.inputs[product.weight])
                sizes = [size or 1 for size in shape or (1,)]
                channels, groups = sizes[product.out], product.window.groups
                columns = math.prod(sizes) // channels
                weights += channels * columns
                sums = 2.0 * _rows(self.rows, columns) * columns**2
                costs.append((groups * (sums + 6.0 * columns**3) + 8.0 * channels * columns**2, place.key))
        costs.sort()
        if weights > self.weights or len(costs) * sum(1 for _ in walk.walk(model)) > self.nodes:
            return {key for _, key in costs}
        total = list(accumulate(cost for cost, _ in costs))
        return {key for sofar, (_, key) in zip(total, costs, strict=True) if sofar > self.work}


# Of more than FULL little more is learned. LIGHT takes some seconds, about as long as calibrating a CNN.
FULL, LIGHT = Effort(256, 128, 32768), Effort(64, 32, 8192, 1e11, 2**28, 1e5, 2**24)


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
        self,
        normalized: Normalized,
        pipeline: Pipeline,
        ctx: Context,
        feeds: Samples,
        reading: Reading,
        effort: Effort = FULL,
        left_out: Container[OpKey] = frozenset(),
    ) -> None:
        self._normalized, self._pipeline, self._ctx = normalized, pipeline, ctx
        self._rows, self._left_out = effort.rows, left_out
        samples = [dict(feed) for feed in feeds.first(effort.samples_of(ctx.ranges))]
        how = reading.libraries, reading.providers
        self._original, self._planned = Steps(list(samples), *how), Steps(list(samples), *how)
        self._count = len(samples)
        self._carried: tuple[Plan, ir.Model] | None = None

    def __call__(self, plan: Plan, ops: Sequence[OpKey], later: Sequence[OpKey]) -> Mapping[OpKey, Moments]:
        """Moments of the constant products among `ops`, of those whose operand has a range."""
        ops, later = ([key for key in keys if key not in self._left_out] for keys in (ops, later))
        if not ops:
            return {}
        original = self._normalized.model.clone()
        nodes = {place.key: place.node for place in walk.walk(original) if place.key}
        planned = self._quantized(plan, nodes)
        others = {place.key: place.node for place in walk.walk(planned) if place.key}
        taps = {key: tap for key in ops if (tap := self._tap(key, nodes[key], others.get(key), plan)) is not None}
        behind = [tap for key in later if (tap := self._tap(key, nodes[key], others.get(key), plan)) is not None]
        self._original.prepare(original, [tap.original for tap in taps.values()], [tap.original for tap in behind])
        self._planned.prepare(planned, [tap.planned for tap in taps.values()], [tap.planned for tap in behind])
        quota = {key: self._quota(tap.columns) for key, tap in taps.items()}

        def one(index: int) -> dict[OpKey, tuple[Array, Array]]:
            before, now = self._original.run(index), self._planned.run(index)
            return {key: _seen(tap, before[tap.original], now[tap.planned], quota[key]) for key, tap in taps.items()}

        sums = {key: (_Sum(tap.unit), _Sum(tap.unit)) for key, tap in taps.items()}
        for index, part in enumerate(each(self._count, one)):
            for key, rows in part.items():
                sums[key][index % _HELD_BACK == _HELD_BACK - 1].add(*rows)
        found = {key: (learned.moments(), held.moments()) for key, (learned, held) in sums.items()}
        return {key: beside(*pair) for key, pair in found.items() if pair[0] is not None}

    def _quantized(self, plan: Plan, nodes: Mapping[OpKey, ir.Node]) -> ir.Model:
        if self._carried is None or not renew(self._carried[1], self._carried[0], plan, nodes):
            ctx = replace(self._ctx, plan=plan, facts=None, notes=Notes(), progress=SILENT)
            copy = replace(self._normalized, model=self._normalized.model.clone())
            # Legalized: only then is a model in fp16 one that runs.
            model = stages.legalize(stages.quantize(copy, self._pipeline, ctx), self._pipeline, ctx).model
        else:
            model = self._carried[1]
        self._carried = plan, model
        return model.clone()

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

    def _quota(self, columns: int) -> int:
        """Rows that each sample may give."""
        return min(MOST_ROWS, max(1, math.ceil(_rows(self._rows, columns) / max(1, self._count))))

    def _unit(self, quant: Quant | None, name: str) -> float | None:
        """One step of the whole numbers in which an operand is counted; None where nothing is known of its range."""
        if quant is not None and quant.scale.value is not None:
            amax = quant.scale.value * float(formats.get(quant.format).max)
        else:
            stat = self._ctx.ranges.values.get(name) if self._ctx.ranges is not None else None
            amax = (stat.amax or 0.0) if stat is not None else 0.0
        return amax / _STEPS if 0 < amax < math.inf else None


def _read(node: ir.Node, product: Product | None) -> str:
    value = node.inputs[product.activation] if product is not None else None
    return (value.name or "") if value is not None else ""


def _rows(rows: int, columns: int) -> int:
    return max(rows, ROWS_A_COLUMN * columns)


class _Sum:
    """Moments of one operand, of rows as they come."""

    def __init__(self, unit: float) -> None:
        self._unit = unit
        self._waiting: list[tuple[Array, Array]] = []
        self._total: Moments | None = None
        self._finite = True

    def add(self, planned: Array, original: Array) -> None:
        """Rows [groups, rows, K] of one sample."""
        if sum(part.shape[1] for part, _ in self._waiting) + planned.shape[1] > _JOINED:
            self._join()
        self._waiting.append((planned, original))

    def moments(self) -> Moments | None:
        """Those of all rows; None where there was none, or one holds a NaN or an infinity."""
        self._join()
        return self._total if self._finite else None

    def _join(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting or not self._finite:
            return
        planned, original = (np.concatenate(side, axis=1) for side in zip(*waiting, strict=True))
        try:
            part = Moments.of(planned, original, self._unit)
        except ValueError:
            self._finite = False
            return
        self._total = part if self._total is None else self._total.merge(part)


def _seen(tap: _Tap, original: Array, planned: Array, quota: int) -> tuple[Array, Array]:
    """Rows of one sample, planned and original; where it has more than the quota, such as are spread evenly."""
    if tap.channels is not None:
        planned = joined(planned, tap.channels, tap.axis)
    count = tap.product.window.count(original.shape)
    at = None
    if count > quota:
        at = np.linspace(0, count - 1, quota).astype(np.int64)
    window = tap.product.window
    return window.rows(planned, at), window.rows(original, at)
