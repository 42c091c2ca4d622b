"""What a search has found as a recipe, for `optimize --recipe`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fp8graph.data import recipe as recipes
from fp8graph.data.plan import OpKey, Plan


def keep_recipe(plan: Plan, lines: Sequence[tuple[OpKey, str]]) -> str:
    """The plan's recipe as TOML, with a [[keep]] line for each reason and the keys that have it.

    A packaged recipe is extended by its name; any other is written out in full.
    """
    said = dict(plan.recipe)
    name = str(said.get("name", ""))
    if name in recipes.names() and recipes.load(name).to_json() == said:
        text = f"extends = {_value(name)}\n"
    else:
        text = _tables({**said, "keep": []})
        text += "".join(_line("keep", line) for line in said.get("keep", ()))
    by_reason: dict[str, list[str]] = {}
    for key, why in lines:
        by_reason.setdefault(why, []).append(f"key:{key}")
    return text + "".join(_line("keep", {"ops": keys, "why": why}) for why, keys in by_reason.items())


def _tables(table: Mapping[str, Any], path: str = "") -> str:
    """A mapping as TOML: its values first, then its tables and lists of tables."""
    text = "".join(f"{key} = {_value(value)}\n" for key, value in table.items() if not _is_table(value) and value != [])
    for key, value in table.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            text += f"\n[{inner}]\n{_tables(value, inner)}"
        elif _is_table(value):
            text += "".join(_line(inner, item) for item in value)
    return text


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )


def _line(path: str, item: Mapping[str, Any]) -> str:
    return f"\n[[{path}]]\n{_tables(item, path)}"


def _value(value: Any) -> str:
    """A text, number, truth or list as TOML writes it: as JSON does, but for what JSON leaves as it is."""
    if isinstance(value, list) and len(value) > 1:
        return "[\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
