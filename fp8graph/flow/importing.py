"""`import`: brings numbers that were given elsewhere to a model."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp8graph.base import canon
from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.files import WrittenFile, check_writable, describe, staged, write_text
from fp8graph.base.findings import Finding
from fp8graph.base.names import did_you_mean
from fp8graph.base.progress import SILENT, Progress, stage
from fp8graph.flow import asked

if TYPE_CHECKING:
    import onnx_ir as ir

    from fp8graph.data.plan import Plan
    from fp8graph.graph.stages import Source
    from fp8graph.importers.matching import Matched
    from fp8graph.importers.parameters import Contents
    from fp8graph.importers.placing import Placing

SOURCES = ("auto", "safetensors", "qdq", "modelopt-cache", "trt-cache", "ort-table")
_OPSET = 21  # the first with block_size and output_dtype
_IR_VERSION = 10
_SHOWN = 8


@dataclass(frozen=True)
class Imported:
    """What `import_plan` made.

    model       the kind of object that came in, where nothing was written; else the path
    weights     parameters in FP8 by their name in the checkpoint: format, granularity, initializer, how it was found
    floats      how many other parameters were taken over
    rounded     tensors that have a Q/DQ pair, for scales were given
    caches      scales of caches, which the graph's metadata holds
    unmatched   what found no place, on either side: {"checkpoint": [...], "model": [...]}; of another tool's scales
                {"file": [...], "model": [...]}
    plan        with another tool's scales
    """

    model: Any
    files: tuple[WrittenFile, ...]
    weights: dict[str, dict[str, str]]
    floats: int
    rounded: tuple[str, ...]
    caches: dict[str, float]
    unmatched: dict[str, list[str]]
    findings: tuple[Finding, ...] = ()
    plan: Plan | None = None

    def to_json(self) -> dict[str, Any]:
        """The `result` of the command's document."""
        return {
            "weights": self.weights,
            "floats": self.floats,
            "rounded": list(self.rounded),
            "caches": self.caches,
            "unmatched": self.unmatched,
        }


def import_plan(
    source: str | Path,
    *,
    model: Any,
    output: str | Path | None = None,
    from_: str = "auto",
    target: str | None = None,
    recipe: Any = None,
    allow_unmatched: Sequence[str] | None = None,
    force: bool = False,
    external_data_size_threshold: int | None = None,
    progress: Progress = SILENT,
) -> Imported:
    """Brings the FP8 weights and scales of a safetensors checkpoint to the graph of its architecture, or the scales of
    another tool to a plan.

    source            a .safetensors file, a .safetensors.index.json, or a folder with one of them and config.json; or
                      what `from_` names: a Q/DQ model, a calibration cache or table
    model             path, onnx.ModelProto, onnx_ir.Model or onnx_graphsurgeon.Graph; never changed
    output            the .onnx, or of another tool's scales the plan .json; without it nothing is written
    target, recipe    of the plan, as for `optimize`
    allow_unmatched   globs of names, of either side, that may find no place

    Weights come out exact: codes and scales are the checkpoint's. Activations are rounded only where the checkpoint has
    static scales for them. Raises UsageError; InputError FG115 (the checkpoint cannot be read), FG116 (a number of it
    is refused), FG117 (it is not this model's).
    """
    globs = asked.texts(allow_unmatched, "allow_unmatched") or ()
    progress = asked.progress(progress)
    path, out = asked.needed_path(source, "source"), asked.path(output, "output")
    kind = _check_call(path, model, out, from_, force)
    if kind != "safetensors":
        return _planned(model, path, kind, target, recipe, globs, out)
    if target is not None or recipe is not None:
        do = "leave them out here, and give them to optimize"
        raise UsageError("a checkpoint is brought to a graph without target and recipe", do=do, code="FG100")
    return _checkpoint(path, model, out, globs, force, external_data_size_threshold, progress)


