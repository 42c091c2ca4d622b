"""A GPU that is none: memory is the host's, and an engine doubles its input. What it takes is what is declared.

Calls of the CUDA runtime are held against `bindings/cuda-*.json`, those of TensorRT against `strict`.
"""

import ctypes
import enum
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import strict

_TABLE = json.loads(next((Path(__file__).parent / "bindings").glob("cuda-*.json")).read_text())


# As the CUDA runtime has them, those that matter here.
Error = enum.Enum("cudaError_t", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorNoDevice": 100})
OK = Error.cudaSuccess


class Cuda:
    """`cuda.bindings.runtime` on the host. `step_ms` passes with every run of an engine."""

    def __init__(self, devices: int = 1, memory: int = 1 << 30) -> None:
        self.kinds = enum.Enum("cudaMemcpyKind", _TABLE["enums"]["cudaMemcpyKind"])
        self.devices, self.memory = devices, memory
        self.held: dict[int, Any] = {}
        self.clock_ms, self.events = 0.0, 0
        self.marks: dict[int, float] = {}

    def __getattr__(self, name: str) -> Any:
        if name in ("cudaError_t", "cudaMemcpyKind"):
            return Error if name == "cudaError_t" else self.kinds
        declared = _TABLE["functions"][name]  # KeyError: our code takes a name that is not in the table
        behind = object.__getattribute__(self, "do" + re.sub(r"[A-Z]", r"_\g<0>", name.removeprefix("cuda")).lower())

        def call(*arguments: Any) -> Any:
            if len(arguments) != len(declared):
                raise strict.MisuseError(f"{name} takes {declared}, not {arguments}")
            return behind(*arguments)

        return call

    def do_get_device_count(self) -> Any:
        return (OK, self.devices) if self.devices else (Error.cudaErrorNoDevice, None)

    def do_get_device_properties(self, device: int) -> Any:
        return OK, type("Properties", (), {"name": b"no GPU at all"})

    def do_get_error_string(self, error: Error) -> Any:
        return OK, error.name.encode()

    def do_malloc(self, size: int) -> Any:
        if size > self.memory:
            return Error.cudaErrorMemoryAllocation, None
        self.memory -= size
        held = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(held)] = held
        return OK, ctypes.addressof(held)

    def do_free(self, address: int) -> Any:
        self.memory += ctypes.sizeof(self.held.pop(address))
        return (OK,)

    def do_memcpy_async(self, dst: int, src: int, count: int, kind: Any, stream: int) -> Any:
        on_device = dst if kind is self.kinds.cudaMemcpyHostToDevice else src
        assert ctypes.sizeof(self.held[on_device]) >= count
        ctypes.memmove(dst, src, count)
        return (OK,)

    def do_stream_create(self) -> Any:
        return OK, 7

    def do_stream_destroy(self, stream: int) -> Any:
        return (OK,)

    def do_stream_synchronize(self, stream: int) -> Any:
        return (OK,)

    def do_event_create(self) -> Any:
        self.events += 1
        return OK, self.events

    def do_event_destroy(self, event: int) -> Any:
        return (OK,)

    def do_event_record(self, event: int, stream: int) -> Any:
        self.marks[event] = self.clock_ms
        return (OK,)

    def do_event_synchronize(self, event: int) -> Any:
        return (OK,)

    def do_event_elapsed_time(self, start: int, end: int) -> Any:
        return OK, self.clock_ms - self.marks[start]


class Runtime:
    """A TensorRT whose engines give y = 2 x for x of [1..4, 3] or, in the second profile, [8, 3]."""

    PROFILES = (((1, 3), (2, 3), (4, 3)), ((8, 3), (8, 3), (8, 3)))

    def __init__(self, table: Path, cuda: Cuda, dtype: str = "FLOAT", step_ms: float = 1.0) -> None:
        self.strict, self.cuda, self.step_ms = strict.Strict(table), cuda, step_ms
        self.trt = self.strict.module("tensorrt")
        self.kind = dtype
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.loads = self.runs = True
        enums = self.strict.enums
        self.strict.answers |= {
            "Runtime.__init__": lambda this, logger: setattr(self, "logger", logger),
            "Runtime.deserialize_cuda_engine": self._load,
            "ICudaEngine.num_io_tensors": lambda this: 2,
            "ICudaEngine.num_optimization_profiles": lambda this: len(self.PROFILES),
            "ICudaEngine.get_tensor_name": lambda this, index: "xy"[index],
            "ICudaEngine.get_tensor_mode": lambda this, name: enums["TensorIOMode"][
                "OUTPUT" if name == "y" else "INPUT"
            ],
            "ICudaEngine.get_tensor_dtype": lambda this, name: enums["DataType"][self.kind],
            "ICudaEngine.get_tensor_location": lambda this, name: enums["TensorLocation"]["DEVICE"],
            "ICudaEngine.get_tensor_shape": lambda this, name: (-1, 3),
            "ICudaEngine.get_tensor_profile_shape": lambda this, name, index: list(self.PROFILES[index]),
            "IExecutionContext.set_input_shape": lambda this, name, shape: setattr(self, "shape", shape) or True,
            "IExecutionContext.infer_shapes": lambda this: [],
            "IExecutionContext.get_tensor_shape": lambda this, name: self.shape,
            "IExecutionContext.set_tensor_address": self._place,
            "IExecutionContext.execute_async_v3": self._execute,
        }

    def _load(self, this: Any, data: bytes) -> Any:
        if not self.loads:
            self.logger.log(self.trt.ILogger.Severity.ERROR, "built for another GPU")
            return None
        return self.strict.make("ICudaEngine")

    def _place(self, this: Any, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def _execute(self, this: Any, stream: int) -> bool:
        from fp8graph.runners.engine import _DTYPES

        count = int(np.prod(self.shape))
        dtype = np.dtype(_DTYPES[self.kind])
        held = {
            name: (ctypes.c_char * (count * dtype.itemsize)).from_address(at) for name, at in self.addresses.items()
        }
        x = np.frombuffer(held["x"], dtype)
        np.frombuffer(held["y"], dtype)[:] = x + x
        self.cuda.clock_ms += self.step_ms
        return self.runs
