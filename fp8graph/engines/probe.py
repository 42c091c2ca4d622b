"""Which builders this machine has, found out in child processes: a builder that crashes on import harms nobody.

python -m fp8graph.engines.probe BUILDER     the child: prints one JSON document
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from fp8graph.engines import child
from fp8graph.engines.job import BUILDERS

# Which file speaks for a builder. Each imports its third party lazily, in `load`.
MODULES = {name: "fp8graph.engines." + name.replace("-", "_") for name in BUILDERS}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def installed(builder: str, timeout_s: float = 60) -> dict[str, Any]:
    """What a child process says of a builder: `installed`, `version`, `can_build_here`, `why_not`, `devices`.

    `devices` are the NVIDIA GPUs of the machine, each with `name` and `chip` (such as sm89). Never raises: a child that
    crashes or does not answer within `timeout_s` seconds is a builder that cannot be used, and `why_not` says so.
    """
    none = {"installed": False, "version": "", "can_build_here": False, "why_not": "", "devices": []}
    if builder not in MODULES:
        return none | {"why_not": f"there is no builder '{builder}'"}
    done = child.ask([*child.python("fp8graph.engines.probe"), builder], timeout_s)
    if done.returncode is None:
        return none | {"why_not": f"importing it took more than {timeout_s:g} s"}
    try:
        # The document is the last line: libraries print what they like before it.
        answer = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        answer = None
    if done.returncode or not isinstance(answer, dict):
        return none | {"why_not": f"importing it {child.ended(done.returncode)}"}
    return none | answer


def devices() -> list[dict[str, str]]:
    """The NVIDIA GPUs of this machine with name and chip, asked from the driver; empty where there is no driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(128)
        failed = (
            driver.cuDeviceGet(ctypes.byref(device), index)
            or driver.cuDeviceGetName(name, len(name), device)
            or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
            or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        )
        if not failed:
            found.append({"name": name.value.decode(errors="replace"), "chip": f"sm{major.value}{minor.value}"})
    return found


def short(version: object) -> str:
    """A version without the build that some append.   2026.4.1-22982-e213a147257 -> 2026.4.1"""
    return str(version).partition("-")[0]


def _answer(builder: str) -> dict[str, Any]:
    backend = importlib.import_module(MODULES[builder])
    gpus = devices()
    try:
        version = short(backend.load().__version__)
    except Exception as error:
        # A package that is half there raises whatever it likes, often several lines of it.
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        return {"installed": False, "why_not": why, "devices": gpus}
    why_not = backend.why_not_here(version, [gpu["chip"] for gpu in gpus])
    return {
        "installed": True,
        "version": version,
        "can_build_here": not why_not,
        "why_not": why_not,
        "devices": gpus,
    }


def main(argv: Sequence[str]) -> int:
    """Entry of the child process."""
    sys.stdout.write("\n" + json.dumps(_answer(argv[0])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
