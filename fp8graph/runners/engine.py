"""Engines of TensorRT and TensorRT-RTX, run on the GPU. Both packages have the same names for it.

No GPU could be had where this was written: the calls are held against the packages' own declarations
(tests/engines/bindings), and against a stand-in that computes. Tests that need a GPU are marked so.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fp8graph.base.errors import BackendError, InputError
from fp8graph.runners.base import Feeds, Outputs, unusable
from fp8graph.runners.cuda import Array, Device

# How an engine file begins, and whose it is.
_MAGIC = {b"vtrt": "tensorrt-rtx", b"ftrt": "tensorrt"}
_PACKAGES = {"tensorrt-rtx": ("tensorrt_rtx", "rtx"), "tensorrt": ("tensorrt", "tensorrt")}
_DTYPES: Mapping[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP8": ml_dtypes.float8_e4m3fn,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


def runtime_of(path: Path) -> str:
    """`tensorrt-rtx` or `tensorrt` where a file begins like one of their engines; empty for any other."""
    try:
        with path.open("rb") as file:
            return _MAGIC.get(file.read(4), "")
    except OSError:
        return ""


class Engine:
    """One engine, loaded. `runtime` is `tensorrt-rtx` or `tensorrt`.

    Raises InputError FG508 for a file that is no engine, BackendError FG505 where package or GPU are missing, FG133
    where the runtime refuses the engine: it was built for other chips, or by another version.
    """

    def __init__(
        self,
        path: Path,
        runtime: str,
        *,
        libraries: Sequence[str] = (),
        trt: Any = None,
        device: Callable[[], Device] = Device,
    ) -> None:
        if runtime_of(path) != runtime:
            raise InputError(
                f"the file is no engine of {runtime}",
                where=str(path),
                do=f"build one: python -m fp8graph build MODEL -o ENGINE --target {runtime}",
                code="FG508",
            )
        self.runtime = runtime
        self.device = device()
        self._trt = trt if trt is not None else _package(runtime)
        self.version = str(self._trt.__version__)
        self._said: list[str] = []
        self._lock = threading.Lock()  # one context, one stream
        logger = _logger(self._trt, self._said)
        self._runtime = self._trt.Runtime(logger)
        if libraries:
            self._trt.init_libnvinfer_plugins(logger, "")
        for library in libraries:
            self._runtime.get_plugin_registry().load_library(library)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise self._refused(f"{runtime} {self.version} does not load the engine on this GPU", str(path))
        self._names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        output = self._trt.TensorIOMode.OUTPUT
        self._outputs = [name for name in self._names if self._engine.get_tensor_mode(name) == output]
        self._profile = 0

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""
        return self._outputs

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the inputs."""
        return [name for name in self._names if name not in self._outputs]

    def shapes(self, profile: int = 0) -> dict[str, tuple[int, ...]]:
        """The most usual shape of each input in a profile."""
        shapes = {}
        for name in self.inputs:
            shape = tuple(self._engine.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                shape = tuple(self._engine.get_tensor_profile_shape(name, profile)[1])
            shapes[name] = shape
        return shapes

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of an input or output."""
        kind = str(self._engine.get_tensor_dtype(name)).rpartition(".")[2]
        if kind not in _DTYPES:
            raise BackendError(
                "a tensor has a type that cannot be fed",
                where=name,
                why=f"it is {kind}",
                do="build an engine whose inputs and outputs are floats: optimize without --kv-cache fp8",
                code="FG133",
            )
        found: np.dtype[Any] = np.dtype(_DTYPES[kind])
        return found

    def run(self, feeds: Feeds) -> Outputs:
        """Arrays by output name, bf16 and FP8 as float32. Raises BackendError FG133 with the runtime's reason."""
        with self._lock:
            held = self._set_inputs(feeds)
            results = self._set_outputs()
            self._execute()
            for name, array in results.items():
                if not self._on_host(name):
                    self.device.get(self.device.memory(f"out {name}", array.nbytes), array)
            self.device.wait()
            del held  # copied by now
        return {name: _plain(array) for name, array in results.items()}

    def latencies_ms(self, feeds: Feeds, runs: int, warm_up: int = 0) -> list[float]:
        """Time on the device of each run, without copies. The inputs are there before the first begins."""
        with self._lock:
            held = self._set_inputs(feeds)
            self._set_outputs()
            for _ in range(warm_up):
                self._execute()
            self.device.wait()
            found = []
            for _ in range(runs):
                self.device.start()
                self._execute()
                found.append(self.device.elapsed_ms())
            del held
        return found

    def _on_host(self, name: str) -> bool:
        return bool(self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self.device.stream):
            raise self._refused("the engine did not run")

    def _set_inputs(self, feeds: Feeds) -> list[Array]:
        """Hands over the inputs; gives the arrays that must live until they are copied."""
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            do = f"add an array called '{missing[0]}' to the data"
            raise InputError("an input of the engine is not given", where=missing[0], do=do, code="FG107")
        arrays = {name: np.ascontiguousarray(feeds[name], self.dtype(name)) for name in self.inputs}
        self._choose_profile(arrays)
        for name, array in arrays.items():
            address = array.ctypes.data if self._on_host(name) else self.device.put(f"in {name}", array)
            shaped = self._context.set_input_shape(name, tuple(array.shape))
            if not (shaped and self._context.set_tensor_address(name, address)):
                raise self._refused("the engine does not take this input", f"{name} {list(array.shape)}")
        return list(arrays.values())

    def _choose_profile(self, arrays: Mapping[str, Array]) -> None:
        for profile in range(self._engine.num_optimization_profiles):
            if all(self._fits(name, array.shape, profile) for name, array in arrays.items()):
                break
        else:
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise InputError(
                "no profile of the engine holds these shapes",
                where=sizes,
                do="build it for them: --min-shapes, --opt-shapes, --max-shapes",
                code="FG107",
            )
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self.device.stream):
                raise self._refused("the engine does not change its profile", str(profile))
            self._profile = profile

    def _fits(self, name: str, shape: tuple[int, ...], profile: int) -> bool:
        declared = tuple(self._engine.get_tensor_shape(name))
        if all(size >= 0 for size in declared):
            return declared == shape
        low, _, high = (tuple(item) for item in self._engine.get_tensor_profile_shape(name, profile))
        return len(low) == len(shape) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def _set_outputs(self) -> dict[str, Array]:
        if self._context.infer_shapes():
            raise self._refused("the engine cannot tell its outputs' shapes")
        results = {}
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise BackendError(
                    "an output's shape depends on the data",
                    where=name,
                    why="room for it cannot be made beforehand",
                    do="compare the other outputs' model without it",
                    code="FG133",
                )
            results[name] = np.empty(shape, self.dtype(name))
            array = results[name]
            address = array.ctypes.data if self._on_host(name) else self.device.memory(f"out {name}", array.nbytes)
            if not self._context.set_tensor_address(name, address):
                raise self._refused("the engine does not take room for an output", name)
        return results

    def _refused(self, what: str, where: str = "") -> BackendError:
        why = self._said[-1] if self._said else "it gave no reason"
        do = "build it anew for this GPU and version: python -m fp8graph doctor shows both"
        return BackendError(what, where=where, why=why, do=do, code="FG133")


def _plain(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn) else array


def _logger(trt: Any, said: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if str(severity).rpartition(".")[2] in ("ERROR", "INTERNAL_ERROR"):
                said.append(message)

    return Logger()


def _package(runtime: str) -> Any:
    module, extra = _PACKAGES[runtime]
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package that is half there raises whatever it likes
        raise unusable(runtime, extra, error) from error
