"""OpenVINO's CPU plug-in: compiles a model into a blob, and says from the blob's runtime model what it really runs.

The engine is what `CompiledModel.export_model` gives and `Core.import_model` takes. It is bound to OpenVINO's version
and to the instruction set it was built on, which stand in its header: b"RR_UPCVO", then `ov=2026.4.1;isa=...`.

    python -m fp8graph.engines.openvino ENGINE     the child: prints what the runtime model lists, as one JSON document

Every op of a runtime model has a layer type, the precision that it computes in, the precisions of its outputs and the
names of the ops that were merged into it (documented: ExecGraphInfoSerialization). The plug-in has no FP8 arithmetic:
an FP8 pair is a Convert to f8e4m3 and one back, and the product behind it computes in f32 or bf16.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fp8graph.base.errors import BackendError, InputError, UsageError
from fp8graph.base.files import sha256_of
from fp8graph.base.names import did_you_mean
from fp8graph.data.plan import Shapes
from fp8graph.engines import child
from fp8graph.engines.job import BuildJob
from fp8graph.engines.program import EngineFile
from fp8graph.engines.sites import PRODUCTS, Site
from fp8graph.engines.witness import EngineOp
from fp8graph.graph import tensors
from fp8graph.runners.openvino import MAGIC, telling

NAME = "openvino"
CHIPS = ("cpu",)
# Measured: 2025.4.1 to 2026.3.1 turn FP8 pairs into FakeQuantize, which rounds to a uniform grid (samples/digits, vit:
# -0.2 dB against the exact reference, 35.2 dB with 2026.4.1). Those of 2026.4 round to FP8.
_FIRST_THAT_ROUNDS = (2026, 4)
_READING_S = 600.0
_FP8 = {"f8e4m3", "f8e5m2"}
_WORDS = {"f32": "fp32", "f16": "fp16", "f8e4m3": "fp8", "f8e5m2": "fp8", "i8": "int8", "u8": "int8", "f4e2m1": "fp4"}
_PRODUCTS = {"Convolution", "Deconvolution", "MatMul", "FullyConnected"}
# They yield elements of their input, in another place or layout.
_MOVES = {"Convert", "Reorder", "Reshape", "Transpose", "Split", "StridedSlice", "ShuffleChannels"}
_SCALES = {"Eltwise", "Subgraph"}
_UNBIASED = "/WithoutBiases"  # what it appends to a product that it takes apart from its bias
_MADE = re.compile(r"(Multiply|Divide)_\d+")  # what OpenVINO calls those that it has put in itself
_STEPS = 32


def load() -> Any:
    """The builder's module. Raises ImportError where it is not installed or not usable."""
    import openvino

    return openvino


