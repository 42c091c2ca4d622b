"""What a message tells a user to type is there to be typed: commands, options, recipes, targets and passes that exist.

Texts are all strings of the product that speak to users (pages of codes, parts of errors, help) and the documents.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fp8graph.base.codes import CODES
from fp8graph.cli.main import COMMANDS
from fp8graph.cli.parser import Parser
from fp8graph.core import registry
from fp8graph.data import recipe
from tests.conftest import ROOT

PARSERS = {name: Parser(name, importlib.import_module(f"fp8graph.cli.commands.{name}")) for name in COMMANDS}
OPTIONS = {option for parser in PARSERS.values() for option in parser._option_string_actions}
# Options of other programs that our words name, with the program.
FOREIGN = {
    "--no-deps": "pip", "--upgrade": "pip", "--stronglyTyped": "trtexec", "--fp8": "trtexec", "--loadEngine": "trtexec",
    "--user": "pip", "--save-inputs": "polygraphy",
}  # fmt: skip
SPOKEN = {"what", "where", "why", "do", "help", "text", "description"}
OPTION = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*\w(?![\w-])")
COMMAND = re.compile(r"python -m fp8graph ([a-z][\w-]*)([^`\n;]*)")
RECIPE = re.compile(r"(?<![\w-])((?:fp8|mxfp\d|nvfp4|w4a8)-(?!graph)[a-z][a-z\d-]*)")


def constant(node: ast.AST) -> str:
    """The text of a string or f-string; what is filled in is a placeholder."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(constant(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


def spoken() -> Iterator[tuple[str, str]]:
    """Every text of the product with its place: strings after `do=` and its like, and what f-strings say."""
    for folder in ("fp8graph", "passes/fp8graph_passes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant | ast.JoinedStr) and "-" in (text := constant(node)):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text
    for code, page in CODES.items():
        for part in (page.title, page.means, page.why, page.do):
            yield f"page {code}", part
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


TEXTS = list(spoken())


def test_the_walk_finds_what_it_is_to_look_at():
    found = [text for _, text in TEXTS]
    assert any("--nodes-to-exclude" in text for text in found) and any(COMMAND.search(text) for text in found)
    assert len(TEXTS) > 1000


def foreign(place: str, text: str) -> bool:
    """Where options of other programs stand as they are: the names that we accept, what scripts emit, benchmarks."""
    declared = any(name in place for name in ("cli/groups.py", "cli/commands/", "cli/main.py", "engines/script.py"))
    return declared or "benchmarks/" in text


def test_every_option_that_is_named_exists():
    wrong = [
        (place, option)
        for place, text in TEXTS
        for option in OPTION.findall(text)
        if option.replace("_", "-") not in OPTIONS and option not in FOREIGN and not foreign(place, text)
    ]
    assert wrong == []


def test_every_command_that_is_named_exists_and_has_the_options_that_follow():
    wrong = []
    for place, text in TEXTS:
        for command, rest in COMMAND.findall(text):
            if command not in PARSERS:
                wrong.append((place, command))
                continue
            known = PARSERS[command]._option_string_actions
            wrong += [(place, f"{command} {option}") for option in OPTION.findall(rest) if option not in known]
    assert wrong == []


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_page_names_only_what_there_is(code):
    page = CODES[code]
    for quoted in re.findall(r"`([a-z]+) [^`]*`", f"{page.means} {page.why} {page.do}"):
        if quoted not in ("python", "pip"):
            assert quoted in COMMANDS, f"{code}: `{quoted} ...`"
    for command, rest in re.findall(rf"\b({'|'.join(COMMANDS)}) ((?:[A-Z]+ )?--[^.;`,]*)", page.do):
        known = PARSERS[command]._option_string_actions
        assert [option for option in OPTION.findall(rest) if option not in known] == [], f"{code}: {command} {rest}"


def test_every_recipe_and_pass_that_is_named_exists():
    names = {*recipe.names(), "fp8"}  # ModelOpt's --quantize-mode fp8
    wrong = [(place, name) for place, text in TEXTS for name in RECIPE.findall(text) if name.rstrip("-") not in names]
    passes = {item.name for item in registry.catalog()}
    for place, text in TEXTS:
        wrong += [(place, name) for name in re.findall(r"--passes '([a-z][a-z0-9-]+)", text) if name not in passes]
    assert [item for item in wrong if "{}" not in item[1]] == []


def test_every_code_that_is_named_has_a_page():
    wrong = [
        (place, code) for place, text in TEXTS for code in re.findall(r"\bFG[1-9]\d\d\b", text) if code not in CODES
    ]
    assert wrong == []


def test_files_of_advice_are_there():
    for place, text in TEXTS:
        if place.startswith("page"):
            for name in re.findall(r"docs/[\w-]+\.md", text):
                assert (ROOT / Path(name)).is_file(), (place, name)
