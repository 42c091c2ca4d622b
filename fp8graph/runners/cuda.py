"""The few calls of the CUDA runtime that running an engine takes, with errors in words. Needs `cuda-python`."""

from __future__ import annotations

import ctypes
import sys
from types import TracebackType
from typing import Any

import numpy as np

from fp8graph.base.errors import BackendError
from fp8graph.runners.base import unusable

Array = np.ndarray[Any, Any]


class Device:
    """The first GPU with one stream. Memory is kept until `close`, or the end of a `with`.

    Raises BackendError FG505 where cuda-python is missing or there is no GPU, FG133 where a call fails.
    """

    def __init__(self, runtime: Any = None) -> None:
        self._cuda = runtime if runtime is not None else _bindings()
        self.stream = 0
        self._held: dict[str, tuple[int, int]] = {}
        code, count = self._cuda.cudaGetDeviceCount()
        if code != self._cuda.cudaError_t.cudaSuccess or not count:
            raise _no_gpu(self._text(code) if code != self._cuda.cudaError_t.cudaSuccess else "the driver lists none")
        self.stream = int(self._call("cudaStreamCreate"))
        self._events = [self._call("cudaEventCreate") for _ in range(2)]

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The GPU's name."""
        said = self._call("cudaGetDeviceProperties", 0).name
        return said.decode(errors="replace") if isinstance(said, bytes) else str(said)

    def memory(self, name: str, size: int) -> int:
        """The address of `size` bytes or more, kept under a name: the same again where that is enough."""
        have, address = self._held.get(name, (0, 0))
        if not address or have < size:
            if address:
                self._call("cudaFree", address)
                del self._held[name]
            address = int(self._call("cudaMalloc", max(size, 1)))
            self._held[name] = (max(size, 1), address)
        return address

    def put(self, name: str, array: Array) -> int:
        """Copies an array to the device; gives its address. The array must live until `wait`."""
        address = self.memory(name, array.nbytes)
        if array.nbytes:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)
        return address

    def get(self, address: int, array: Array) -> None:
        """Copies from the device into an array, which holds the data after `wait`."""
        if array.nbytes:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def wait(self) -> None:
        """Until everything that was asked for is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def start(self) -> None:
        """Begins to measure time on the device."""
        self._call("cudaEventRecord", self._events[0], self.stream)

    def elapsed_ms(self) -> float:
        """Milliseconds on the device since `start`; waits for it."""
        self._call("cudaEventRecord", self._events[1], self.stream)
        self._call("cudaEventSynchronize", self._events[1])
        return float(self._call("cudaEventElapsedTime", *self._events))

    def close(self) -> None:
        """Gives everything back."""
        for _, address in self._held.values():
            self._call("cudaFree", address)
        self._held.clear()
        for event in self._events:
            self._call("cudaEventDestroy", event)
        self._events = []
        if self.stream:
            self._call("cudaStreamDestroy", self.stream)
            self.stream = 0

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *given = getattr(self._cuda, name)(*arguments)
        if code != self._cuda.cudaError_t.cudaSuccess:
            memory = code == self._cuda.cudaError_t.cudaErrorMemoryAllocation
            raise BackendError(
                "the GPU's memory ran out" if memory else "the GPU refused",
                where=name,
                why=self._text(code),
                do="give smaller --shapes, or a smaller --batch"
                if memory
                else "look at nvidia-smi for the GPU's state",
                code="FG132" if memory else "FG133",
            )
        return given[0] if given else None

    def _text(self, code: Any) -> str:
        _, text = self._cuda.cudaGetErrorString(code)
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _no_gpu(why: str) -> BackendError:
    return BackendError(
        "this machine has no NVIDIA GPU to run an engine on",
        why=why,
        do="run it on the machine that the engine was built for; without a GPU, compare the model that it was built "
        "from: python -m fp8graph compare A B --data FILE",
        code="FG505",
    )


def _bindings() -> Any:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:  # said first: to install a package would not help
        raise _no_gpu("there is no NVIDIA driver") from error
    try:
        from cuda.bindings import runtime
    except Exception as error:  # a package that is half there raises whatever it likes
        raise unusable("cuda-python", "gpu", error) from error
    return runtime
