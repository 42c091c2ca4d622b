"""A build as a Python script that needs the builder's package alone, and as a line for NVIDIA's own command line tool.

The script makes the calls that `worker.build` makes, in the same order, so that the engine has the same bytes (shown
in tests/engines/test_script.py); it holds what the job asks for and nothing else. It names files relative to itself.

One thing it cannot promise: TensorRT-RTX 1.7.1 orders several inputs and outputs by where they lie in memory, so that
two programs may write them in another order, as may two builds of ours from other paths. The programs inside are the
same.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fp8graph.base.errors import UsageError
from fp8graph.data.plan import Shapes
from fp8graph.engines import settings
from fp8graph.engines.job import BuildJob
from fp8graph.engines.tensorrt_rtx import NAME as RTX

# Builders that a script can be written for, with the package that it imports.
MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_TOOLS = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "trtexec"}
_LEVELS = {"none": "none", "ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}


def text(
    job: BuildJob, script: Path, engine: Path, *, chips: Sequence[str], digests: Mapping[Path, str], version: str = ""
) -> str:
    """The text of a script at `script` that builds `job` into `engine`.

    chips     those to build for, as `sm89`: what the job leaves to the machine has been found out
    digests   sha256 of the model and of its data files, which the script checks before it builds
    version   of the builder, where one has built; the script warns where it meets another one

    Raises UsageError FG100 where a file cannot be named relative to the script (another drive).
    """
    places = _Places(script)
    parts = [
        _head(job, script, engine, chips, places),
        _values(job, engine, chips, digests, version, places),
        _LOGGER,
        _CHECK,
        _network(job),
        _config(job, chips),
        _profiles(job),
        _main(job),
    ]
    return "\n\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def command_line(job: BuildJob, engine: str, chips: Sequence[str], model: str) -> tuple[str, list[str]]:
    """The same build by `tensorrt_rtx` or `trtexec`, and the settings that these do not take."""
    words = [f"--onnx={model}", f"--saveEngine={engine}", "--skipInference", "--profilingVerbosity=detailed"]
    if job.builder == RTX:
        words.append("--computeCapabilities=" + ",".join(chip.removeprefix("sm") for chip in chips))
    else:
        words.append("--stronglyTyped")
    for index, shapes in enumerate(job.profiles):
        words += [f"--profile={index}"] if len(job.profiles) > 1 else []
        for which in ("min", "opt", "max"):
            sizes = (f"{name}:{settings.spell(getattr(p, which)) or '1'}" for name, p in shapes.items())
            words.append(f"--{which}Shapes=" + ",".join(sizes))
    words += [f"--builderOptimizationLevel={job.optimization_level}"] if job.optimization_level is not None else []
    words += [f"--memPoolSize=workspace:{job.workspace_bytes}B"] if job.workspace_bytes is not None else []
    words += [f"--staticPlugins={plugin}" for plugin in _plugin_names(job)]
    switches = {
        "--versionCompatible": job.version_compatible,
        "--allowWeightStreaming": job.weight_streaming,
        "--refit": job.refit,
        "--stripWeights": job.strip_weights,
    }
    words += [switch for switch, wanted in switches.items() if wanted]
    if job.hardware_compatibility_level:
        words.append(f"--hardwareCompatibilityLevel={_LEVELS[job.hardware_compatibility_level]}")
    if job.builder != RTX and (job.load_timing_cache or job.save_timing_cache):
        words.append(f"--timingCacheFile={Path(job.save_timing_cache or job.load_timing_cache).name}")
    line = shlex.join([_TOOLS[job.builder], *words])
    return line, [f"{name}={value}" for name, value in sorted(job.builder_args.items())]


class _Places:
    """How a script names files: relative to its own folder."""

    def __init__(self, script: Path) -> None:
        self._script, self._folder = script, script.absolute().parent

    def of(self, path: Path | str) -> str:
        """The path from the script's folder, with forward slashes."""
        try:
            return Path(os.path.relpath(Path(path).absolute(), self._folder)).as_posix()
        except ValueError as error:
            raise UsageError(
                "the script cannot name a file relative to itself",
                where=f"--emit-script {self._script}",
                why=str(error),
                do="write the script to the drive that the model lies on",
                code="FG100",
            ) from error


def _plugin_names(job: BuildJob) -> list[str]:
    return [Path(plugin).name for plugin in job.plugins]


