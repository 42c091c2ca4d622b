"""A stand-in for `tensorrt` or `tensorrt_rtx` that has only what a table of `bindings/` declares.

Another name is an AttributeError. A call that no signature takes, in number, name or type of its arguments, is a
MisuseError; so is what the stand-in cannot judge. What is returned follows from the declared type: True, 0, "", [], or
an object of the class. A test that needs more says it in `answers`.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

TABLES = sorted((Path(__file__).parent / "bindings").glob("tensorrt-*.json"))
_ANY = ("object", "capsule", "CapsuleType", "typing_extensions.CapsuleType")
_PLAIN = {
    "int": int, "typing.SupportsInt": int, "float": (int, float), "typing.SupportsFloat": (int, float), "bool": bool,
    "str": str, "tuple": tuple, "list": list, "Dims": (tuple, list), "buffer": (bytes, bytearray, memoryview),
    "typing_extensions.Buffer": (bytes, bytearray, memoryview),
    "collections.abc.Buffer": (bytes, bytearray, memoryview),
}  # fmt: skip
_EMPTY = {"bool": True, "int": 0, "float": 0.0, "str": "", "None": None, "Dims": ()}


class MisuseError(AssertionError):
    """A call that the real package would not take."""


class Strict:
    """One stand-in. `calls` holds every call and every attribute set, as (class.name, arguments)."""

    def __init__(self, table: Path, answers: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self.table = json.loads(table.read_text())
        self.answers = dict(answers or {})
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.enums = {name: enum.Enum(name.rpartition(".")[2], items) for name, items in self.table["enums"].items()}
        for kind in self.enums.values():
            kind.__int__ = lambda self: self.value
        self.classes = {name: self._class(name, said) for name, said in self.table["classes"].items()}
        self.classes["ILogger"].Severity = self.enums["ILogger.Severity"]

    def module(self, name: str) -> ModuleType:
        """The module to put into sys.modules."""
        made = ModuleType(name)
        made.__version__ = self.table["version"]
        for said, kind in [*self.enums.items(), *self.classes.items()]:
            if "." not in said:
                setattr(made, said, kind)
        for said, signatures in self.table["functions"].items():
            setattr(made, said, self._function(said, said, signatures, bound=False))
        return made

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of `Class.method`, or the values given to `Class.attribute`."""
        return [arguments for said, arguments in self.calls if said == name]

    def make(self, name: str) -> Any:
        """An object of a class, as the package would return it."""
        kind = self.classes[name]
        return kind.__new__(kind)

    def _class(self, name: str, said: Mapping[str, Any]) -> type:
        bases = (bytes,) if name == "IHostMemory" else ()  # what has the buffer protocol
        members: dict[str, Any] = {
            method: self._function(f"{name}.{method}", method, signatures, bound=True)
            for method, signatures in said["methods"].items()
        }
        if "__init__" not in members:
            members["__init__"] = _no_constructor
        for attribute, declared in said["attributes"].items():
            members[attribute] = self._attribute(name, attribute, *declared.split(" ", 1))

        def set_declared(this: Any, attribute: str, value: Any) -> None:
            if attribute not in members and type(this).__name__ == name:  # classes of ours that derive from it may
                raise AttributeError(f"{name} has no attribute '{attribute}'")
            object.__setattr__(this, attribute, value)

        return type(name, bases, {**members, "__setattr__": set_declared})

    def _attribute(self, owner: str, name: str, access: str, kind: str) -> property:
        place = f"{owner}.{name}"

        def read(this: Any) -> Any:
            held = this.__dict__ if hasattr(this, "__dict__") else {}
            if place in held:
                return held[place]
            return self.answers[place](this) if place in self.answers else self._returned(kind, place)

        def write(this: Any, value: Any) -> None:
            if not self._takes(kind, value):
                raise MisuseError(f"{place} is a {kind}, not {value!r}")
            self.calls.append((place, (value,)))
            this.__dict__[place] = value

        return property(read, write if access == "read-write" else None)

    def _function(self, place: str, name: str, signatures: Sequence[str], *, bound: bool) -> Callable[..., Any]:
        parsed = list(_parsed(signatures))

        def call(*given: Any, **named: Any) -> Any:
            this, rest = (given[0], given[1:]) if bound else (None, given)
            kinds = [kind for arguments, kind in parsed if self._fits(arguments, rest, named)]
            if not kinds:
                raise MisuseError(f"{place} takes {' or '.join(signatures) or 'nothing known'}, not {rest} {named}")
            self.calls.append((place, (*rest, *named.values())))
            if place in self.answers:
                return self.answers[place](this, *rest, **named) if bound else self.answers[place](*rest, **named)
            return None if name == "__init__" else self._returned(kinds[0], place)

        return call

    def _fits(self, arguments: inspect.Signature, given: Sequence[Any], named: Mapping[str, Any]) -> bool:
        try:
            bound = arguments.bind(*given, **named)
        except TypeError:
            return False
        return all(self._takes(arguments.parameters[name].annotation, value) for name, value in bound.arguments.items())

    def _takes(self, kind: str, value: Any) -> bool:
        if kind in _ANY:
            return True
        if kind in _PLAIN:
            return isinstance(value, _PLAIN[kind])
        if kind in self.classes:
            return isinstance(value, self.classes[kind])
        if kind in self.enums:
            return isinstance(value, self.enums[kind])
        if found := re.fullmatch(r"(?:collections\.abc\.Sequence|typing\.List|[Ll]ist)\[(.+)\]", kind):
            return isinstance(value, (list, tuple)) and all(self._takes(found[1], item) for item in value)
        if re.fullmatch(r"[A-Z]\w+", kind):
            return False  # a class that is not in the table: nobody has one
        raise MisuseError(f"the table says {kind}: teach strict.py what that is")

    def _returned(self, kind: str, place: str) -> Any:
        kind = "IPluginRegistry" if place == "get_plugin_registry" else kind  # newer tables name no class
        if kind in _EMPTY:
            return _EMPTY[kind]
        if kind in self.classes:
            return self.make(kind)
        if kind in self.enums:
            return next(iter(self.enums[kind]))
        return object() if kind in _ANY else []


def _no_constructor(self: Any, *given: Any) -> None:
    raise MisuseError(f"{type(self).__name__} cannot be made, only got")


def _parsed(signatures: Sequence[str]) -> Iterator[tuple[inspect.Signature, str]]:
    for text in signatures:
        arguments, _, returned = text.rpartition(" -> ")
        function = ast.parse(f"def f{arguments or text}: pass").body[0]
        assert isinstance(function, ast.FunctionDef)
        said = function.args
        defaults = [inspect.Parameter.empty] * (len(said.args) - len(said.defaults)) + list(said.defaults)
        parameters = [
            inspect.Parameter(
                arg.arg if arg.arg not in ("self",) else "this",
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=default,
                annotation=ast.unparse(arg.annotation) if arg.annotation else "object",
            )
            for arg, default in zip(said.args, defaults, strict=True)
        ]
        yield inspect.Signature(parameters), returned or "None"
