"""From a model to an engine, and from an engine to what it really does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.files import WrittenFile, check_writable, sha256_of
from fp8graph.base.progress import SILENT, Progress
from fp8graph.data import target as targets
from fp8graph.data.attestation import Attestation
from fp8graph.data.document import load_json
from fp8graph.data.plan import PLAN_SUFFIX, Plan, Shapes
from fp8graph.engines.attest import attest_engine
from fp8graph.engines.build import build_engine
from fp8graph.engines.job import BuildJob


@dataclass(frozen=True)
class Built:
    """An engine with its manifest and log, and what attesting it said where that was asked for."""

    files: tuple[WrittenFile, ...]
    manifest: Mapping[str, Any]
    chips: tuple[str, ...]
    warnings: tuple[str, ...]
    attestation: Attestation | None = None


def build(
    model: str | Path,
    *,
    output: str | Path,
    target: str | None = None,
    plan: str | Path | None = None,
    shapes: Shapes | None = None,
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
    builder_args: Mapping[str, str] | None = None,
    custom_ops: Sequence[str | Path] | None = None,
    progress: Progress = SILENT,
) -> Built:
    """Builds an engine in a child process and writes ENGINE, ENGINE.json (manifest) and ENGINE.log.

    target   `NAME:CHIP[+CHIP...]`; None: the plan's
    plan     its path; None: MODEL.plan.json beside the model, where there is one
    shapes   profiles; None: the plan's
    timeout  seconds; memory_limit, workspace: bytes

    Raises UsageError (a chip without FP8, what the builder does not have), InputError, BackendError (the builder
    failed, crashed or is missing).
    """
    source, engine = _existing(model, "the model", "FG106"), Path(output)
    plan_path = _plan_path(source, plan)
    made = _load_plan(plan_path)
    check_writable(engine, force=force, inputs=[source, *([plan_path] if plan_path else [])], also=(".json", ".log"))
    aim = targets.load(target or (made.target if made is not None else "tensorrt-rtx"))
    if not aim.builder:
        able = ", ".join(name for name in targets.names() if targets.load(name).builder)
        raise UsageError(
            f"target '{aim.name}' builds no engine", where="--target", do=f"choose one of {able}", code="FG101"
        )
    profile = shapes or (made.shapes if made is not None else {})
    job = BuildJob(
        model=str(source.absolute()),
        builder=aim.builder,
        chips=aim.chips if ":" in aim.asked else (),
        profiles=(profile,) if profile else (),
        optimization_level=builder_optimization_level,
        workspace_bytes=workspace,
        load_timing_cache=_absolute(load_timing_cache),
        save_timing_cache=_absolute(save_timing_cache),
        hardware_compatibility_level=hardware_compatibility_level or "",
        version_compatible=version_compatible,
        weight_streaming=weight_streaming,
        plugins=tuple(str(Path(item).absolute()) for item in custom_ops or ()),
        builder_args=dict(builder_args or {}),
    )
    done = build_engine(
        job,
        engine,
        plan=sha256_of(plan_path) if plan_path is not None else "",
        timeout_s=timeout,
        memory_limit_bytes=memory_limit,
        progress=progress,
    )
    said = _attest(engine, source, plan_path, made) if attest else None
    chips = tuple(str(chip) for chip in done.manifest["chips"])
    return Built(tuple(done.files), done.manifest, chips, tuple(done.warnings), said)


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


def _absolute(path: str | Path | None) -> str:
    return str(Path(path).absolute()) if path is not None else ""