def _head(job: BuildJob, script: Path, engine: Path, chips: Sequence[str], places: _Places) -> str:
    model = places.of(job.model)
    line, left_out = command_line(job, places.of(engine), chips, model)
    notes = [f"\nThat tool has no option known to us for: {', '.join(left_out)}.\n"] if left_out else []
    if job.builder != RTX:
        notes.append("\nTensorRT 11 and later is strongly typed without --stronglyTyped.\n")
    aim = f" for {', '.join(chips)}" if chips else ""
    package = MODULES[job.builder]
    text = f'''"""Builds an engine from {model}{aim}. Written by fp8graph; it needs the package {package} alone.

    python {script.name} [ENGINE]

The same by NVIDIA's command line tool, in this folder:

    {line}
{"".join(notes)}"""'''
    return text.replace("\\", "\\\\")


def _values(
    job: BuildJob, engine: Path, chips: Sequence[str], digests: Mapping[Path, str], version: str, places: _Places
) -> str:
    lines = [
        "import hashlib",
        "import sys",
        "from pathlib import Path",
        "",
        *_WORDS.strip("\n").splitlines(),
        "",
        f"import {MODULES[job.builder]} as trt",
        "",
    ]
    lines += [
        "HERE = Path(__file__).resolve().parent",
        f"MODEL = HERE / {places.of(job.model)!r}",
        f"ENGINE = HERE / {places.of(engine)!r}",
        "SHA256 = {",
        *(f"    HERE / {places.of(path)!r}: {digest!r}," for path, digest in digests.items()),
        "}",
        f"BUILT_WITH = {version!r}  # empty: no builder has run",
    ]
    if job.builder == RTX:
        lines.append(f"CHIPS = {[chip.upper() for chip in chips]!r}")
    if job.profiles:
        lines += [
            "# For each profile the least, the most usual and the largest shape of each input (of an input that is"
        ]
        lines += ["# read as a shape: its values).", "PROFILES = [", *_profile_lines(job.profiles), "]"]
    if job.plugins:
        lines.append(f"PLUGINS = {[places.of(plugin) for plugin in job.plugins]!r}")
    if job.builder != RTX and job.load_timing_cache:
        lines.append(f"LOAD_TIMING_CACHE = HERE / {places.of(job.load_timing_cache)!r}")
    if job.builder != RTX and job.save_timing_cache:
        lines.append(f"SAVE_TIMING_CACHE = HERE / {places.of(job.save_timing_cache)!r}")
    if job.builder_args:
        lines.append(f"BUILDER_ARGS = {dict(job.builder_args)!r}")
    return "\n".join(lines)


# Before the builder's package is imported, so that help is there without it.
_WORDS = """
if __name__ == "__main__":
    USAGE = f"usage: python {Path(__file__).name} [ENGINE]"
    WORDS = sys.argv[1:]
    if "-h" in WORDS or "--help" in WORDS:
        print(__doc__ or "", USAGE, sep="\\n")
        sys.exit()
    WRONG = [word for word in WORDS if word.startswith("-")] or WORDS[1:]
    if WRONG:
        print(f"{WRONG[0]} is not understood", USAGE, sep="\\n", file=sys.stderr)
        sys.exit(2)
"""


def _profile_lines(profiles: Sequence[Shapes]) -> Iterator[str]:
    for shapes in profiles:
        yield "    {"
        for name, p in shapes.items():
            yield f"        {name!r}: ({list(p.min)}, {list(p.opt)}, {list(p.max)}),"
        yield "    },"


_LOGGER = '''
class Logger(trt.ILogger):
    """Warnings and errors go to stderr."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.min_severity = trt.ILogger.Severity.WARNING

    def log(self, severity, message):
        name = str(severity).rpartition(".")[2]
        if name in ("WARNING", "ERROR", "INTERNAL_ERROR"):
            print(f"{name} {message}", file=sys.stderr)
'''

_CHECK = '''
def check_files():
    """Ends the script where a file is not the one that the engine was planned for."""
    for path, digest in SHA256.items():
        if not path.is_file():
            sys.exit(f"{path} is missing")
        found = hashlib.sha256()
        with path.open("rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                found.update(piece)
        if found.hexdigest() != digest:
            sys.exit(f"{path} is another file: its sha256 is {found.hexdigest()}, not {digest}")
    if BUILT_WITH and trt.__version__ != BUILT_WITH:
        print(f"this is {trt.__version__}, the settings were tried with {BUILT_WITH}", file=sys.stderr)
'''


def _network(job: BuildJob) -> str:
    lines = [
        "def parse(builder, logger):",
        '    """The network of the model, strongly typed."""',
    ]
    if job.plugins:
        lines += [
            '    trt.init_libnvinfer_plugins(logger, "")',
            "    for plugin in PLUGINS:",
            "        if trt.get_plugin_registry().load_library(str(HERE / plugin)) is None:",
            '            sys.exit(f"{plugin} cannot be loaded")',
        ]
    lines += [
        "    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))",
        "    parser = trt.OnnxParser(network, logger)",
        "    if not parser.parse_from_file(str(MODEL)):",
        "        for index in range(parser.num_errors):",
        "            error = parser.get_error(index)",
        '            print(f"{error.node_operator()} {error.node_name()}: {error.desc()}", file=sys.stderr)',
        '        sys.exit(f"{MODEL} was refused")',
        "    return network",
    ]
    return "\n".join(lines)


