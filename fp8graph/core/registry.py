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
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InternalError, UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.core.passes import PlanRule, Repair, RewritePass, pass_name

GROUP = "fp8graph.passes"
Pass = RewritePass | PlanRule | Repair
KINDS = (RewritePass, PlanRule, Repair)


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
        return ast.get_docstring(ast.parse(self.path.read_text(encoding="utf-8"))) or ""


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
    try:
        module = importlib.import_module(item.module)
    except Exception as error:  # another package's code may raise anything
        raise UsageError(
            f"the pass '{name}' cannot be imported",
            where=item.module,
            why=f"{type(error).__name__}: {error}",
            code="FG113",
        ) from error
    return instantiate(_class_in(module, item.name, item.module), options or {})


def from_file(spec: str) -> Pass:
    """The pass `path.py:Class`: the only way to name code. Raises UsageError FG113."""
    path, _, class_name = spec.rpartition(":")
    source = Path(path)
    if not path or not source.is_file():
        raise UsageError("the pass file is not there", where=spec, do="write --pass-file file.py:Class", code="FG113")
    module_spec = importlib.util.spec_from_file_location(f"fp8graph_pass_file_{source.stem}", source)
    try:
        if module_spec is None or module_spec.loader is None:
            raise ImportError(f"'{source.name}' is no .py file")
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UsageError(
            "the pass file cannot be imported", where=spec, why=f"{type(error).__name__}: {error}", code="FG113"
        ) from error
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, KINDS)):
        raise UsageError(f"'{class_name}' is no RewritePass, PlanRule or Repair", where=spec, code="FG113")
    return instantiate(cls, {})


def instantiate(cls: type[Pass], options: Mapping[str, Any]) -> Pass:
    """An instance with its fields from options; unknown ones are refused with the nearest name."""
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    given = {key.replace("-", "_"): value for key, value in options.items()}
    for key in given:
        if key not in known:
            raise UsageError(
                f"the pass {pass_name(cls)} has no option '{key.replace('_', '-')}'",
                do=did_you_mean(key, known),
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
    except (TypeError, ValueError) as error:  # an option is missing, or the class refuses it
        raise UsageError(f"the pass {pass_name(cls)} refuses its options", why=str(error), code="FG113") from error


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
        own = isinstance(value, type) and value.__module__ == module.__name__
        if own and issubclass(value, KINDS) and pass_name(value) == name:
            found: type[Pass] = value
            return found
    raise InternalError(f"the module {where} holds no class called like '{name}'", code="FG901")