def why_not_here(version: str, devices: Sequence[str]) -> str:
    """Why this version cannot build on this machine; empty where it can."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _FIRST_THAT_ROUNDS:
        return f"version {version} does not round to FP8 but to a uniform grid; 2026.4 does: pip install -U openvino"
    have = load().Core().available_devices
    return "" if "CPU" in have else f"it finds no CPU device, only {', '.join(have) or 'none'}"


def refuse(job: BuildJob, devices: Sequence[str]) -> list[str]:
    """Warnings about what is left out without changing the result. Raises UsageError FG100 for what there is not."""
    lacking = {
        "--version-compatible": job.version_compatible,
        "--hardware-compatibility-level": job.hardware_compatibility_level not in ("", "none"),
        "--weight-streaming": job.weight_streaming,
        "--refit": job.refit,
        "--strip-weights": job.strip_weights,
        "--builder-optimization-level": job.optimization_level is not None,
        "--memory-pool-limit": job.workspace_bytes is not None,
    }
    for option in (option for option, asked in lacking.items() if asked):
        raise UsageError(
            f"openvino has no {option.removeprefix('--').replace('-', ' ')}",
            where=option,
            why="its CPU plug-in is set by properties",
            do=f"leave {option} out; --builder-arg K=V sets a property, such as INFERENCE_PRECISION_HINT=f32",
            code="FG100",
        )
    if len(job.profiles) > 1:
        why = f"{len(job.profiles)} profiles were given"
        raise UsageError("openvino takes one range of shapes", where="--shapes", why=why, code="FG100")
    if job.load_timing_cache or job.save_timing_cache:
        return ["openvino has no timing cache: the option changes nothing"]
    return []


def build(ov: Any, job: BuildJob, engine: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Compiles a model for the CPU and writes the blob; gives chips, warnings and the layers that it lists.

    ov    the module that `load` gave
    say   takes one line for the log

    Raises InputError FG106 or FG111, UsageError FG100 or FG101, BackendError FG504 with OpenVINO's own words.
    """
    core = ov.Core()
    settings = _properties(core, job.builder_args)
    for library in job.plugins:
        try:
            core.add_extension(library)
        except Exception as error:  # OpenVINO raises RuntimeError for everything, sometimes others
            why = telling(error)
            raise InputError(
                "the library of custom ops cannot be loaded", where=library, why=why, code="FG111"
            ) from error
    say("reading the model")
    model = _attempt("reads no such model", job, lambda: core.read_model(job.model))
    warnings = _reshape(ov, model, job)
    say("compiling it for the CPU")
    compiled = _attempt("cannot compile the model", job, lambda: core.compile_model(model, "CPU", settings))
    say(f"precision: {compiled.get_property('INFERENCE_PRECISION_HINT').get_type_name()}")
    blob = compiled.export_model()
    engine.write_bytes(blob if isinstance(blob, bytes) else blob.getvalue())
    return {"chips": list(CHIPS), "warnings": warnings, "layers": [op.to_json() for op in listing(_rows(compiled))]}


