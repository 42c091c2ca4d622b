"""What a job is given by name: plans, ranges, passes, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fp8graph.base import canon
from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.files import sha256_of
from fp8graph.base.names import did_you_mean
from fp8graph.core import registry
from fp8graph.core.options import Options
from fp8graph.core.passes import PlanRule, Repair, RewritePass, pass_name
from fp8graph.core.pipeline import Pipeline
from fp8graph.data import recipe as recipes
from fp8graph.data import target as targets
from fp8graph.data.document import load_json
from fp8graph.data.plan import ARRAYS_SUFFIX, PLAN_SUFFIX, Plan, Shapes
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.graph.stages import Source
from fp8graph.numerics import sidecar
from fp8graph.numerics.ranges import Ranges


def meant(plan: Plan) -> tuple[recipes.Recipe, targets.Target]:
    """Recipe and target of a plan. Raises InputError FG111 where it names what there is not: the plan is at fault."""
    try:
        Options(high_precision_dtype=plan.asked.get("high_precision_dtype"))
        return recipes.Recipe.from_mapping(plan.recipe, "the plan's recipe"), targets.load(plan.target)
    except UsageError as error:
        raise InputError(
            "the plan is damaged", where=error.where, why=error.what, do="make the plan anew", code="FG111"
        ) from error


def check_shapes(shapes: Shapes, source: Source) -> None:
    """Raises UsageError where shapes are given for an input that the model has not, or that it cannot take."""
    inputs = {value.name or "": value for value in source.model.graph.inputs}
    valued = walk.shape_inputs(source.model)
    for name, profile in shapes.items():
        if name not in inputs:
            do = did_you_mean(name, inputs)
            raise UsageError(f"the model has no input '{name}'", where="--shapes", do=do, code="FG101")
        dims = inputs[name].shape
        for shape in (profile.min, profile.opt, profile.max):
            fits = (
                dims is None
                or name in valued
                or (
                    len(dims) == len(shape)
                    and all(not isinstance(d, int) or d == size for d, size in zip(dims, shape, strict=True))
                )
            )
            if not fits:
                raise UsageError(
                    f"the input '{name}' cannot have the shape {'x'.join(map(str, shape))}",
                    where="--shapes",
                    why=f"the model says {'x'.join(str(d) for d in dims or ())}",
                    do="give sizes for the axes that the model leaves open",
                    code="FG100",
                )


def own_passes(extra: str | Sequence[Any] | None, pass_file: str | None, given: Plan | None) -> list[Any]:
    """The user's passes; with a plan, those by name that it was made with. Raises UsageError FG113."""
    if given is not None and extra is None:
        extra = given.asked.get("passes")
        if extra is not None and not isinstance(extra, str):
            raise InputError("the plan is damaged", where="asked.passes", why="it is no text", code="FG111")
    own: list[Any] = registry.parse_specs(extra) if isinstance(extra, str) else list(extra or ())
    if pass_file is not None:
        own.append(registry.from_file(pass_file))
    needed = given.asked.get("pass_code") if given is not None else None
    have = [pass_name(type(item)) for item in own]
    if needed and not set(needed) <= set(have):
        raise UsageError(
            f"the plan was made with the pass {needed[0]}, which is code",
            why="a plan names no code",
            do="give the same --pass-file, or the same objects, again",
            code="FG113",
        )
    for item in own:
        if not isinstance(item, registry.KINDS):
            raise UsageError(
                f"a {type(item).__name__} is no pass", do="give a RewritePass, PlanRule or Repair", code="FG113"
            )
    return own


def spelling(extra: str | Sequence[Any] | None, pass_file: str | None) -> dict[str, Any]:
    """What a plan notes of the user's passes: names and options, for code its name alone."""
    noted: dict[str, Any] = {"passes": extra} if isinstance(extra, str) else {}
    code = [] if isinstance(extra, str) else [pass_name(type(item)) for item in extra or ()]
    code += [pass_name(type(registry.from_file(pass_file)))] if pass_file is not None else []
    return {**noted, "pass_code": code} if code else noted


def by_kind(
    recipe: recipes.Recipe, target: targets.Target, own: Sequence[Any]
) -> tuple[Pipeline, list[PlanRule], list[Repair]]:
    """Passes of recipe, target and user by their kind; the user's rules are asked first."""
    made: list[Any] = [registry.create(name) for name in (*recipe.passes, *target.forms)]
    rules: list[Any] = [registry.create(name) for name in recipe.rules]
    for name, item in zip(recipe.rules, rules, strict=True):
        if not isinstance(item, PlanRule):
            raise UsageError(f"'{name}' is no rule", where=f"recipe {recipe.name}: rules", code="FG140")
    everything = [*made, *own]
    return (
        Pipeline([item for item in everything if isinstance(item, RewritePass)]),
        [*(item for item in own if isinstance(item, PlanRule)), *rules],
        [item for item in everything if isinstance(item, Repair)],
    )


def load_plan(plan: Plan | str | Path) -> Plan:
    """A plan with the arrays that lie beside its document. Raises InputError FG111 or FG105."""
    if isinstance(plan, Plan):
        return plan
    path = Path(plan)
    document = load_json(path, "the plan")
    made = Plan.from_json(document, str(path))
    digest = document.get("sidecar", "")
    if not digest:
        return made
    beside = path.with_name(path.name.removesuffix(".json") + ".safetensors")
    return replace(made, arrays=sidecar.Sidecar(beside, str(digest)))


def write_plan(plan: Plan, folder: Path, name: str) -> list[str]:
    """Writes the plan document, and its arrays where it holds some; returns the files' names."""
    made, digest = [], ""
    if plan.arrays:
        made.append(name + ARRAYS_SUFFIX)
        digest = sidecar.write(folder / made[0], plan.arrays)
    (folder / (name + PLAN_SUFFIX)).write_text(canon.pretty(plan.to_json(digest)), encoding="utf-8")
    return [*made, name + PLAN_SUFFIX]


def load_ranges(ranges: Ranges | str | Path, source: Source) -> Ranges:
    seen = (
        ranges if isinstance(ranges, Ranges) else Ranges.from_json(load_json(Path(ranges), "the ranges"), str(ranges))
    )
    if seen.source and seen.source != source_digest(source):
        raise InputError(
            "these ranges were observed on another model", where=str(ranges), do="calibrate this one", code="FG110"
        )
    return seen


def source_digest(source: Source) -> str:
    """Digest of the model as it came, weights included."""
    if source.path is not None:
        whole = [sha256_of(path) for path in (source.path, *source.external)]
        return "sha256:" + whole[0] if len(whole) == 1 else canon.digest(whole)
    import onnx_ir as ir

    proto = source.original if source.kind == "proto" else ir.to_proto(load(source.original).model)
    return canon.digest(proto.SerializeToString(deterministic=True).hex())
