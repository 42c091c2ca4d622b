"""`check_pass`: every promise of a pass, on every model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.core.passes import RewritePass, Stage
from fp8graph.data.recipe import HighChoice
from fp8graph.testing.errors import AnyPass
from fp8graph.testing.looking import hold_unchanged
from fp8graph.testing.models import Feeds, corpus
from fp8graph.testing.prepare import planned, situations
from fp8graph.testing.rewriting import hold


def check_pass(
    item: AnyPass | type[AnyPass],
    models: Mapping[str, Any] | Iterable[Any] | None = None,
    *,
    highs: Sequence[HighChoice] = ("keep", "fp16", "bf16"),
    target: str = "reference",
    feeds: Mapping[str, Sequence[Feeds]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Holds a pass to what its class promises, on each model. Raises ContractError for the first broken promise.

    item     an instance, or a class that is instantiated with its default options
    models   by name or in order, of any kind that `load` takes; None is `corpus()`
    highs    types asked for as high precision where a plan is needed
    target   the target that the plans are made for
    feeds    inputs by the name of a model, for models that do not take `random_feeds`
    options  fields of `fp8graph.core.options.Options` that the plans are made with

    Returns the number of changes (of a rule: opinions; of a repair: adjustments) by model. Nothing but zeros means that
    nothing was tested.
    """
    made = item() if isinstance(item, type) else item
    if not isinstance(made, AnyPass):
        raise UsageError(f"a {type(made).__name__} is no RewritePass, PlanRule or Repair", code="FG113")
    if models is None:
        models = corpus()
    named = models if isinstance(models, Mapping) else {f"model {i}": model for i, model in enumerate(models)}
    if not named:
        raise UsageError("there is no model to check a pass on", code="FG113")
    done: dict[str, int] = {}
    for name, model in named.items():
        own = tuple(feeds[name]) if feeds is not None and name in feeds else None
        if isinstance(made, RewritePass):
            for label, prepared in situations(made, name, model, highs, target, own, options or {}):
                done[label] = hold(made, label, prepared)
        else:
            prepared = planned(model, until=Stage.QUANTIZE, target=target, feeds=own, **(options or {}))
            done[name] = hold_unchanged(made, name, prepared)
    return done
