"""Give the activations that cost the most a second FP8 term.

What it does   x = hi + lo / 16, hi = DQ(Q(x)) and lo = DQ(Q(16 (x - hi))): chosen channels of an operand are summed
               over once more, with what the first rounding has lost. Channels are chosen over the whole model, by the
               noise that they cost at its output for each multiply-accumulate that they add, up to `share` of all that
               are in FP8.
Why            Noise is spread unevenly: often over half of it comes in through the image that the first convolution
               reads, or the keys of attention, where a second term costs one or two percent.
Needs          data
Codes          FG239 what it costs
Exactness      between FP8 and fp16; all products stay in FP8
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Offer, Repair
from fp8graph.core.terms import channels_of, splittable
from fp8graph.data.plan import Adjust, Decision
from fp8graph.graph import tensors
from fp8graph.graph.tensors import Array
from fp8graph.numerics import sidecar


@dataclass(frozen=True)
class SplitTerms(Repair):
    """Operands in two terms where that is worth it.

    share   multiply-accumulates that may be added, as a share of those in FP8
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"share": (0, 1)}
    weighs: ClassVar[bool] = True

    share: float = 0.1

    def offers(self, op: OpView, decision: Decision, ctx: Context) -> Sequence[Offer]:
        """Each channel of each activation that this target may have in two terms, with what it gains and costs."""
        macs = ctx.macs.get(op.key, 0.0)
        made: list[Offer] = []
        for slot in splittable(op, decision, ctx.target.terms):
            noises = ctx.noises.get((op.key, slot))
            cost = ctx.costs.get((op.key, slot), 0.0)
            if noises is None or not macs or cost <= 0 or not noises.sum() > 0:
                continue
            each = macs / len(noises)
            gains = cost * noises / noises.sum()
            made += [Offer(slot, channel, float(gain), each) for channel, gain in enumerate(gains) if gain > 0]
        return made

    def solve(
        self, op: OpView, decision: Decision, ctx: Context, weights: Callable[[int], Array]
    ) -> Sequence[tuple[Adjust, Array]]:
        """The channels that were granted, as int64 indices in order."""
        found = []
        for slot, granted in sorted(ctx.granted.get(op.key, {}).items()):
            array = np.asarray(sorted(granted), np.int64)
            value = op.input(1 - slot)
            digest = sidecar.weight_digest(weights(1 - slot)) if tensors.is_constant(value) else ""
            found.append(
                (Adjust("terms", slot, self.name, sidecar.reference(f"{op.key}.terms.{slot}", array), digest), array)
            )
            count, several = channels_of(op, slot), len(array)
            text = f"input {slot}: {several} of {count} channels in two FP8 terms"
            ctx.note("FG239", op.key, text)
        return found