def _checkpoint(
    path: Path,
    model: Any,
    out: Path | None,
    globs: Sequence[str],
    force: bool,
    threshold: int | None,
    progress: Progress,
) -> Imported:
    from fp8graph.graph.load import load
    from fp8graph.importers.checkpoint import open_checkpoint
    from fp8graph.importers.matching import match
    from fp8graph.importers.parameters import contents_of
    from fp8graph.importers.placing import Placing

    opened = open_checkpoint(path)
    loaded = load(model)
    if out is not None:
        check_writable(out, force=force, inputs=[*opened.files, *loaded.external], also=(".data",))
    with stage(progress, "reading the checkpoint", len(opened.tensors), "tensor"):
        contents = contents_of(opened)
    graph = loaded.model
    _refuse_imported(graph, str(model) if isinstance(model, (str, Path)) else "the model")
    _raise_opset(graph)
    matched = match(graph, contents.parameters)
    unmatched = _unmatched(matched, contents)
    _check_shapes(matched, str(path))
    findings = _judged(unmatched, globs, str(path))
    weights = {seat.parameter.name: _told(seat) for seat in matched.seats if seat.parameter.weight is not None}
    floats = len({seat.parameter.name for seat in matched.seats} | set(matched.shared)) - len(weights)
    placing = Placing(graph, opened.declared, matched.shared)
    placing.place(matched.seats)
    findings += _write_down(graph, contents, placing)
    made, files = _finish(graph, loaded, out, threshold)
    rounded = tuple(placing.rounded)
    return Imported(made, files, weights, floats, rounded, dict(contents.caches), unmatched, tuple(findings))


def _planned(
    model: Any, path: Path, kind: str, target: str | None, recipe: Any, globs: Sequence[str], out: Path | None
) -> Imported:
    """A plan with the scales of another tool."""
    from fp8graph.flow.given_scales import given_names, plan_with

    plan, unmatched = plan_with(model, path, kind, target, recipe)
    findings = _judged(unmatched, globs, str(path))
    if out is not None:
        write_text(out, canon.pretty(plan.to_json()))
    files = (describe(out),) if out is not None else ()
    return Imported(None, files, {}, 0, given_names(plan, kind), {}, unmatched, tuple(findings), plan)


def _check_call(path: Path, model: Any, out: Path | None, from_: str, force: bool) -> str:
    """What is to be read. Raises UsageError for what is asked and not there, before anything is read."""
    from fp8graph.flow.given_scales import READERS, kind_of

    if asked.text(from_, "from_") not in SOURCES:
        raise UsageError(f"there is no source '{from_}'", where="--from", do=did_you_mean(from_, SOURCES), code="FG101")
    kind = kind_of(path) if from_ == "auto" else from_
    wanted = ".json" if kind in READERS else ".onnx"
    if out is not None and out.suffix in (".json", ".onnx") and out.suffix != wanted:
        why = "a plan does not hold the codes and scales of blocks that a checkpoint brings"
        if kind in READERS:
            why = f"what --from {kind} brings are scales of activations, which optimize --plan carries out"
        raise UsageError(
            f"import writes no {'plan' if out.suffix == '.json' else 'model'} from this source",
            where=f"-o {out}, --from {kind}",
            why=why,
            do=f"-o {out.with_suffix(wanted).name}",
            code="FG100",
        )
    if out is not None:
        given = [item for item in (path, model) if isinstance(item, (str, Path)) and Path(item).is_file()]
        check_writable(out, force=force, inputs=[Path(item) for item in given], also=(".data",))
    return kind


def _refuse_imported(graph: ir.Model, where: str) -> None:
    """Raises InputError FG117 where weights are codes already: there is no telling which parameter each was."""
    from fp8graph.graph import walk

    for place in walk.walk(graph):
        codes = place.node.inputs[0] if place.node.op_type == "DequantizeLinear" and place.node.inputs else None
        kind = codes.dtype.name if codes is not None and codes.dtype is not None else ""
        if codes is None or not kind.startswith("FLOAT8") or not codes.is_initializer():
            continue
        raise InputError(
            "the model holds weights in FP8 already",
            where=f"{where}, initializer '{codes.name}'",
            why=f"it is {kind} behind a DequantizeLinear, and a checkpoint is brought to a graph of floats",
            do="give --model the file that the exporter wrote; what was imported goes on with "
            "python -m fp8graph optimize",
            code="FG117",
        )


