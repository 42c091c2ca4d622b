"""Samples from a function of the user's own: `script:file.py:load_data`, which takes nothing and yields feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fp8graph.base import userfile
from fp8graph.base.errors import Fp8GraphError, InputError, UsageError
from fp8graph.base.names import did_you_mean

PREFIX, DEFAULT = "script:", "load_data"
YIELD = "yield mappings of arrays by input name, such as {'x': array}"


def file_of(uri: str) -> Path:
    """The file that a `script:` URI names."""
    return userfile.split(uri.removeprefix(PREFIX), DEFAULT)[0]


def label_of(uri: str) -> str:
    """The URI without folders, for plans and ranges."""
    path, name = userfile.split(uri.removeprefix(PREFIX), DEFAULT)
    return f"{PREFIX}{path.name}:{name}"


def function_of(uri: str) -> Callable[[], Iterator[Any]]:
    """The function; each call starts anew. The file is run once.

    Raises InputError FG108 for a file that is missing or cannot be imported, or a function that fails; UsageError
    FG101 for a name that is not in it.
    """
    path, name = userfile.split(uri.removeprefix(PREFIX), DEFAULT)
    where = f"--data {uri}"
    if not path.is_file():
        raise InputError("the data script does not exist", where=where, do="check the path", code="FG108")
    try:
        module = userfile.run(path, f"fp8graph_data_script_{path.stem}")
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(
            "the data script cannot be imported", where=where, why=_told(error), do=f"python {path}", code="FG108"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        do = did_you_mean(name, own) if own else f"define {name}(), which yields arrays by input name"
        raise UsageError(f"the data script has no function '{name}'", where=where, do=do, code="FG101")
    return lambda: _feeds(function, where)


def _feeds(function: Callable[[], Any], where: str) -> Iterator[Any]:
    """What the function gives, one feed after the other."""
    try:
        made = function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise _failed(error, where, 0) from error
    if not isinstance(made, Iterable):
        why = f"it gave {type(made).__name__}"
        what = "a function of data gives an iterable of feeds"
        raise InputError(what, where=where, why=why, do=YIELD, code="FG107")
    items, count = iter(made), 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Fp8GraphError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise _failed(error, where, count) from error
        yield item
        count += 1


def _failed(error: BaseException, where: str, count: int) -> InputError:
    place = f"{where}, sample {count}"
    return InputError("the data script failed", where=place, why=_told(error), do="mend the function", code="FG108")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
