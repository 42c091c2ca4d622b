"""From a model to an engine, and from an engine to what it really does."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.files import WrittenFile, check_writable, describe, same_file, sha256_of, write_text
from fp8graph.base.findings import Finding
from fp8graph.base.progress import SILENT, Progress
from fp8graph.core import othershapes
from fp8graph.data import target as targets
from fp8graph.data.attestation import Attestation
from fp8graph.data.document import load_json
from fp8graph.data.plan import PLAN_SUFFIX, Plan, Shapes
from fp8graph.data.target import Target
from fp8graph.engines import manifest, probe, script
from fp8graph.engines.attest import attest_engine
from fp8graph.engines.build import build_engine
from fp8graph.engines.job import BuildJob
from fp8graph.flow import asked
from fp8graph.flow.given import check_not_empty
from fp8graph.graph.load import load
from fp8graph.graph.stages import Source

_log = logging.getLogger("fp8graph.flow")


@dataclass(frozen=True)
class Built:
    """An engine with its manifest and log, and what attesting it said where that was asked for.

    findings   what the shapes cost that the plan was not made for (FG320, FG321)
    manifest   empty where a script was written and nothing was built
    """

    files: tuple[WrittenFile, ...]
    manifest: Mapping[str, Any]
    chips: tuple[str, ...]
    warnings: tuple[str, ...]
    attestation: Attestation | None = None
    findings: tuple[Finding, ...] = ()


def build(
    model: str | Path,
    *,
    output: str | Path | None = None,
    target: str | None = None,
    plan: str | Path | None = None,
    shapes: Shapes | Sequence[Shapes] | None = None,
    force: bool = False,
    attest: bool = False,
    timeout: float | None = None,
    memory_limit: int | None = None,
    builder_optimization_level: int | None = None,
    workspace: int | None = None,
    load_timing_cache: str | Path | None = None,
    save_timing_cache: str | Path | None = None,
    version_compatible: bool = False,
    hardware_compatibility_level: str | None = None,
    weight_streaming: bool = False,
    refit: bool = False,
    strip_weights: bool = False,
    builder_args: Mapping[str, str] | None = None,
    custom_ops: Sequence[str | Path] | None = None,
    emit_script: str | Path | None = None,
    progress: Progress = SILENT,
) -> Built:
    """Builds an engine in a child process and writes ENGINE, ENGINE.json (manifest) and ENGINE.log.

    output       the engine; None with `emit_script`: nothing is built, for the builder is on another machine
    target       `NAME:CHIP[+CHIP...]`; None: the plan's
    plan         its path; None: MODEL.plan.json beside the model, where there is one
    shapes       one profile, or several, each with shapes by input; None: the plan's
    emit_script  a Python file that builds the same engine with the builder's package alone
    timeout      seconds; memory_limit, workspace: bytes

    What shapes cost that the plan was not made for is logged as a warning before the build begins.

    Raises UsageError (a chip without FP8, what the builder does not have), InputError, BackendError (the builder
    failed, crashed or is missing).
    """
    output, emit_script = asked.path(output, "output"), asked.path(emit_script, "emit_script")
    load_cache = asked.path(load_timing_cache, "load_timing_cache")
    save_cache = asked.path(save_timing_cache, "save_timing_cache")
    plugins = asked.files(custom_ops, "custom_ops")
    asked.whole(builder_optimization_level, "builder_optimization_level", 0)
    for name, size in (("workspace", workspace), ("memory_limit", memory_limit)):
        asked.whole(size, name)
    asked.numbers(timeout, "timeout")
    asked.text(hardware_compatibility_level, "hardware_compatibility_level")
    if builder_args is not None and not isinstance(builder_args, Mapping):
        raise asked.wrong("builder_args", builder_args, "a mapping of texts")
    source = _existing(model, "the model", "FG106")
    plan_path = _plan_path(source, plan)
    made = _load_plan(plan_path)
    aim = targets.load(asked.text(target, "target") or (made.target if made is not None else "tensorrt-rtx"))
    if not aim.builder:
        able = ", ".join(name for name in targets.names() if targets.load(name).builder)
        raise UsageError(
            f"target '{aim.name}' builds no engine", where="--target", do=f"choose one of {able}", code="FG101"
        )
    opened = load(source)
    read = [source, plan_path, *opened.external, *map(Path, plugins)]
    _check_outputs(aim.builder, output, emit_script, load_cache, save_cache, read, force=force, attest=attest)
    job = BuildJob(
        model=str(source.absolute()),
        builder=aim.builder,
        chips=aim.chips if ":" in aim.asked else (),
        profiles=_profiles(shapes, made),
        optimization_level=builder_optimization_level,
        workspace_bytes=workspace,
        load_timing_cache=_absolute(load_cache),
        save_timing_cache=_absolute(save_cache),
        hardware_compatibility_level=hardware_compatibility_level or "",
        version_compatible=version_compatible,
        weight_streaming=weight_streaming,
        refit=refit,
        strip_weights=strip_weights,
        plugins=plugins,
        builder_args=dict(builder_args or {}),
    )
    for one in job.profiles if shapes else ():
        check_not_empty(one, opened)
    findings = _other_shapes(opened, made, aim, job.profiles)
    built = Built((), {}, job.chips, (), findings=findings)
    if output is not None:
        engine, digest = output, sha256_of(plan_path) if plan_path is not None else ""
        done = build_engine(
            job, engine, plan=digest, timeout_s=timeout, memory_limit_bytes=memory_limit, progress=progress
        )
        chips = tuple(str(chip) for chip in done.manifest["chips"])
        built = replace(built, files=tuple(done.files), manifest=done.manifest, chips=chips)
        built = replace(built, warnings=tuple(done.warnings))
        built = _attested(built, engine, source, plan_path, made) if attest else built
    return built if emit_script is None else _scripted(built, job, opened, emit_script, output)


def _profiles(shapes: Shapes | Sequence[Shapes] | None, plan: Plan | None) -> tuple[Shapes, ...]:
    if shapes is not None:
        several = shapes if isinstance(shapes, Sequence) and not isinstance(shapes, str) else (shapes,)
        read = tuple(asked.shapes(one, "shapes") or {} for one in several)
        if any(read):
            return read
    return (plan.shapes,) if plan is not None and plan.shapes else ()


def _check_outputs(
    builder: str,
    output: Path | None,
    emit_script: Path | None,
    load_cache: Path | None,
    save_cache: Path | None,
    inputs: Sequence[Path | None],
    *,
    force: bool,
    attest: bool,
) -> None:
    """Everything that will be written, before anything is done. A timing cache may be read and written in place."""
    read = [path for path in inputs if path is not None]
    if emit_script is not None and builder not in script.MODULES:
        do = f"choose one of {', '.join(script.MODULES)}"
        raise UsageError(f"there are no build scripts for '{builder}'", where="--emit-script", do=do, code="FG101")
    if output is None and attest:
        do = "name an engine after -o, or attest where the script has built one"
        raise UsageError("there is no engine to attest", where="--attest", do=do, code="FG100")
    if output is None and emit_script is None:
        raise UsageError("nothing was asked for", do="name an engine, a script, or both", code="FG100")
    if output is not None:
        check_writable(output, force=force, inputs=read, also=(".json", ".log"))
    if emit_script is not None:
        check_writable(emit_script, force=force, inputs=read)
        if output is not None and emit_script.absolute() == output.absolute():
            raise UsageError("engine and script have one name", where=str(output), do="name another one", code="FG103")
    if save_cache is not None:
        own = load_cache is not None and same_file(save_cache, load_cache)
        check_writable(save_cache, force=force or own, inputs=read)


def _other_shapes(source: Source, plan: Plan | None, aim: Target, profiles: Sequence[Shapes]) -> tuple[Finding, ...]:
    if plan is None or all(shapes == plan.shapes for shapes in profiles):
        return ()
    found = othershapes.costs(source.model, plan, aim, profiles)
    alike: dict[tuple[str, str, str], list[str]] = {}
    for item in found:
        if item.severity == "warning":
            alike.setdefault((item.code, item.text, item.do), []).append(item.op)
    for (code, text, do), ops in alike.items():
        others = f" and {len(ops) - 2} more" if len(ops) > 2 else ""
        _log.warning("%s %s%s: %s; %s", code, ", ".join(ops[:2]), others, text, do)
    return tuple(found)


def _attested(built: Built, engine: Path, model: Path, plan_path: Path | None, plan: Plan | None) -> Built:
    """With an attestation, whose summary goes into the manifest."""
    said = _attest(engine, model, plan_path, plan)
    document = manifest.with_attestation(built.manifest, said.to_json())
    path = manifest.beside(engine)
    write_text(path, manifest.spell(document))
    written = tuple(describe(path) if Path(file.path) == path else file for file in built.files)
    return replace(built, attestation=said, manifest=document, files=written)


def _scripted(built: Built, job: BuildJob, source: Source, path: Path, output: Path | None) -> Built:
    """With the script. Raises UsageError for what the builder does not have, and where nobody has named a chip."""
    chips = built.chips
    if not built.manifest:
        refuse = importlib.import_module(probe.MODULES[job.builder]).refuse
        built = replace(built, warnings=tuple(refuse(job, ["of the machine that the script is for"])))
    if job.builder == "tensorrt-rtx" and not chips:
        chips = tuple(gpu["chip"] for gpu in probe.devices())[:1]
        if not chips:
            raise UsageError(
                "no chip was named, and this machine has no GPU to take it from",
                where="--target",
                do="name one or several: --target tensorrt-rtx:sm89+sm120",
                code="FG100",
            )
    digests = {file: sha256_of(file) for file in (Path(job.model), *source.external)}
    version = str(built.manifest["builder"]["version"]) if built.manifest else ""
    engine = output if output is not None else path.with_name(Path(job.model).stem + ".engine")
    write_text(path, script.text(job, path, engine, chips=chips, digests=digests, version=version))
    return replace(built, chips=chips, files=(*built.files, describe(path)))


def attest(engine: str | Path, *, model: str | Path, plan: str | Path | None = None) -> Attestation:
    """What the engine does with every op that the plan quantizes; without a plan, with what the model's Q/DQ promise.

    plan   its path; None: MODEL.plan.json beside the model, where there is one

    Raises InputError for a file that is no engine, model or plan. An engine that falls short is a verdict, no error.
    """
    source = _existing(model, "the model", "FG106")
    plan_path = _plan_path(source, plan)
    return _attest(_existing(engine, "the engine", "FG508"), source, plan_path, _load_plan(plan_path))


def _attest(engine: Path, model: Path, plan_path: Path | None, plan: Plan | None) -> Attestation:
    return attest_engine(engine, model, plan, plan_sha256=sha256_of(plan_path) if plan_path is not None else "")


def _existing(path: str | Path, what: str, code: str) -> Path:
    if not isinstance(path, (str, Path)):
        raise UsageError(
            f"{what} is to be given as a path",
            where=what,
            why=f"got {type(path).__name__}; another process reads the file",
            do="onnx.save(model, 'm.onnx'), and give 'm.onnx'" if what == "the model" else "give the path of a file",
            code="FG100",
        )
    found = Path(path)
    if not found.is_file():
        raise InputError(f"{what} does not exist", where=str(path), do="check the path", code=code)
    return found


def _plan_path(model: Path, plan: str | Path | None) -> Path | None:
    if plan is not None:
        return _existing(plan, "the plan", "FG111")
    beside = model.with_name(model.name + PLAN_SUFFIX)
    return beside if beside.is_file() else None


def _load_plan(path: Path | None) -> Plan | None:
    return Plan.from_json(load_json(path, "the plan"), str(path)) if path is not None else None


def _absolute(path: Path | None) -> str:
    return str(path.absolute()) if path is not None else ""