def _attempt(what: str, job: BuildJob, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # OpenVINO raises RuntimeError for everything, sometimes others
        raise BackendError(
            f"openvino {what}",
            where=Path(job.model).name,
            why=telling(error),
            do="--log-file F keeps all that it said; `check MODEL --target openvino:cpu` finds most causes",
            code="FG504",
        ) from error


def _properties(core: Any, args: Mapping[str, str]) -> dict[str, str]:
    """Properties of the plug-in by their own names. Raises UsageError FG101 for an unknown one, FG100 for a value."""
    known = {name for name, access in core.get_property("CPU", "SUPPORTED_PROPERTIES").items() if access == "RW"}
    settings = {}
    for name, value in args.items():
        plain = name.upper().replace("-", "_")
        if plain not in known:
            where, do = f"--builder-arg {name}={value}", did_you_mean(plain, known)
            raise UsageError(f"openvino has no setting '{name}'", where=where, do=do, code="FG101")
        try:
            core.set_property("CPU", {plain: value})
        except Exception as error:  # OpenVINO raises RuntimeError for everything, sometimes others
            raise UsageError(
                f"openvino's setting '{name}' takes no '{value}'",
                where=f"--builder-arg {name}={value}",
                why=telling(error),
                do="give one of the values that it names",
                code="FG100",
            ) from error
        settings[plain] = value
    return settings


def _reshape(ov: Any, model: Any, job: BuildJob) -> list[str]:
    """Narrows the model's inputs to the job's shapes; gives warnings. Raises UsageError FG100 or FG101."""
    shapes: Shapes = job.profiles[0] if job.profiles else {}
    inputs = {name: port for port in model.inputs for name in port.names}
    wanted, warnings = {}, []
    for name, profile in shapes.items():
        if name not in inputs:
            do = did_you_mean(name, inputs)
            raise UsageError(f"the model has no input '{name}'", where=f"--shapes {name}", do=do, code="FG101")
        port = inputs[name]
        rank = port.partial_shape.rank
        if rank.is_static and rank.get_length() != len(profile.min):
            if rank.get_length() <= 1:  # values of an input that other builders read as a shape
                warnings.append(f"input '{name}': openvino takes any values there, those given change nothing")
                continue
            raise _unfit(name, f"the model says {port.partial_shape}")
        sizes = zip(profile.min, profile.max, strict=True)
        wanted[name] = ov.PartialShape([ov.Dimension(low, high) for low, high in sizes])
    if wanted:
        try:
            model.reshape(wanted)
        except Exception as error:  # OpenVINO raises RuntimeError for everything, sometimes others
            raise _unfit(", ".join(wanted), telling(error)) from error
    return warnings


def _unfit(name: str, why: str) -> UsageError:
    return UsageError(
        f"the shapes given for input '{name}' do not fit it",
        where=f"--shapes {name}",
        why=why,
        do="python -m fp8graph inspect MODEL --show io lists the inputs with their shapes",
        code="FG100",
    )


# ------------------------------------------------------------------------------------------------- reading an engine


def is_engine(start: bytes) -> bool:
    """Whether a file that begins so is a blob of the CPU plug-in."""
    return start.startswith(MAGIC)


def read(path: Path, start: bytes) -> EngineFile:
    """What an engine lists as it would run here; imported in a child process, for a damaged file may crash OpenVINO.

    start   the first bytes of the file, header included

    Raises InputError FG508 where this very version of OpenVINO refuses the file. Where it is not installed, or of
    another version or for other instructions, `unknown` says so.
    """
    digest = sha256_of(path)
    found = re.search(rb"ov=([0-9.]+)", start)
    version = found.group(1).decode() if found else ""
    done = child.ask([*child.python("fp8graph.engines.openvino"), str(path.absolute())], _READING_S)
    try:
        answer = json.loads(done.stdout.strip().rpartition("\n")[2])
        why, here = str(answer.get("why", "")), str(answer["version"])
        ops = tuple(EngineOp.from_json(row) for row in answer["layers"])
    except (ValueError, KeyError, TypeError, AttributeError):
        why, here, ops = f"OpenVINO's process {child.ended(done.returncode)} while importing it", version, ()
    if why and here == version and "different runtime configuration" not in why:
        raise InputError(
            "the engine file cannot be read",
            where=str(path),
            why=why,
            do="build it anew: python -m fp8graph build MODEL -o ENGINE --target openvino:cpu",
            code="FG508",
        )
    return EngineFile(digest, f"{NAME} {version}".strip(), CHIPS, 1, ops, why)


def listing(rows: Sequence[Mapping[str, Any]]) -> list[EngineOp]:
    """The ops of a runtime model that name ONNX nodes or compute products.

    rows   for each op: `name`, `type`, `precision`, `outputs` (precisions), `names` (ops merged into it), `inputs`
    """
    by_name = {str(row["name"]): row for row in rows}
    fixed = _constants(rows)
    ops = []
    for row in rows:
        product = row["type"] in _PRODUCTS
        if not product and not row["names"]:
            continue
        # No version that was read has a product in FP8: should one say so, nobody knows what it means.
        strange = product and row["precision"] in _FP8
        word = str(row["precision"]) if strange else _word(row["precision"])
        operands = [str(name) for name in row["inputs"][:2]] if product else []
        moving = [name for name in operands if name not in fixed]
        rounded = [format_ for name in moving if (format_ := _rounded(name, by_name, fixed))]
        whole = tuple(rounded) if moving and len(rounded) == len(moving) and not strange else ()
        ops.append(EngineOp(0, str(row["type"]), tuple(row["names"]), (word,) * len(operands), (), whole))
    return ops


def attribute(ops: Sequence[EngineOp], found: Sequence[Site]) -> list[EngineOp]:
    """The ops under the names of the model's nodes: OpenVINO names some by an output, or by what follows.

    An op that makes an output of the model may go by the output's name. A product that took in the bias or the factor
    behind it may go by that node's name alone: where a product names no product of the model, it is the one product
    that the nodes which it names stand behind.
    """
    bases = {site.name.base for site in found}
    products = {site.name.base for site in found if site.node.op_type in PRODUCTS}
    made = {output.name: site.name.base for site in found for output in site.node.outputs if output.name not in bases}
    behind: dict[str, set[str]] = {}
    for site in found:
        for name in _behind(site.node) if site.node.op_type in PRODUCTS else ():
            behind.setdefault(name, set()).add(site.name.base)
    renamed = []
    for op in ops:
        names = tuple(made.get(name, name.removesuffix(_UNBIASED) if name not in bases else name) for name in op.names)
        if op.kind == "product" and not products.intersection(names):
            before = set().union(*(behind.get(name, set()) for name in names))
            names += tuple(before) if len(before) == 1 else ()
        renamed.append(replace(op, names=names))
    return renamed


def _behind(node: ir.Node) -> list[str]:
    """Names of the nodes that take the result of a node through constants alone, nearest first."""
    names: list[str] = []
    for _ in range(_STEPS):
        users = [user for user, _ in node.outputs[0].uses()]
        if len(users) != 1 or node.outputs[0].is_graph_output() or users[0].op_type in PRODUCTS:
            break
        others = [value for value in users[0].inputs if value is not None and value is not node.outputs[0]]
        if not all(tensors.is_constant(value) for value in others):
            break
        node = users[0]
        names.append(node.name or "")
    return names


def _word(precision: Any) -> str:
    return _WORDS.get(str(precision), str(precision))


def _constants(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the ops that are made of constants alone: weights, and what is computed of them. Rows are in order."""
    fixed: set[str] = set()
    for row in rows:
        if row["type"] == "Const" or (row["inputs"] and all(name in fixed for name in row["inputs"])):
            fixed.add(str(row["name"]))
    return fixed


def _rounded(name: str, rows: Mapping[str, Mapping[str, Any]], fixed: set[str]) -> str:
    """What an operand was rounded to last, through moves and scaling by constants; empty where it was not."""
    for _ in range(_STEPS):
        row = rows.get(name)
        if row is None:
            return ""
        if row["type"] == "Convert" and row["precision"] in _FP8:
            return _word(row["precision"])
        moving = [str(each) for each in row["inputs"] if each not in fixed]
        if not moving or not (row["type"] in _MOVES or _scales(row, moving, rows)):
            return ""
        name = moving[0]
    return ""


def _scales(row: Mapping[str, Any], moving: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether an op only applies scales: one op of the model, by a constant, or by a number right behind FP8.

    Beside that one there may be multiplications that OpenVINO has made, such as the factor of attention moved to K.
    A number is folded into its kernel and not listed: what stands right behind the Convert from FP8 is then taken for
    the scale of the DequantizeLinear.
    """
    own = [name for name in row["names"] if not _MADE.fullmatch(name)]
    if row["type"] not in _SCALES or len(own) > 1 or len(moving) != 1:
        return False
    before = rows.get(moving[0], {"type": ""})
    return len(row["inputs"]) > 1 or (before["type"] == "Convert" and before["precision"] in _FP8)


def _rows(compiled: Any) -> list[dict[str, Any]]:
    """The runtime model of a compiled model as plain rows, in order of execution."""
    rows = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        said = {key: str(getattr(value, "value", value)) for key, value in op.get_rt_info().items()}
        rows.append(
            {
                "name": op.get_friendly_name(),
                "type": said["layerType"],
                "precision": said["runtimePrecision"],
                "outputs": said["outputPrecisions"].split(","),
                "names": [name for name in said["originalLayersNames"].split(",") if name],
                "inputs": [port.get_source_output().get_node().get_friendly_name() for port in op.inputs()],
            }
        )
    return rows


def _answer(path: Path) -> dict[str, Any]:
    """What the child found: version, layers, or why there are none."""
    try:
        ov = load()
    except Exception as error:  # a package that is half there raises whatever it likes
        why = f"openvino is not usable here ({type(error).__name__}): pip install 'fp8graph[openvino]'"
        return {"version": "", "layers": [], "why": why}
    version = metadata.version("openvino")
    try:
        layers = listing(_rows(ov.Core().import_model(path.read_bytes(), "CPU")))
    except Exception as error:  # OpenVINO raises RuntimeError for everything, sometimes others
        return {"version": version, "layers": [], "why": f"openvino {version} does not import it: {telling(error)}"}
    return {"version": version, "layers": [op.to_json() for op in layers], "why": ""}


def main(argv: Sequence[str]) -> int:
    """Entry of the child process."""
    sys.stdout.write("\n" + json.dumps(_answer(Path(argv[0]))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
