"""The three kinds of pass. All are frozen dataclasses whose fields are their options.

PlanRule      has an opinion on one op: quantize or keep, and why. Never changes the model, never sees data.
RewritePass   edits a model in one stage and says how exact it is.
Repair        names the statistics it needs and solves for numbers that go into the plan.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

    from fp8graph.core.context import Context, OpView
    from fp8graph.data.plan import Adjust, Decision
    from fp8graph.graph.tensors import Array
    from fp8graph.numerics.ranges import Need


class Stage(IntEnum):
    """When a rewriting pass runs; stages must not go backwards in a pipeline."""

    NORMALIZE = 1
    QUANTIZE = 2
    FOLD = 3
    LEGALIZE = 4
    CLEAN = 5


@dataclass(frozen=True)
class Exact:
    """The outputs stay equal bit for bit where the runtime computes each op alone."""


@dataclass(frozen=True)
class Ulps:
    """Each rewritten value moves by at most `n` units in the last place of its type."""

    n: int


@dataclass(frozen=True)
class Approximate:
    """The outputs change more than by rounding; `why` says what for."""

    why: str


Exactness = Exact | Ulps | Approximate


def pass_name(cls: type) -> str:
    """`FoldReluScale` is called `fold-relu-scale`; runs of capitals stay together (`InsertQDQ` -> `insert-qdq`)."""
    return pass_name_of(cls.__name__)


def pass_name_of(class_name: str) -> str:
    """The same from the class's name alone."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", class_name).lower()


class _Ranged:
    """Options whose numbers have bounds.

    ranges   the least and the largest value of each option that has them
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __post_init__(self) -> None:
        for option, (least, most) in self.ranges.items():
            value = getattr(self, option)
            if not least <= value <= most:
                raise ValueError(f"'{option}' is {value}, and lies between {least} and {most}")


class RewritePass(_Ranged, ABC):
    """Edits a model through `fp8graph.graph.edit`.

    stage   when it runs
    exact   what it promises about the outputs; `fp8graph.testing.check_pass` holds it to that
    retypes whether it may change the types of the model's inputs and outputs; their names and shapes it may not
    """

    stage: ClassVar[Stage]
    exact: ClassVar[Exactness]
    retypes: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The pass's name in recipes and on the command line."""
        return pass_name(type(self))

    @abstractmethod
    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Edits `model` in place and returns the number of changes; 0 means that nothing was touched."""


@dataclass(frozen=True)
class Opinion:
    """What a rule thinks of an op: `do` it and why, with a code of `fp8graph.base.codes`."""

    do: Literal["quantize", "keep"]
    code: str
    text: str


class PlanRule(_Ranged, ABC):
    """Has an opinion on one op, or none.

    firm   also asked where FP8 is wanted everywhere; False for rules about what pays or costs accuracy
    """

    firm: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The rule's name in recipes and in reasons."""
        return pass_name(type(self))

    @abstractmethod
    def decide(self, op: OpView, ctx: Context) -> Opinion | None:
        """The opinion on `op`; None asks the next rule. Reads weights if it must, never changes the model."""


@dataclass(frozen=True)
class Offer:
    """What a repair could do for one channel of an operand.

    gain   how much less noise the model's output would have, in the measure of `ctx.costs`
    cost   multiply-accumulates that it adds
    """

    slot: int
    channel: int
    gain: float
    cost: float


class Repair(_Ranged, ABC):
    """Solves for numbers that make a decision cost less accuracy; they go into the plan, so that it replays alone.

    A repair sees one op and its weights at a time, never data or a runtime: what it needs of the data it names.

    learns   whether it wants `ctx.moments` of the op's operand, in the model as it is quantized so far: it is asked
             once everything in front of the op is solved, and not at all where there is no data
    moves    whether it finds factors of channels (`channels`): asked before all others, with `ctx.powers`; the scales
             of their tensors are found anew
    weighs   whether it makes `offers` first, of which the best over the whole model are granted, up to its option
             `share` of the multiply-accumulates in FP8; it needs data, too
    """

    learns: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    moves: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The repair's name in recipes and in the plan."""
        return pass_name(type(self))

    def needs(self, op: OpView, decision: Decision) -> Sequence[str | Need]:
        """What it wants observed beside what the plan does; none by default. `solve` finds it in `ctx.ranges.values`.

        A name (with scope) alone is that tensor's amax; `Need(name, "histogram", axis=1)` its counts, and the largest
        value at each index of an axis.
        """
        return ()

    def offers(self, op: OpView, decision: Decision, ctx: Context) -> Sequence[Offer]:
        """What it could do for an op, of one that `weighs`: from `ctx.costs`, `ctx.noises` and `ctx.macs`."""
        return ()

    @abstractmethod
    def solve(
        self, op: OpView, decision: Decision, ctx: Context, weights: Callable[[int], Array]
    ) -> Sequence[tuple[Adjust, Array]]:
        """What it has found for a settled, quantized op: adjustments with the arrays that they refer to.

        `weights(slot)` reads the constant operand of a slot; it is not kept.
        """
