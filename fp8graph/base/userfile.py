"""The user's own Python files, which only options such as --pass-file and --data script:... may name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def split(spec: str, default: str = "") -> tuple[Path, str]:
    """The file and the name of `path.py:NAME`; `default` where no name stands there."""
    path, colon, name = spec.rpartition(":")
    # The colon of C:\file.py stands in front of no name.
    return (Path(path), name) if colon and (name.isidentifier() or not name) else (Path(spec), default)


def run(source: Path, name: str) -> ModuleType:
    """Runs a file as the module `name`, and hands on whatever it raises. Raises ImportError for what is no .py file."""
    spec = importlib.util.spec_from_file_location(name, source)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{source.name}' is no .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
