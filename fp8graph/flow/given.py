"""What a job is given by name: plans, ranges, passes, and whether they fit each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.base import canon
from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.core import policy, registry
from fp8graph.core.options import Options
from fp8graph.core.passes import PlanRule, Repair, RewritePass, pass_name
from fp8graph.core.pipeline import Pipeline
from fp8graph.data import recipe as recipes
from fp8graph.data import target as targets
from fp8graph.data.document import load_json
from fp8graph.data.plan import ARRAYS_SUFFIX, PLAN_SUFFIX, Plan, Shapes
from fp8graph.flow import asked, rangefile
from fp8graph.graph import tensors, walk
from fp8graph.graph.load import DATA_DIGEST, load
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
    check_not_empty(shapes, source)


def check_not_empty(shapes: Shapes, source: Source) -> None:
    """Raises UsageError FG100 for an input that would always be empty, where the model does not say so itself."""
    inputs, valued = {value.name or "": value for value in source.model.graph.inputs}, walk.shape_inputs(source.model)
    for name, profile in shapes.items():
        if name not in inputs or name in valued:
            continue
        dims = inputs[name].shape
        # A least size of 0 is a cache that is still empty; an input that is always empty computes nothing.
        empty = [size == 0 and d != 0 for size, d in zip(profile.max, dims or (None,) * len(profile.max), strict=False)]
        if any(empty):
            raise UsageError(
                f"the input '{name}' would always be empty",
                where="--shapes",
                why=f"axis {empty.index(True)} of {'x'.join(map(str, profile.max))} has the size 0",
                do="give every axis a size of at least 1; --min-shapes alone may have a 0",
                code="FG100",
            )


@dataclass(frozen=True)
class Own:
    """The user's passes, and what a plan notes of them: names and options, for code its name alone."""

    passes: tuple[Any, ...] = ()
    noted: Mapping[str, Any] = field(default_factory=dict)


def own_passes(extra: Any, pass_file: str | None, given: Plan | None = None) -> Own:
    """The user's passes by name (text with options), as objects, or from a file; one alone needs no list.

    With a plan they are those by name that it was made with, unless it is contradicted. Raises UsageError FG113 for
    what is no pass, FG110 for one that the plan was not made with.
    """
    planned = given.asked.get("passes", "") if given is not None else ""
    if not isinstance(planned, str):
        why = f"it is {planned!r:.60}, no text"
        raise InputError("the plan is damaged", where="asked.passes", why=why, do="make the plan anew", code="FG111")
    repeated = registry.parse_specs(planned) if planned else []
    items = [extra] if isinstance(extra, (str, *registry.KINDS)) else list(_iterable(extra))
    named = ",".join(item for item in items if isinstance(item, str))
    code: list[Any] = [item for item in items if not isinstance(item, str)]
    if pass_file is not None:
        code.append(registry.from_file(pass_file))
    for item in code:
        if not isinstance(item, registry.KINDS):
            raise UsageError(
                f"a {type(item).__name__} is no pass",
                where="passes",
                do="give names, or instances of a RewritePass, PlanRule or Repair",
                code="FG113",
            )
    by_name = registry.parse_specs(named) if named else []
    names = [pass_name(type(item)) for item in code]
    if given is not None:
        _repeats(given, by_name, repeated, names)
        by_name = by_name or repeated
    noted = {**({"passes": named} if named else {}), **({"pass_code": names} if names else {})}
    return Own((*by_name, *code), noted)


def _iterable(extra: Any) -> Iterable[Any]:
    if extra is None:
        return ()
    if not isinstance(extra, Iterable):
        raise UsageError(
            f"a {type(extra).__name__} is no pass",
            where="passes",
            do="give names, or instances of a RewritePass, PlanRule or Repair",
            code="FG113",
        )
    return extra


def _repeats(given: Plan, by_name: Sequence[Any], repeated: Sequence[Any], code: Sequence[str]) -> None:
    """Holds passes given with a plan to those that it was made with: a plan runs no others."""
    noted = given.asked.get("pass_code") or []
    needed = [str(name) for name in noted] if isinstance(noted, list) else []
    have = {*code, *(pass_name(type(item)) for item in by_name)}
    lacking = [name for name in needed if name not in have]
    if lacking:
        raise UsageError(
            f"the plan was made with the pass {lacking[0]}, which is code",
            where=f"plan for target {given.target}",
            why="a plan names no code",
            do="give the same --pass-file, or the same objects, again",
            code="FG113",
        )
    foreign = [pass_name(type(item)) for item in by_name if item not in repeated]
    if foreign and not set(foreign) <= set(needed):
        raise contradiction("--passes", f"the plan was not made with {foreign[0]} as given", given)
    own = [name for name in code if name not in {*needed, *(pass_name(type(item)) for item in repeated)}]
    if own:
        raise contradiction("--pass-file", f"the plan was not made with {own[0]}", given)


def same_recipe(recipe: str | recipes.Recipe, given: Plan) -> bool:
    """Whether a plan was made with this recipe: a packaged one by its name, a file or an object by what is in it."""
    if isinstance(recipe, str):
        name = given.recipe.get("name")
        if recipe == name or not (recipe.endswith(".toml") or "/" in recipe):
            return recipe == name
        recipe = recipes.load(recipe)
    return recipe.to_json() == dict(given.recipe)


