"""`import fp8graph` offers what it promises and loads nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import fp8graph

WAITING = "fp8graph.flow"  # names from there are tested where the module is there


def test_every_public_name_has_a_home_and_is_declared_to_type_checkers():
    assert set(fp8graph.__all__) == {*fp8graph._HOME, "__version__"}
    assert list(fp8graph.__all__) == sorted(fp8graph.__all__)
    tree = ast.parse(Path(fp8graph.__file__).read_text(encoding="utf-8"))
    declared = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    for name, home in fp8graph._HOME.items():
        assert declared[name] == home
        assert find_spec(home) is not None or home == WAITING


@pytest.mark.parametrize(
    "name", sorted(name for name, home in fp8graph._HOME.items() if home.startswith("fp8graph.base"))
)
def test_errors_are_public(name: str):
    assert isinstance(getattr(fp8graph, name), type)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="optimise"):
        fp8graph.optimise  # noqa: B018


def test_the_names_are_listed():
    assert set(fp8graph.__all__) <= set(dir(fp8graph))


def test_the_version_is_a_text():
    assert fp8graph.__version__[0].isdigit()


@pytest.mark.parametrize("argv", [["-c", "import fp8graph"], ["-m", "fp8graph", "--help"]])
def test_start_up_loads_not_even_argparse(argv: list[str]):
    done = subprocess.run([sys.executable, "-X", "importtime", *argv], capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "fp8graph" in loaded
    assert not loaded & {"argparse", "typing", "re", "dataclasses", "logging", "json", "numpy", "onnx", "rich"}
