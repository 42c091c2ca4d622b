"""What is typed after options: numbers, sizes, shapes, bounds. Each function is a `type=` of argparse and raises its
ArgumentTypeError, which the parser turns into an error that names the option."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence

from fp8graph.base.names import did_you_mean

Shape = tuple[int, ...]
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def whole(least: int = 0, most: int | None = None) -> Callable[[str], int]:
    """A whole number of at least `least` and at most `most`."""

    def read(text: str) -> int:
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{value} is out of range, it is {bounds}")
        return value

    return read


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not finite")
    return value


def seconds(text: str) -> float:
    """A positive number of seconds."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is out of range, it is more than 0 seconds")
    return value


def size(text: str) -> int:
    """A number of bytes: 512M, 4G, 1.5GiB, 1000."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgtb]?)(?:i?b)?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; type 512M or 4G")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def choice(*names: str, also: Sequence[str] = ()) -> Callable[[str], str]:
    """One of `names`; `also` are accepted and not proposed."""

    def read(text: str) -> str:
        if text in names or text in also:
            return text
        raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(names)}; {did_you_mean(text, names)}")

    return read


def shapes(text: str) -> dict[str, Shape]:
    """Shapes by input: `x:[1,3,224,224]` or `x:1x3x224x224`; several with commas between, as trtexec has them.

    A name may hold colons itself. `x:[]` is a scalar.
    """
    found: dict[str, Shape] = {}
    for part in _parts(text):
        name, colon, dims = part.rpartition(":")
        if not colon or not name:
            raise argparse.ArgumentTypeError(f"'{part}' is no NAME:SHAPE; type x:[1,3,224,224] or x:1x3x224x224")
        if name in found:
            raise argparse.ArgumentTypeError(f"'{name}' has two shapes")
        found[name] = _dims(dims, part)
    return found


def _parts(text: str) -> list[str]:
    """The text cut at commas between shapes: not in brackets, and not between sizes without a name."""
    parts: list[str] = []
    for piece in re.split(r",(?![^\[]*\])", text):
        if parts and ":" not in piece:
            parts[-1] += "," + piece
        else:
            parts.append(piece)
    return parts


def _dims(text: str, whole_text: str) -> Shape:
    inner = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    if not inner.strip() and inner != text:
        return ()
    pieces = re.split(r"[x,]", inner)
    if not all(re.fullmatch(r"\s*\d+\s*", piece) for piece in pieces):
        raise argparse.ArgumentTypeError(
            f"'{whole_text}' has a size that is no whole number; type x:[1,3,224,224] or x:1x3x224x224"
        )
    return tuple(int(piece) for piece in pieces)


def value_range(text: str) -> tuple[str, tuple[float, float]]:
    """Least and largest value of one input or, without a name, of all: `x:[0,1]` or `[0,1]`."""
    name, _, inner = text.rpartition(":")
    ends = inner[1:-1].split(",") if inner[:1] == "[" and inner[-1:] == "]" else ()
    if len(ends) != 2:
        raise argparse.ArgumentTypeError(f"'{text}' is no range; type 'x:[0,1]', or '[0,1]' for all inputs")
    low, high = number(ends[0]), number(ends[1])
    if low > high:
        raise argparse.ArgumentTypeError(f"'{text}' begins above its end; type 'x:[{high:g},{low:g}]'")
    return name, (low, high)


def script(text: str) -> str:
    """A file of Polygraphy's --data-loader-script as a URI of data."""
    return f"script:{text}"


def statistic(text: str) -> tuple[str, str]:
    """An error statistic for one output or, with an empty name, for all: `mean` or `logits:mean`."""
    name, _, stat = text.rpartition(":")
    return name, stat


def bound(text: str) -> tuple[str, float]:
    """A number for one output or, with an empty name, for all: `25` or `logits:25`."""
    name, _, value = text.rpartition(":")
    return name, number(value)


def requirement(text: str) -> tuple[str, float]:
    """What must hold: `fp8>=0.95` or `fp8>=95%`."""
    found = re.fullmatch(r"\s*([a-z][a-z0-9_-]*)\s*>=\s*(\d*\.?\d+)\s*(%?)\s*", text)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is no requirement; type 'fp8>=0.95', with quotes")
    value = float(found[2]) / (100 if found[3] else 1)
    if value > 1:
        raise argparse.ArgumentTypeError(f"a share of {value} cannot be reached; type 'fp8>=0.95' or 'fp8>=95%'")
    return found[1], value


def pair(text: str) -> tuple[str, str]:
    """`K=V`."""
    key, equals, value = text.partition("=")
    if not (equals and key):
        raise argparse.ArgumentTypeError(f"'{text}' is no KEY=VALUE")
    return key, value


def pool(text: str) -> tuple[str, int]:
    """A memory pool and its limit in bytes: `workspace:4G`."""
    name, _, limit = text.rpartition(":")
    if name != "workspace":
        raise argparse.ArgumentTypeError(f"'{text}' is no known pool; type workspace:4G")
    return name, size(limit)