def _raise_opset(model: ir.Model) -> None:
    from fp8graph.graph.opset import raise_opset
    from fp8graph.graph.protos import infer_types

    raise_opset(model, _OPSET)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    infer_types(model)  # a pair on an activation is of its type


def _unmatched(matched: Matched, contents: Contents) -> dict[str, list[str]]:
    theirs = sorted([*matched.unused, *contents.orphans])
    return {"checkpoint": theirs, "model": sorted(value.name or "" for value in matched.unfilled)}


def _check_shapes(matched: Matched, where: str) -> None:
    """Raises InputError FG117 where names agree and shapes do not."""
    if matched.misfits:
        shown = "; ".join(matched.misfits[:_SHOWN])
        do = "export the model from the checkpoint's own architecture and sizes"
        what = "a weight has another shape in the checkpoint than in the model"
        raise InputError(what, where=where, why=f"{shown}{_more(matched.misfits)}", do=do, code="FG117")


def _judged(unmatched: dict[str, list[str]], globs: Sequence[str], where: str) -> list[Finding]:
    """Findings about what is left over and may be. Raises InputError FG117 where something is that may not."""
    findings, refused = [], []
    for side, names in unmatched.items():
        for name in names:
            allowed = any(fnmatch.fnmatchcase(name, glob) for glob in globs)
            what = "found nothing to match it there" if side == "model" else "found no place in the model"
            findings.append(Finding("FG117", "warning" if allowed else "error", name, f"{side}: {what}"))
            refused += [] if allowed else [(side, name)]
    if refused:
        sides = {side: [name for of, name in refused if of == side] for side in unmatched}
        lists = [f"{side}: {', '.join(names[:_SHOWN])}{_more(names)}" for side, names in sides.items() if names]
        error = InputError(
            f"{len(refused)} names of {' and '.join(unmatched)} found no counterpart",
            where=where,
            why="; ".join(lists),
            do=f"export the model from the same architecture, or accept it: --allow-unmatched '{refused[0][1]}'",
            code="FG117",
        )
        error.findings = tuple(findings)
        raise error
    return findings


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""


def _told(seat: Any) -> dict[str, str]:
    weight = seat.parameter.weight
    return {
        "format": weight.format,
        "granularity": weight.granularity,
        "initializer": seat.value.name or "",
        "by": seat.by,
    }


def _write_down(model: ir.Model, contents: Contents, placing: Placing) -> list[Finding]:
    """Scales that no tensor of the graph takes, in the model's metadata."""
    from fp8graph.core.caches import GIVEN

    given = {name: canon.shortest_float32(number) for name, number in sorted(contents.caches.items())}
    for name in placing.homeless:
        number = contents.parameters[name].input_scale
        assert number is not None
        given[f"{name}: input"] = canon.shortest_float32(float(number))
    if given:
        model.metadata_props[GIVEN] = canon.canonical(given)
    return [Finding("FG118", "info", name, f"the scale {number} is written down") for name, number in given.items()]


def _finish(
    model: ir.Model, source: Source, out: Path | None, threshold: int | None
) -> tuple[Any, tuple[WrittenFile, ...]]:
    """Spells the pairs for the graph's types, and writes it."""
    from fp8graph.core.context import Context
    from fp8graph.core.pipeline import Pipeline
    from fp8graph.data import recipe, target
    from fp8graph.graph import keys
    from fp8graph.graph.save import like_source, save
    from fp8graph.graph.stages import Legal

    keys.name_everything(model)
    context = Context(target=target.load("reference"), recipe=recipe.load("fp8-default"))
    Pipeline(["spell-fp32-scales"]).run(model, context)
    legal = Legal(model, source)
    if out is None:
        return like_source(legal), ()
    with staged(out) as folder:
        names = [made.name for made in save(legal, folder, out.name, threshold=threshold)]
    return str(out), tuple(describe(out.with_name(name)) for name in names)