def contradiction(option: str, why: str, given: Plan) -> UsageError:
    """The error for an option that a plan leaves no room for."""
    return UsageError(
        f"{option} contradicts the plan",
        where=f"{option} and --plan, a plan for target {given.target}",
        why=why + "; a plan brings its target, recipe, shapes, passes, options and numbers",
        do="leave the option out, or make a new plan without --plan",
        code="FG110",
    )


def check_alone(reading: Mapping[str, Any], given: Plan | None) -> None:
    """Raises UsageError FG100 for options about how data is read where there is none to read."""
    for option, value in reading.items():
        if value is not None:
            with_plan = " and --plan" if given is not None else ""
            raise UsageError(
                f"{option} says how data is read, and there is no data",
                where=f"{option} {value}{with_plan}",
                why="the plan brings its numbers" if given is not None else "no data was given",
                do="leave it out, or give --data FILE",
                code="FG100",
            )


def check_direct(high: str, *, direct: bool) -> None:
    """Raises UsageError FG100 where inputs and outputs are to take a high-precision type that was not asked for."""
    if direct and high not in ("fp16", "bf16"):
        raise UsageError(
            "--direct-io-types gives inputs and outputs the high-precision type, and none was asked for",
            where="--direct-io-types",
            why=f"the high-precision type is '{high}': what is not quantized stays as it is",
            do="add --high-precision-dtype fp16, or leave --direct-io-types out",
            code="FG100",
        )


def check_high(high: str, target: targets.Target, recipe: recipes.Recipe) -> None:
    """Raises UsageError FG342 where a high-precision type is asked for in which the target computes nothing."""
    row = target.lacks(high)
    if row is None:
        return
    option = "--recipe" if recipe.high == high else "--high-precision-dtype"
    named = option == "--recipe" and recipe.name in recipes.names()
    other = next(each for each in ("fp16", "fp32") if target.lacks(each) is None)
    instead = f"--recipe {other}" if named and other in recipes.names() else f"--high-precision-dtype {other}"
    raise UsageError(
        f"target '{target.name}' runs nothing in {high}",
        where=f"{option} {recipe.name if named else high}, --target {target.asked or target.name}",
        why=row.text,
        do=f"{instead}; or --target reference, which runs {high} as well",
        code="FG342",
    )


def by_kind(
    recipe: recipes.Recipe, target: targets.Target, own: Sequence[Any], *, direct: bool = False
) -> tuple[Pipeline, list[PlanRule], list[Repair]]:
    """Passes of recipe, target and user by their kind; the user's rules are asked first.

    direct   inputs and outputs take the high-precision type, too
    """
    rules, steps = policy.steps(recipe)
    steps += [registry.create("direct-io")] if direct else []  # type: ignore[list-item]
    # A repair is asked once, in the recipe's order, with the user's options where the user names it, too.
    named = {item.name: item for item in own if isinstance(item, Repair)}
    steps = [named.pop(item.name, item) if isinstance(item, Repair) else item for item in steps]
    own = [item for item in own if not isinstance(item, Repair) or item.name in named]
    everything: list[Any] = [*steps, *(registry.create(name) for name in target.forms), *own]
    policy.run_once(everything)
    return (
        Pipeline([item for item in everything if isinstance(item, RewritePass)]),
        [*(item for item in own if isinstance(item, PlanRule)), *rules],
        [item for item in everything if isinstance(item, Repair)],
    )


def load_plan(plan: Any) -> Plan:
    """A plan with the arrays that lie beside its document. Raises InputError FG111 or FG105, UsageError FG100."""
    if isinstance(plan, Plan):
        return plan
    path = asked.needed_path(plan, "plan")
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


def load_ranges(ranges: Any, source: Source) -> Ranges:
    """Ranges of this very model. Raises InputError FG111 (no ranges) or FG110 (of another model), UsageError FG100."""
    if isinstance(ranges, Ranges):
        seen, where = ranges, "the ranges given"
    else:
        file = asked.needed_path(ranges, "ranges")
        seen, where = rangefile.read(file), str(file)
    if seen.source and seen.source != (here := source_digest(source)):
        raise InputError(
            "these ranges were observed on another model",
            where=f"{where}, {source.path or 'the model given'}",
            why=f"they are of the model {seen.source[:19]}..., this one is {here[:19]}...",
            do="python -m fp8graph calibrate MODEL -o R.json --data FILE with this model",
            code="FG110",
        )
    return seen


def source_digest(source: Source) -> str:
    """Digest of the model as it came, weights included: the same however it is handed over, wherever weights lie."""
    model = load(source.path or source.original).model
    model.metadata_props.pop(DATA_DIGEST, None)
    for _, graph in walk.graphs(model):
        for value in () if isinstance(graph, ir.Function) else graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            sha = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            sha.update(tensor.tobytes())
            tensors.release(value)
            value.const_value = ir.tensor(np.frombuffer(sha.digest(), np.uint8), name=value.name)
    return "sha256:" + hashlib.sha256(ir.to_proto(model).SerializeToString(deterministic=True)).hexdigest()
