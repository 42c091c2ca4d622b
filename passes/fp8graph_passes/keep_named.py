"""Keep what the checkpoint that a model came from was not to have quantized.

What it does   Keeps a product that `import` has marked: its weight came as floats, and a list of the checkpoint's
               config (`modules_to_not_convert`, `ignored_layers`, `ignore`, `exclude_modules`) names its module.
Why            Whoever made the checkpoint left these layers out, mostly the head, and measured the others without them.
Codes          FG237 kept: the checkpoint names it
Exactness      plan only, no arithmetic changes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Opinion, PlanRule
from fp8graph.graph import walk


@dataclass(frozen=True)
class KeepNamed(PlanRule):
    """Ops that a checkpoint's config names stay in high precision."""

    firm: ClassVar[bool] = True

    def decide(self, op: OpView, ctx: Context) -> Opinion | None:
        """Reads what `import` wrote into the node."""
        why = op.node.metadata_props.get(walk.HIGH, "")
        return Opinion("keep", "FG237", why) if why else None
