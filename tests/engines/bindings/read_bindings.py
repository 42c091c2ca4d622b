"""Writes what the Python packages of TensorRT declare, as tables that the tests hold our calls against.

    python tests/engines/bindings/read_bindings.py tensorrt 10.0.1 10.16.1.11 11.4.0.106
    python tests/engines/bindings/read_bindings.py tensorrt-rtx          (the version that is installed)
    python tests/engines/bindings/read_bindings.py cuda                  (likewise)

The bindings wheel of `tensorrt` is fetched with pip. Its own libraries are gigabytes and are not needed: the module
links to nine functions of them, for which an empty stand-in is compiled (needs `cc`); nothing of it is ever called.
The module then says of itself what it takes: each function carries its signatures as text. Linux x86-64.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
# What building, inspecting and running an engine can touch. Of a network only what is no layer.
CLASSES = [
    "Builder",
    "IBuilderConfig",
    "INetworkDefinition",
    "OnnxParser",
    "ParserError",
    "ITensor",
    "IOptimizationProfile",
    "ILogger",
    "Logger",
    "IProgressMonitor",
    "ITimingCache",
    "IPluginRegistry",
    "IHostMemory",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "IRuntimeConfig",
    "EngineInspector",
]
ENUMS = [
    "NetworkDefinitionCreationFlag",
    "BuilderFlag",
    "MemoryPoolType",
    "ProfilingVerbosity",
    "HardwareCompatibilityLevel",
    "TilingOptimizationLevel",
    "EngineCapability",
    "RuntimePlatform",
    "ComputeCapability",
    "DataType",
    "TensorIOMode",
    "TensorLocation",
    "LayerInformationFormat",
]
FUNCTIONS = ("init_libnvinfer_plugins", "get_plugin_registry", "get_builder_plugin_registry", "nptype", "volume")
CUDA = [
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaGetErrorString",
    "cudaMalloc",
    "cudaFree",
    "cudaMemcpyAsync",
    "cudaStreamCreate",
    "cudaStreamDestroy",
    "cudaStreamSynchronize",
    "cudaEventCreate",
    "cudaEventDestroy",
    "cudaEventRecord",
    "cudaEventSynchronize",
    "cudaEventElapsedTime",
]
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_LINKED = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "getBuilderPluginRegistry",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
]


def table(module: Any) -> dict[str, Any]:
    """What a module declares of the names above; a name that it lacks is left out."""
    have = {name: getattr(module, name) for name in (*CLASSES, *ENUMS, *FUNCTIONS) if hasattr(module, name)}
    enums = {name: _members(have[name]) for name in ENUMS if name in have}
    enums["ILogger.Severity"] = _members(module.ILogger.Severity)
    return {
        "version": module.__version__,
        "classes": {name: _class(have[name]) for name in CLASSES if name in have},
        "enums": enums,
        "functions": {name: _signatures(name, have[name].__doc__) for name in FUNCTIONS if name in have},
    }


def _members(enum: Any) -> dict[str, int]:
    return {name: int(value) for name, value in enum.__members__.items()}


def _class(kind: Any) -> dict[str, Any]:
    methods: dict[str, list[str]] = {}
    attributes: dict[str, str] = {}
    for name, member in sorted(vars(kind).items()):
        if isinstance(member, property):
            returned = re.search(r"-> (.+)", (member.fget.__doc__ if member.fget else "") or "")
            access = "read-write" if member.fset else "read-only"
            attributes[name] = f"{access} {_short(returned[1]) if returned else 'object'}"
            continue
        layer = kind.__name__ == "INetworkDefinition" and name.startswith(("add_", "mark_", "unmark_", "remove_"))
        if callable(member) and not layer and (not name.startswith("_") or name in ("__init__", "__getitem__")):
            methods[name] = _signatures(name, member.__doc__)
    if not methods.get("__init__"):
        methods.pop("__init__", None)  # made by others only
    return {"methods": methods, "attributes": attributes}


def _signatures(name: str, text: str | None) -> list[str]:
    """One signature for each overload, without `self`."""
    lines = re.findall(rf"^(?:\d+\. )?{re.escape(name)}(\(.*\)(?: -> .+)?)$", text or "", re.M)
    found = [_short(line) for line in lines if line != "(*args, **kwargs)"]
    return [re.sub(r"^\(self: [\w.]+(, )?", "(", line) for line in found]


def _short(text: str) -> str:
    """Without the module's own name, and with defaults as plain literals."""
    text = re.sub(r"\b(tensorrt_bindings\.tensorrt|tensorrt_rtx_bindings\.tensorrt_rtx|tensorrt)\.(?=[A-Z])", "", text)
    text = re.sub(r"\b(nvinfer1|nvonnxparser)::(v_\d_\d::)?", "", text.strip())
    return re.sub(r"= <([\w.]+): -?\d+>", r"= \1", text)


def fetched(version: str, folder: Path) -> Any:
    """The bindings of one version of `tensorrt`, imported on top of stand-ins for its libraries."""
    major = version.partition(".")[0]
    name = f"tensorrt-cu12-bindings=={version}"  # the older ones are there for CUDA 12 only; the names are the same
    call = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        str(folder),
        name,
    ]
    subprocess.run(call, check=True)
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _LINKED))
    for library in _LIBRARIES:
        file = folder / f"lib{library}.so.{major}"
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{file.name}", "-o", str(file), str(source)], check=True)
    paths = [str(folder), str(FOLDER)]
    code = f"import sys; sys.path[:0] = {paths!r}; import read_bindings as r; r.show('tensorrt_bindings')"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def cuda() -> dict[str, Any]:
    """The names of the arguments of the CUDA runtime's functions, as `cuda.bindings` declares them."""
    module = importlib.import_module("cuda.bindings.runtime")
    found = {}
    for name in CUDA:
        line = (getattr(module, name).__doc__ or "").strip().partition("\n")[0]
        arguments = re.sub(r":[^,)]*", "", line[line.index("(") + 1 : line.rindex(")")]).split(",")
        found[name] = [argument.split()[-1] for argument in arguments if argument.strip()]
    kinds = {kind: sorted(getattr(module, kind).__members__) for kind in ("cudaMemcpyKind",)}
    return {"version": importlib.import_module("cuda.bindings").__version__, "functions": found, "enums": kinds}


def show(module: str) -> None:
    """Prints the table of a module; run in a child process."""
    print(json.dumps(table(importlib.import_module(module))))


def main() -> None:
    """Reads the command line and writes one file for each version."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", choices=("tensorrt", "tensorrt-rtx", "cuda"))
    parser.add_argument("versions", nargs="*")
    args = parser.parse_args()
    if args.package == "cuda":
        found = [cuda()]
    elif args.package == "tensorrt-rtx":
        code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import read_bindings as r; r.show('tensorrt_rtx')"
        found = [json.loads(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout)]
    else:
        found = []
        for version in args.versions:
            with tempfile.TemporaryDirectory() as folder:
                found.append(fetched(version, Path(folder)))
    for document in found:
        path = FOLDER / f"{args.package}-{document['version']}.json"
        path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
