"""Number formats, one per file: `<name>.py` holds `FORMAT`, and being there is all the registration there is."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from fp8graph.formats.spec import Format

_NOT_A_FORMAT = {"spec"}


def names() -> tuple[str, ...]:
    """Names of all formats, sorted. Lists the package's modules and imports none of them."""
    # __path__ and pkgutil, not a directory listing: they work from a zipped wheel and an editable install, too
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_A_FORMAT))


@cache
def get(name: str) -> Format:
    """The format called `name`; imports its file at the first call.

    Raises KeyError for an unknown name, TypeError where a format's file does not hold the FORMAT of its name.
    """
    if name not in names():
        raise KeyError(name)
    found = getattr(importlib.import_module(f"{__name__}.{name}"), "FORMAT", None)
    if not isinstance(found, Format) or found.name != name:
        raise TypeError(f"{__name__}.{name}: expected FORMAT, a Format named {name!r}, got {found!r}")
    return found


@cache
def family(name: str) -> str:
    """What engines call a format: floats by their bits, integers without their sign; any other name as it is.

    e4m3fn -> fp8, e2m1 -> fp4, uint8 -> int8
    """
    if name in names() and get(name).kind == "float":
        return f"fp{get(name).bits}"
    return name.removeprefix("u")
