"""A pipeline on its own, without a plan: for scripts that only want some passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fp8graph.core.context import Context
from fp8graph.data import recipe, target
from fp8graph.graph import keys
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types
from fp8graph.graph.save import like_source
from fp8graph.graph.stages import Legal

if TYPE_CHECKING:
    from fp8graph.core.pipeline import Pipeline


def run_bare(pipeline: Pipeline, model: Any, ctx: Context | None, *, verify: bool) -> Any:
    """Loads, runs every stage, and hands the same kind of object back; a path comes back as an onnx.ModelProto."""
    source = load(model)
    work = source.model
    if pipeline.passes:
        keys.name_everything(work)
        infer_types(work)
    context = ctx or Context(target=target.load("reference"), recipe=recipe.load("fp8-default"))
    pipeline.run(work, context, verify=verify)
    return like_source(Legal(work, source))
