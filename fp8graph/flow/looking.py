"""Looking at things without changing them: check, compare, inspect, doctor. Each imports only what it needs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.findings import Finding, Notes
from fp8graph.base.names import did_you_mean
from fp8graph.base.progress import SILENT, Progress
from fp8graph.data import target as targets
from fp8graph.data.document import load_json

if TYPE_CHECKING:
    from fp8graph.data.comparison import Comparison
    from fp8graph.data.plan import Decision, Plan
    from fp8graph.runners.base import Runner

PACKAGES = (
    "numpy",
    "ml_dtypes",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnx-graphsurgeon",
    "safetensors",
    "rich",
)
BUILDERS = {"tensorrt-rtx": "pip install 'fp8graph[rtx]'", "tensorrt": "pip install 'fp8graph[tensorrt]'"}


def check(model: Any, *, plan: Plan | str | Path | None = None, target: str | None = None) -> tuple[Finding, ...]:
    """What the target rejects or silently drops in a model: anybody's Q/DQ model, before any build.

    With a plan, its target counts where none is named. Raises InputError and UsageError; a poor model is no error.
    """
    from fp8graph.core.check import check as check_model
    from fp8graph.data.plan import Plan as PlanType
    from fp8graph.graph.load import load
    from fp8graph.graph.protos import infer_types

    made = (
        plan
        if plan is None or isinstance(plan, PlanType)
        else PlanType.from_json(load_json(Path(plan), "the plan"), str(plan))
    )
    aim = targets.load(target or (made.target if made is not None else "tensorrt-rtx"))
    source = load(model)
    infer_types(source.model)
    return tuple(check_model(source.model, aim))


def compare(
    a: Any,
    b: Any,
    *,
    data: Any,
    samples: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    custom_ops: Sequence[str | Path] | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """How far B's outputs lie from A's on the same samples, in the exact reference.

    A side may name a runner: `m.onnx@onnxruntime` is ONNX Runtime as users run it, `m.onnx@reference` the default.
    """
    from fp8graph.calibrate.samples import open_samples
    from fp8graph.compare.outputs import compare_outputs
    from fp8graph.graph.load import load

    (left, left_runner), (right, right_runner) = _side(a), _side(b)
    feeds = open_samples(data, load(left).model, Notes(), samples=samples, batch=batch, seed=seed)
    libraries = [str(Path(item).absolute()) for item in custom_ops or ()]
    runners = [_runner(left, left_runner, libraries), _runner(right, right_runner, libraries)]
    return compare_outputs(runners[0], runners[1], feeds, count=feeds.count, progress=progress)


def _side(given: Any) -> tuple[Any, str]:
    if isinstance(given, (str, Path)) and not Path(given).exists() and "@" in str(given):
        path, _, runner = str(given).rpartition("@")
        return path, runner
    return given, "reference"


def _runner(model: Any, name: str, libraries: Sequence[str]) -> Runner:
    from fp8graph.graph.load import load
    from fp8graph.runners.onnxruntime import OnnxRuntime
    from fp8graph.runners.reference import reference

    if name not in ("reference", "onnxruntime"):
        raise UsageError(
            f"there is no runner '{name}'",
            where=f"@{name}",
            do=did_you_mean(name, ("reference", "onnxruntime")),
            code="FG101",
        )
    source = load(model)
    given = source.path or source.model
    if name == "reference":
        return reference(given, libraries)
    return OnnxRuntime(given, exact=False, libraries=libraries)


def inspect(file: str | Path) -> dict[str, Any]:
    """What is in a file: a model, plan, ranges, engine manifest or attestation, or an engine. The kind is detected."""
    path = Path(file)
    if not path.is_file():
        raise InputError("the file does not exist", where=str(file), do="check the path", code="FG111")
    with path.open("rb") as stream:
        begin = stream.read(64)
    if begin[:4] == b"vtrt":
        return _inspect_engine(path)
    if begin.lstrip()[:1] == b"{":
        return _inspect_document(path)
    return _inspect_model(path)


def _inspect_document(path: Path) -> dict[str, Any]:
    document = load_json(path, "the document")
    kind = str(document.get("schema", "")).removeprefix("fp8graph.").partition("/")[0]
    if kind == "plan":
        from fp8graph.data.plan import Plan as PlanType

        return {"kind": "plan", **_plan_rows(PlanType.from_json(document, str(path)), document)}
    if kind == "attestation":
        from fp8graph.data.attestation import Attestation

        Attestation.from_json(document, str(path))
    elif kind == "ranges":
        from fp8graph.numerics.ranges import Ranges

        Ranges.from_json(document, str(path))
    elif kind not in ("engine", "recipe", "result"):
        raise InputError(
            "this is no fp8graph document",
            where=str(path),
            why=f"its schema is '{document.get('schema')}'",
            code="FG111",
        )
    return {"kind": kind, **{name: value for name, value in document.items() if name != "schema"}}


def _plan_rows(plan: Plan, document: Mapping[str, Any]) -> dict[str, Any]:
    kinds: dict[str, dict[str, int]] = {}
    for op in plan.ops.values():
        precision = "fp8" if op.do == "quantize" else op.high
        by = kinds.setdefault(op.op_type, {})
        by[precision] = by.get(precision, 0) + 1
    return {
        "target": plan.target,
        "recipe": plan.recipe.get("name"),
        "structure": plan.structure,
        "settled": plan.settled,
        "data": plan.data,
        "quantized": sum(1 for _ in plan.quantized()),
        "kept": sum(1 for _ in plan.kept()),
        "shapes": document["shapes"],
        "ops": dict(sorted(kinds.items())),
        "rows": [_plan_row(key, op) for key, op in plan.ops.items()],
    }


def _plan_row(key: str, op: Decision) -> dict[str, Any]:
    operands = []
    for slot, quant in sorted(op.inputs.items()):
        number = f"{quant.scale.value:.6g}" if quant.scale.value is not None else quant.scale.rule
        per = "per channel" if quant.granularity.blocks else "per tensor"
        operands.append(f"{slot}: {quant.format} {per} {number} {quant.scale.origin}")
    row = {"key": key, "op_type": op.op_type, "name": op.name, "do": op.do, "high": op.high}
    return {**row, "code": op.why.code, "why": op.why.text, "by": op.why.by, "inputs": operands}


def _inspect_model(path: Path) -> dict[str, Any]:
    from fp8graph.graph.load import load
    from fp8graph.graph.looking import describe

    source = load(path)
    return {"kind": "model", "file": path.name, **describe(source.model)}


def _inspect_engine(path: Path) -> dict[str, Any]:
    from fp8graph.engines.program import read_engine

    engine = read_engine(path)
    manifest = path.with_name(path.name + ".json")
    said = load_json(manifest, "the manifest") if manifest.is_file() else {}
    known = {name: value for name, value in said.items() if name not in ("schema", "layers")}
    rows = [
        {
            "name": " + ".join(op.names) or "(generated)",
            "kind": op.kind,
            "layer": op.said,
            "operands": list(op.operands),
        }
        for op in engine.ops
    ]
    return {
        "kind": "engine",
        "file": path.name,
        "sha256": engine.sha256,
        "builder": engine.builder,
        "chips": list(engine.chips),
        "profiles": engine.profiles,
        "unknown": engine.unknown,
        "layers": rows,
        "manifest": known or None,
    }


def doctor() -> dict[str, Any]:
    """Versions, devices, and what each target can do here; builders are asked in a child process."""
    from fp8graph.engines.probe import devices, installed

    rows = []
    for name in targets.names():
        aim = targets.load(name)
        if not aim.builder:
            have = _version("onnxruntime")
            why_not = None if have else "onnxruntime is not installed"
            rows.append(
                _target_row(
                    name, have is not None, have, ["optimize", "check", "compare"], why_not, "pip install onnxruntime"
                )
            )
            continue
        state = installed(aim.builder)
        able = bool(state["can_build_here"])
        can = ["optimize", "check", "compare", "attest", *(["build"] if able else [])]
        rows.append(
            _target_row(name, able, state["version"] or None, can, state["why_not"] or None, BUILDERS[aim.builder])
        )
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "executable": sys.executable,
        "packages": {name: _version(name) for name in ("fp8graph", *PACKAGES)},
        "targets": rows,
        "devices": devices(),
    }


def _target_row(
    name: str, usable: bool, version: str | None, can: list[str], why_not: str | None, install: str
) -> dict[str, Any]:
    row = {"name": name, "usable": usable, "version": version, "can": can, "why_not": why_not}
    return {**row, "install": None if usable else install}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
