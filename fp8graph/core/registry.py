"""One registry for passes and rules: found through entry points, listed without being imported.

The entry point `fp8graph.passes` names a package; each of its modules holds one class: `fold_relu_scale.py` holds
`FoldReluScale`, called `fold-relu-scale`. `acme:fold-relu-scale` names an owner's pass where two own the name.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeGuard

from fp8graph.base import userfile
from fp8graph.base.errors import InternalError, UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.core.passes import PlanRule, Repair, RewritePass, pass_name, pass_name_of

GROUP = "fp8graph.passes"
Pass = RewritePass | PlanRule | Repair
KINDS = (RewritePass, PlanRule, Repair)


@dataclass(frozen=True)
class PassOption:
    """One option of a pass: its name as typed, type, default (empty: it must be given), and what it means."""

    name: str
    type: str
    default: str
    means: str


@dataclass(frozen=True)
class PassEntry:
    """One pass that is there to be used. `summary` is the first line of its module's docstring."""

    name: str
    owner: str
    module: str
    path: Path

    @property
    def summary(self) -> str:
        """First line of the docstring, read from the source without importing it."""
        return (self.page.splitlines() or [""])[0]

    @property
    def page(self) -> str:
        """The module's docstring."""
        return ast.get_docstring(self._source) or ""

    @property
    def options(self) -> list[PassOption]:
        """The class's fields with their lines of its docstring (`name   meaning`), read without importing it."""
        for node in self._source.body:
            if isinstance(node, ast.ClassDef) and pass_name_of(node.name) == self.name:
                return [_option(item, ast.get_docstring(node) or "") for item in node.body if _is_field(item)]
        return []

    @property
    def _source(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))


def _is_field(item: ast.stmt) -> TypeGuard[ast.AnnAssign]:
    return isinstance(item, ast.AnnAssign) and not ast.unparse(item.annotation).startswith("ClassVar")


def _option(item: ast.AnnAssign, docstring: str) -> PassOption:
    field = ast.unparse(item.target)
    found = re.search(rf"^{re.escape(field)} {{2,}}(.+(?:\n +\S.*)*)", docstring, re.MULTILINE)
    means = " ".join(found[1].split()) if found else ""
    default = ast.unparse(item.value) if item.value is not None else ""
    return PassOption(field.replace("_", "-"), ast.unparse(item.annotation), default, means)


@cache
def catalog() -> tuple[PassEntry, ...]:
    """Every pass of every installed owner, sorted by name and owner."""
    found = []
    for point in entry_points(group=GROUP):
        spec = importlib.util.find_spec(point.value)
        for folder in (spec.submodule_search_locations if spec is not None else None) or ():
            for path in sorted(Path(folder).glob("*.py")):
                if not path.name.startswith("_"):
                    name = path.stem.replace("_", "-")
                    found.append(PassEntry(name, point.name, f"{point.value}.{path.stem}", path))
    if not any(entry.owner == "fp8graph" for entry in found):
        raise InternalError(
            "the built-in passes are not installed",
            why=f"no entry point of group {GROUP} names them",
            do="pip install -e .",
            code="FG900",
        )
    return tuple(sorted(set(found), key=lambda entry: (entry.name, entry.owner)))


def entry(name: str) -> PassEntry:
    """The pass of this name. Raises UsageError FG113 for an unknown name, or one that two owners have."""
    owner, _, bare = name.rpartition(":")
    matches = [item for item in catalog() if item.name == bare and owner in ("", item.owner)]
    if not matches:
        raise UsageError(
            f"there is no pass '{name}'", do=did_you_mean(bare, (item.name for item in catalog())), code="FG113"
        )
    if len(matches) > 1:
        owners = ", ".join(item.owner for item in matches)
        raise UsageError(
            f"two owners have a pass '{name}': {owners}", do=f"write {matches[0].owner}:{name}", code="FG113"
        )
    return matches[0]


def create(name: str, options: Mapping[str, Any] | None = None) -> Pass:
    """The pass of this name with these options (spelt with - or _). Raises UsageError FG113."""
    item = entry(name)
    return instantiate(_class_in(_imported(item), item.name, item.module), options or {})


