"""Files and functions stay small enough to be read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES = 500
FUNCTION_LINES = 60


def files(*folders: str) -> list[Path]:
    found = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert found, folders
    return found


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of code of every function in a file: what there is to follow, signature and docstring left out.

    A command is one function with a parameter for each option, one a line: they are read as a list, not as code.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, node.end_lineno - body[0].lineno + 1 if body else 0


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_python_file_is_long():
    lines = {
        short(path): len(path.read_bytes().splitlines()) for path in files("fp8graph", "passes", "samples", "tests")
    }
    assert {name: count for name, count in lines.items() if count > FILE_LINES} == {}


def test_no_function_is_long():
    long = {
        f"{short(path)}: {name}": count
        for path in files("fp8graph", "passes")
        for name, count in functions(path)
        if count > FUNCTION_LINES
    }
    assert long == {}


def test_the_product_does_not_import_torch():
    strays = []
    for path in files("fp8graph", "passes"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            strays += [f"{short(path)}:{node.lineno}" for name in names if name.partition(".")[0] == "torch"]
    assert strays == []
