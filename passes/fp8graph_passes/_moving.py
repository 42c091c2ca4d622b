"""Factors between a tensor and the weights that read it: what migrate-channels and equalize-channels have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fp8graph.core.channels import Group, group_of
from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Repair
from fp8graph.data.method import parse
from fp8graph.data.plan import CAME, Adjust, Decision, Quant
from fp8graph.graph import tensors, walk
from fp8graph.graph.tensors import Array
from fp8graph.numerics import migration, sidecar
from fp8graph.numerics.migration import Read
from fp8graph.numerics.ranges import Need

# Values of alpha that are tried.
_TRIED = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


@dataclass(frozen=True)
class Moving(Repair):
    """Factors for tensors that certain products read.

    alpha   how much of the spread of a tensor's channels goes into the weights, 0 to 1; -1: found for each tensor
    least   what has to be saved of the local noise, as a share
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"alpha": (-1, 1), "least": (0, 1)}
    moves: ClassVar[bool] = True

    alpha: float = -1.0
    least: float = 0.05

    @abstractmethod
    def reads(self, op: OpView) -> bool:
        """Whether the repair is for tensors that this op reads."""

    def needs(self, op: OpView, decision: Decision) -> Sequence[str | Need]:
        """The largest value by channel of an operand whose channels can be scaled."""
        group = self._group(op, decision)
        return [] if group is None else [Need(op.all_facts.qualified(group.tensor), "amax", group.axis)]

    def solve(
        self, op: OpView, decision: Decision, ctx: Context, weights: Callable[[int], Array]
    ) -> Sequence[tuple[Adjust, Array]]:
        """Factors of the op's operand, float32 powers of two [channels]: the same for all ops that read it."""
        group = self._group(op, decision)
        if group is None or ctx.plan is None:
            return []
        reader = next(item for item in group.readers if item.node is op.node)
        name = f"{op.all_facts.qualified(group.tensor)}.channels"
        array = ctx.found.get(name)
        if array is None:
            array = self._factors(op, group, ctx)
        if array is None:
            return []
        digest = sidecar.weight_digest(weights(reader.weight))
        return [(Adjust("channels", reader.slot, self.name, sidecar.reference(name, array), digest), array)]

    def _group(self, op: OpView, decision: Decision) -> Group | None:
        if not self.reads(op):
            return None
        group = group_of(op.input(0))
        quant = decision.inputs.get(0)
        return group if group is not None and quant is not None and _free(quant) else None

    def _factors(self, op: OpView, group: Group, ctx: Context) -> Array | None:
        """The best factors by the local noise of all ops that read the tensor; None where they save too little."""
        name = op.all_facts.qualified(group.tensor)
        stat = ctx.ranges.values.get(name) if ctx.ranges is not None else None
        peaks = stat.channels.get(group.axis) if stat is not None else None
        powers = ctx.powers.get(name)
        if peaks is None or powers is None or not np.isfinite(peaks.values).all() or not _made_by_channel(group, ctx):
            return None
        reads = _reads(group, ctx)
        if not reads:
            return None
        count = len(peaks.values)
        across = np.max([read.peaks(count) for read in reads], axis=0)
        plain = sum(read.lost(np.ones(count, np.float32), peaks.values, powers) for read in reads)
        found = [
            migration.factors(peaks.values, across, alpha) for alpha in (_TRIED if self.alpha < 0 else (self.alpha,))
        ]
        noises = [sum(read.lost(each, peaks.values, powers) for read in reads) for each in found]
        noise, best = min(zip(noises, found, strict=True), key=lambda item: item[0])
        if (best == 1).all() or noise > plain * (1 - self.least) or not _fit(group, best):
            return None
        saved = 10 * np.log10(plain / max(noise, 1e-300))
        ctx.note("FG242", op.key, f"channels of '{name}' scaled by powers of two: {saved:.1f} dB less noise here")
        return best


def _free(quant: Quant) -> bool:
    """Whether an operand has one scale of its own that was observed as its largest value."""
    scale, alone = quant.scale, not quant.granularity.blocks and not quant.scale.over
    return alone and scale.origin == "observed" and not parse(scale.rule).counts


def _made_by_channel(group: Group, ctx: Context) -> bool:
    """Whether no weight that is divided has a scale across the channels that it makes."""
    assert ctx.plan is not None
    mine = {spot.value for spot in group.spots}
    for value in mine:
        for node, slot in value.uses():
            op = ctx.plan.ops.get(walk.node_key(node))
            quant = op.inputs.get(slot) if op is not None else None
            if quant is not None and not quant.granularity.blocks:
                return False
    return True


def _reads(group: Group, ctx: Context) -> list[Read]:
    """The quantized ops that read the tensor; none where one of them is rounded in another way than they all are."""
    assert ctx.plan is not None
    found = []
    for reader in group.readers:
        decision = ctx.plan.ops.get(walk.node_key(reader.node))
        if decision is None or decision.do == "keep":
            continue
        operand, rounded = decision.inputs.get(reader.slot), decision.inputs.get(reader.weight)
        if operand is None or rounded is None or not _free(operand) or rounded.scale.rule == CAME:
            return []
        value = reader.node.inputs[reader.weight]
        assert value is not None and group.tensor.shape is not None
        weight = tensors.read(value).astype(np.float32)
        tensors.release(value)
        count = group.tensor.shape[group.axis]
        assert isinstance(count, int)
        found.append(Read(weight, reader.spread(np.arange(count)), operand, rounded))
    return found


def _fit(group: Group, factors: Array) -> bool:
    """Whether every constant is in its type exactly what it was, times its factors."""
    for value, by in group.scaled(factors):
        array = tensors.read(value)
        times = by.astype(array.dtype)
        with np.errstate(all="ignore"):
            exact = bool((array * times / times == array).all())
        tensors.release(value)
        if not exact:
            return False
    return True
