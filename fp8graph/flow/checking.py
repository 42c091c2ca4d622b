"""`check`: what a target will make of a model, before any build; and mending what can be mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp8graph.base.errors import UsageError
from fp8graph.base.files import WrittenFile, check_writable, describe, staged
from fp8graph.base.findings import Finding
from fp8graph.data import target as targets
from fp8graph.data.document import load_json
from fp8graph.flow import asked

if TYPE_CHECKING:
    import onnx_ir as ir

    from fp8graph.core.context import Context
    from fp8graph.data.plan import Plan
    from fp8graph.data.target import Target
    from fp8graph.graph.stages import Source


class Checked(tuple[Finding, ...]):
    """The findings on a model; with `fix`, those that are left.

    model   what was mended, of the kind that came in; None without `fix`
    fixed   the findings that are gone
    done    what was done, as sentences
    files   what was written: nothing where nothing was done
    """

    model: Any = None
    fixed: tuple[Finding, ...] = ()
    done: tuple[str, ...] = ()
    files: tuple[WrittenFile, ...] = ()


@dataclass(frozen=True)
class _Mend:
    """One thing that can be done: the codes that call for it, and the pass that does it."""

    codes: tuple[str, ...]
    does: str
    name: str = ""


# In this order: what the later ones look at is made by the earlier ones.
_MENDS = (
    _Mend(("FG340",), "inlined functions"),
    _Mend(("FG311",), "raised the opset", "raise-opset"),
    _Mend(("FG317", "FG318"), "wrote Casts to and from FP8 as Q/DQ", "standardize-fp8-casts"),
    _Mend(("FG307",), "gave scales of shape [1] rank 0", "unwrap-scales"),
    _Mend(("FG312",), "let DequantizeLinear give fp32 where a Cast was in the way", "widen-dequantized"),
    _Mend(("FG319",), "took guards against NaN away from behind Softmax", "drop-nan-guard"),
    _Mend(("FG323",), "took Q/DQ away that nothing reads", "prune-qdq"),
)


def check(
    model: Any,
    *,
    plan: Plan | str | Path | None = None,
    target: str | None = None,
    fix: bool = False,
    output: str | Path | None = None,
    force: bool = False,
) -> Checked:
    """What the target rejects or silently drops in a model: anybody's Q/DQ model, before any build.

    With a plan, its target and shapes count where none are named. With `fix`, what can be mended is, in a copy: the
    findings are then those that are left, and `output` is where the copy is written; where nothing could be mended,
    nothing is.
    Raises InputError and UsageError; a poor model is no error.
    """
    from fp8graph.data.plan import Plan as PlanType
    from fp8graph.graph.load import load

    made = plan if plan is None or isinstance(plan, PlanType) else _read(asked.needed_path(plan, "plan"))
    aim = targets.load(asked.text(target, "target") or (made.target if made is not None else "tensorrt-rtx"))
    out = asked.path(output, "output")
    if out is not None and not fix:
        raise UsageError("check writes nothing without --fix", where="-o", do="add --fix", code="FG100")
    if out is not None:
        given = [Path(item) for item in (model, plan) if isinstance(item, (str, Path))]
        check_writable(out, force=force, inputs=given, also=(".data",))
    source = load(model)
    if out is not None and source.external:
        check_writable(out, force=force, inputs=source.external, also=(".data",))
    before = _look(source.model, aim, made)
    return _mended(source, aim, made, before, out) if fix else Checked(before)


def _read(path: Path) -> Plan:
    from fp8graph.data.plan import Plan as PlanType

    return PlanType.from_json(load_json(path, "the plan"), str(path))


def _look(model: ir.Model, aim: Target, plan: Plan | None) -> list[Finding]:
    from fp8graph.core import check as rules
    from fp8graph.core.facts import facts_for
    from fp8graph.graph import walk
    from fp8graph.graph.protos import infer_types

    infer_types(model)
    facts = facts_for(model, plan.shapes) if plan is not None else None
    # What we have written was planned, whether the plan is here or not.
    planned = plan is not None or any(walk.FOR in place.node.metadata_props for place in walk.walk(model))
    return rules.check(model, aim, facts, planned=planned)


def _mended(source: Source, aim: Target, plan: Plan | None, before: Sequence[Finding], out: Path | None) -> Checked:
    from fp8graph.core.context import Context
    from fp8graph.data import recipe
    from fp8graph.graph.save import like_source, save
    from fp8graph.graph.stages import Legal

    model = source.model
    ctx = Context(target=aim, recipe=recipe.load("fp8-default"))
    codes = {item.code for item in before}
    done = [mend.does for mend in _MENDS if codes & set(mend.codes) and _do(mend, model, ctx)]
    done += ["gave nodes names of their own"] if _named(model) else []
    after = _look(model, aim, plan)
    left = Counter((item.code, item.op) for item in after)
    gone = []
    for item in before:
        key = (item.code, item.op)
        if left[key]:
            left[key] -= 1
        else:
            gone.append(item)
    legal = Legal(model, source)
    files: list[WrittenFile] = []
    if out is not None and done:  # a copy of what came in would pass for a mended model
        with staged(out) as folder:
            names = [made.name for made in save(legal, folder, out.name)]
        files = [describe(out.with_name(name)) for name in names]
    checked = Checked(after)
    checked.fixed, checked.done, checked.files = tuple(gone), tuple(done), tuple(files)
    checked.model = like_source(legal) if out is None else None
    return checked


def _do(mend: _Mend, model: ir.Model, ctx: Context) -> bool:
    """Whether there was something to do, and it was done."""
    from fp8graph.core.pipeline import Pipeline
    from fp8graph.graph.inlining import inline
    from fp8graph.graph.protos import infer_types

    if not mend.name:
        inline(model, lambda function: True)
        return True
    changed = Pipeline([mend.name]).run(model, ctx) > 0
    if changed:
        infer_types(model)
    return changed


def _named(model: ir.Model) -> bool:
    """Gives every node a name of its own; whether one was missing or there twice."""
    from fp8graph.graph import keys, walk

    before = [place.node.name for place in walk.walk(model)]
    keys.name_everything(model)
    return before != [place.node.name for place in walk.walk(model)]