def _config(job: BuildJob, chips: Sequence[str]) -> str:
    lines = ["def configure(config):", '    """The settings of the build."""']
    lines.append("    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED")
    if job.builder == RTX:
        lines += [
            "    config.num_compute_capabilities = len(CHIPS)",
            "    for index, chip in enumerate(CHIPS):",
            "        config.set_compute_capability(trt.ComputeCapability.__members__[chip], index)",
        ]
    if job.version_compatible:
        lines.append("    config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)")
    if job.hardware_compatibility_level and job.builder != RTX:
        level = f"trt.HardwareCompatibilityLevel.{job.hardware_compatibility_level.upper()}"
        lines.append(f"    config.hardware_compatibility_level = {level}")
    if job.optimization_level is not None:
        lines.append(f"    config.builder_optimization_level = {job.optimization_level}")
    if job.workspace_bytes is not None:
        lines.append(f"    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, {job.workspace_bytes})")
    lines += [f"    config.set_flag(trt.BuilderFlag.{flag})" for flag in settings.flags(job)]
    if job.builder_args:
        lines += ["    for name, value in BUILDER_ARGS.items():", "        set_arg(config, name, value)"]
    setter = _SET_ARG.strip("\n") + "\n\n\n" if job.builder_args else ""
    return setter + "\n".join(lines)


_SET_ARG = '''
def set_arg(config, name, value):
    """Sets a builder flag or an attribute of the config by its name."""
    flag = trt.BuilderFlag.__members__.get(name.replace("-", "_").upper())
    wanted = value.lower() in ("1", "true", "on", "yes")
    if flag is not None:
        (config.set_flag if wanted else config.clear_flag)(flag)
        return
    name = name.replace("-", "_")
    current = getattr(config, name)
    if isinstance(current, bool):
        setattr(config, name, wanted)
    elif isinstance(current, (int, str)):
        setattr(config, name, type(current)(value))
    else:
        setattr(config, name, type(current).__members__[value.upper()])
'''


def _profiles(job: BuildJob) -> str:
    return _ADD_PROFILES if job.profiles else ""


_ADD_PROFILES = '''
def fits(shape, least, most):
    return len(shape) == len(least) and all(n < 0 or n == low == high for n, low, high in zip(shape, least, most))


def add_profiles(builder, network, config):
    """The shapes to build for. Inputs whose shapes are fixed need none."""
    inputs = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    if not any(tensor.is_shape_tensor or -1 in tuple(tensor.shape) for tensor in inputs.values()):
        return
    for shapes in PROFILES:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            if inputs[name].is_shape_tensor:
                profile.set_shape_input(name, least, usual, most)
            elif fits(tuple(inputs[name].shape), least, most):
                profile.set_shape(name, tuple(least), tuple(usual), tuple(most))
        if config.add_optimization_profile(profile) < 0:
            sys.exit(f"the shapes {shapes} are refused")
'''


def _main(job: BuildJob) -> str:
    cached = job.builder != RTX and bool(job.load_timing_cache or job.save_timing_cache)
    held = "LOAD_TIMING_CACHE.read_bytes()" if job.load_timing_cache else 'b""'
    lines = [
        "def main():",
        '    """Builds and writes the engine."""',
        "    check_files()",
        "    logger = Logger()",
        "    builder = trt.Builder(logger)",
        "    network = parse(builder, logger)",
        "    config = builder.create_builder_config()",
        "    configure(config)",
        *(["    add_profiles(builder, network, config)"] if job.profiles else []),
    ]
    if cached:
        lines += [
            f"    cache = config.create_timing_cache({held})",
            "    if not config.set_timing_cache(cache, False):",
            '        sys.exit("the timing cache is refused")',
        ]
    lines += [
        "    serialized = builder.build_serialized_network(network, config)",
        "    if serialized is None:",
        '        sys.exit("the builder refused the model")',
        "    engine = Path(sys.argv[1]) if len(sys.argv) > 1 else ENGINE",
        "    engine.write_bytes(memoryview(serialized))",
    ]
    if cached and job.save_timing_cache:
        lines.append("    SAVE_TIMING_CACHE.write_bytes(memoryview(config.get_timing_cache().serialize()))")
    lines += ['    print(f"wrote {engine}")', "", "", 'if __name__ == "__main__":', "    main()"]
    return "\n".join(lines)