def _imported(item: PassEntry) -> Any:
    try:
        return importlib.import_module(item.module)
    except Exception as error:  # another package's code may raise anything
        raise UsageError(
            f"the pass '{item.name}' cannot be imported",
            where=item.module,
            why=f"{type(error).__name__}: {error}",
            do=f"leave it out, or update the package of {item.owner}",
            code="FG113",
        ) from error


def file_of(spec: str) -> Path:
    """The file of `path.py:Class`."""
    return userfile.split(spec)[0]


def from_file(spec: str) -> Pass:
    """The pass `path.py:Class`: the only way to name code. The file is run once. Raises UsageError FG113."""
    source, class_name = userfile.split(spec)
    if not source.is_file() or ":" not in spec:
        what = "the pass file, or the name of the class in it, is not there"
        raise UsageError(what, where=spec, do="write --pass-file file.py:Class", code="FG113")
    try:
        module = userfile.run(source, f"fp8graph_pass_file_{source.stem}")
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UsageError(
            "the pass file cannot be imported",
            where=spec,
            why=f"{type(error).__name__}: {error}",
            do=f"make it importable: python {source}",
            code="FG113",
        ) from error
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, KINDS)):
        held = [item.__name__ for item in vars(module).values() if _is_own_pass(item, module)]
        raise UsageError(
            f"'{class_name}' is no RewritePass, PlanRule or Repair",
            where=spec,
            why=f"the file holds {', '.join(held)}" if held else "the file holds no class of these",
            do=f"write --pass-file {source}:{held[0]}" if held else "derive a class from one of them",
            code="FG113",
        )
    return instantiate(cls, {})


def instantiate(cls: type[Pass], options: Mapping[str, Any]) -> Pass:
    """An instance with its fields from options; unknown ones are refused with the nearest name."""
    known: dict[str, Any] = {field.name: field for field in fields(cls)} if is_dataclass(cls) else {}
    given = {key.replace("-", "_"): value for key, value in options.items()}
    for key in given:
        if key not in known:
            raise UsageError(
                f"the pass {pass_name(cls)} has no option '{key.replace('_', '-')}'",
                why="" if is_dataclass(cls) else "its class is no dataclass, whose fields would be its options",
                do=did_you_mean(key, known) if known else "leave the options out",
                code="FG113",
            )
        kind = type(known[key].default)
        if kind is float and type(given[key]) is int:
            given[key] = float(given[key])
        if kind in (bool, int, float, str) and type(given[key]) is not kind:
            raise UsageError(
                f"the option '{key.replace('_', '-')}' of the pass {pass_name(cls)} takes {kind.__name__}",
                why=f"got {given[key]!r}",
                code="FG113",
            )
    try:
        return cls(**given)
    except Exception as error:  # an option is missing, or the class refuses it; its code may raise anything
        raise UsageError(
            f"the pass {pass_name(cls)} cannot be made with {_told(given)}",
            where=f"class {cls.__name__}",
            why=f"{type(error).__name__}: {error}",
            do=f"give its options: --passes '{pass_name(cls)}{{option=value}}'"
            if known
            else "give every field a default, and define what its base class asks for",
            code="FG113",
        ) from error


def _told(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', '-')}={value}" for name, value in options.items()) or "no options"


_SPEC = re.compile(r"\s*(?P<name>[\w:.-]+)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?:,|$)")


def parse_specs(text: str) -> list[Pass]:
    """Passes from a string such as `a,b{x=2}`. Raises UsageError FG113 with the place that cannot be read."""
    passes, position = [], 0
    while position < len(text):
        match = _SPEC.match(text, position)
        if match is None:
            raise UsageError(
                "the list of passes cannot be read",
                where=f"--passes '{text}', at '{text[position : position + 20]}'",
                do="write 'name,other{option=value}'",
                code="FG113",
            )
        options = {}
        for part in filter(None, (item.strip() for item in (match["options"] or "").split(","))):
            key, _, value = part.partition("=")
            options[key.strip()] = _value(value.strip())
        passes.append(create(match["name"], options))
        position = match.end()
    return passes


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)


def _class_in(module: Any, name: str, where: str) -> type[Pass]:
    for value in vars(module).values():
        if _is_own_pass(value, module) and pass_name(value) == name:
            found: type[Pass] = value
            return found
    raise InternalError(f"the module {where} holds no class called like '{name}'", code="FG901")


def _is_own_pass(value: Any, module: Any) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__ and issubclass(value, KINDS)
