"""What callers of the functions give, held to what it can be: a wrong type is UsageError FG100 as a wrong option is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.base.progress import SILENT, Progress
from fp8graph.data.method import SPELLINGS, parse
from fp8graph.data.plan import Profile
from fp8graph.data.recipe import Recipe

_SHAPE = "write {'x': (1, 3, 224, 224)}, or fp8graph.Profile(min, opt, max) for a range"


def path(given: Any, name: str) -> Path | None:
    """A path as it was given; None stays None."""
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)) and str(given):
        return Path(given)
    raise wrong(name, given, "a path")


def needed_path(given: Any, name: str) -> Path:
    """A path as it was given."""
    found = path(given, name)
    if found is None:
        raise wrong(name, given, "a path")
    return found


def side(given: Any) -> tuple[Any, str]:
    """A side of a comparison and the runner that it names: `m.onnx@onnxruntime`; empty where it names none."""
    if isinstance(given, (str, Path)) and not Path(given).exists() and "@" in str(given):
        file, _, runner = str(given).rpartition("@")
        return file, runner
    return given, ""


def texts(given: Any, name: str) -> tuple[str, ...] | None:
    """Several texts, or one; None stays None."""
    if given is None:
        return None
    if isinstance(given, str):  # one pattern, not its letters
        return (given,)
    if isinstance(given, Sequence | set | frozenset) and all(isinstance(item, str) for item in given):
        return tuple(given)
    raise wrong(name, given, "a text, or a list of texts")


def files(given: Any, name: str) -> tuple[str, ...]:
    """Absolute paths of several files, or of one."""
    if isinstance(given, (str, os.PathLike)):
        given = [given]
    if given is not None and not isinstance(given, Sequence):
        raise wrong(name, given, "a list of paths")
    return tuple(str(made.absolute()) for item in given or () if (made := path(item, name)) is not None)


def whole(given: Any, name: str, least: int = 1) -> int | None:
    """A whole number of at least `least`; None stays None."""
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given >= least):
        return given
    raise wrong(name, given, f"a whole number of at least {least}")


def numbers(given: Any, name: str) -> dict[str, float]:
    """A number by output; one alone is for all outputs, which is the empty name. None is no number."""
    named = {} if given is None else given if isinstance(given, Mapping) else {"": given}
    for key, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise wrong(f"{name}['{key}']" if key else name, value, "a finite number", "write {'logits': 0.01}")
    return {str(key): float(value) for key, value in named.items()}


def words(given: Any, name: str) -> dict[str, str]:
    """The same of texts."""
    named = {} if given is None else given if isinstance(given, Mapping) else {"": given}
    for value in named.values():
        if not isinstance(value, str):
            raise wrong(name, value, "a text, or one by output")
    return {str(key): value for key, value in named.items()}


def value_ranges(given: Any) -> dict[str, tuple[float, float]]:
    """Least and largest value by input; a pair alone is for all inputs, which is the empty name. None is no range."""
    if given is None:
        return {}
    named = given if isinstance(given, Mapping) else {"": given}
    return {str(name): _value_range(str(name), pair) for name, pair in named.items()}


def _value_range(name: str, pair: Any) -> tuple[float, float]:
    if isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2:
        ends = [float(end) for end in pair if isinstance(end, int | float) and not isinstance(end, bool)]
        if len(ends) == 2 and all(map(math.isfinite, ends)) and ends[0] <= ends[1]:
            return ends[0], ends[1]
    where = f"val_range['{name}']" if name else "val_range"
    raise wrong(where, pair, "a least and a largest value, both finite", "write {'x': (0, 1)}")


def sizes(given: Any, name: str) -> dict[str, tuple[int, ...]]:
    """One shape by input; None is none."""
    profiles = shapes(given, name) or {}
    ranging = next((key for key, one in profiles.items() if not one.min == one.opt == one.max), None)
    if ranging is not None:
        raise wrong(f"{name}['{ranging}']", profiles[ranging], "one shape")
    return {key: one.opt for key, one in profiles.items()}


def shapes(given: Any, option: str = "shapes") -> dict[str, Profile] | None:
    """Profiles by input. A shape alone stands for least, usual and largest; None or nothing stays None."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise wrong(option, given, "a mapping of shapes by input name", _SHAPE)
    return {str(name): _profile(f"{option}['{name}']", shape) for name, shape in given.items()} or None


def _profile(name: str, shape: Any) -> Profile:
    if isinstance(shape, Profile):
        return shape
    if isinstance(shape, Sequence) and not isinstance(shape, str):
        if all(isinstance(size, int) and not isinstance(size, bool) for size in shape):
            return Profile(tuple(shape), tuple(shape), tuple(shape))
        if len(shape) == 3 and all(isinstance(part, Sequence) and not isinstance(part, str) for part in shape):
            return Profile(*(_profile(name, part).opt for part in shape))
    raise wrong(name, shape, "a shape or a Profile", _SHAPE)


def progress(given: Any) -> Progress:
    """Something with `start`, `step` and `done`; None is silence."""
    if given is None:
        return SILENT
    if all(callable(getattr(given, part, None)) for part in ("start", "step", "done")):
        told: Progress = given
        return told
    raise wrong("progress", given, "an object with start, step and done", "see fp8graph.base.progress.Progress")


def text(given: Any, name: str) -> str | None:
    """A text, or a path as one; None stays None."""
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, os.PathLike):
        return str(given)
    raise wrong(name, given, "a name")


def recipe(given: Any) -> str | Recipe | None:
    """A recipe, or its name or file."""
    return given if isinstance(given, Recipe) else text(given, "recipe")


def method(given: Any) -> str | None:
    """A calibration method as recipes write it; None stays None. Raises UsageError FG101 for what is none."""
    if given is None:
        return None
    try:
        found = parse(given if isinstance(given, str) else repr(given))
        if found.headroom != 1:
            raise ValueError(f"headroom is no part of it: scales are found by {SPELLINGS}")
    except ValueError as error:
        raise UsageError(
            f"there is no calibration method '{given}'",
            where="--calibration-method",
            why=str(error),
            do="--calibration-method absmax, which is the default",
            code="FG101",
        ) from error
    return found.text


def wrong(name: str, given: Any, wanted: str, do: str = "") -> UsageError:
    """The error for an argument of another kind."""
    shown = f"{given!r:.60}" if isinstance(given, (str, int, float, tuple, list)) else f"a {type(given).__name__}"
    return UsageError(
        f"{name} cannot be {shown}", where=name, why=f"it takes {wanted}", do=do or f"give {wanted}", code="FG100"
    )
