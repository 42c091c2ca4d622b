"""The floors hold: import-linter's contracts are kept, and each of them notices a violation planted in a copy."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ROOT / "fp8graph"
PASSES = ROOT / "passes" / "fp8graph_passes"

# Third parties by folder, as the floors table has them; a folder not named has the standard library only.
ARRAYS = {"numpy", "ml_dtypes", "safetensors"}
MODELS = ARRAYS | {"onnx", "onnx_ir", "onnxscript", "onnx_graphsurgeon", "google"}  # google: onnx's own protobuf
RUNTIMES = {"onnxruntime", "tensorrt", "tensorrt_rtx", "openvino"}
ALLOWED = {
    "numerics": ARRAYS,
    "graph": MODELS,
    "core": MODELS,
    "fp8graph_passes": MODELS,
    "runners": MODELS | RUNTIMES | {"cuda"},
    "calibrate": MODELS | {"ray"},
    "compare": MODELS,
    "engines": MODELS | RUNTIMES,
    "importers": MODELS,
    "search": ARRAYS,
    "flow": MODELS,
    "testing": MODELS,
    "cli": ARRAYS | {"rich"},
}
# import names whose distribution is called otherwise
DISTRIBUTION = {
    "onnx_ir": "onnx-ir",
    "onnx_graphsurgeon": "onnx-graphsurgeon",
    "tensorrt_rtx": "tensorrt-rtx",
    "cuda": "cuda-python",
    "google": "onnx",
}
OWN = {"fp8graph", "fp8graph_passes"}


def lint(tree: Path) -> "subprocess.CompletedProcess[str]":
    """import-linter on the packages of `tree`, which win over installed ones."""
    paths = os.pathsep.join([str(tree), str(tree / "passes")])
    code = "from importlinter.cli import lint_imports_command as main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--no-logo", "--config", str(tree / "pyproject.toml")],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": paths, "NO_COLOR": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a file, lazy and for type checking, too; name is "" for `import m`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.module or "", alias.name) for alias in node.names)


def sources() -> list[Path]:
    return sorted([*PRODUCT.rglob("*.py"), *PASSES.rglob("*.py")])


def folder(path: Path) -> str:
    """The row of the floors table that a file belongs to."""
    if path.is_relative_to(PASSES):
        return PASSES.name
    first = path.relative_to(PRODUCT).parts[0]
    return first.removesuffix(".py")


def third_parties(path: Path) -> set[str]:
    roots = {module.partition(".")[0] for module, _ in imports(path)}
    return roots - OWN - set(sys.stdlib_module_names)


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_contract_is_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and their contracts in a folder of their own, free to be spoiled."""
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PRODUCT, tmp_path / "fp8graph", ignore=no_caches)
    shutil.copytree(ROOT / "passes", tmp_path / "passes", ignore=no_caches)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("where", "statement", "said"),
    [
        ("fp8graph/base", "import fp8graph.core", "fp8graph.base.planted -> fp8graph.core"),
        ("fp8graph/numerics", "from fp8graph import graph", "fp8graph.numerics.planted -> fp8graph.graph"),
        ("fp8graph/compare", "import fp8graph.engines", "fp8graph.compare.planted -> fp8graph.engines"),
        ("fp8graph/data", "import numpy", "fp8graph.data.planted -> numpy"),
        ("fp8graph/report", "import fp8graph.graph", "fp8graph.report.planted -> fp8graph.graph"),
        ("fp8graph/core", "import fp8graph_passes", "fp8graph.core.planted -> fp8graph_passes"),
        ("passes/fp8graph_passes", "import fp8graph.runners", "fp8graph_passes.planted -> fp8graph.runners"),
    ],
)
def test_a_planted_lazy_import_is_caught(copy: Path, where: str, statement: str, said: str):
    (copy / where / "planted.py").write_text(f"def late():\n    {statement}\n", encoding="utf-8")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout


def test_a_folder_without_a_floor_is_caught(copy: Path):
    (copy / "fp8graph" / "attic").mkdir()
    (copy / "fp8graph" / "attic" / "__init__.py").touch()
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "fp8graph.attic" in done.stdout


def test_each_folder_imports_only_the_third_parties_of_its_floor():
    strays = {
        short(path): sorted(extra)
        for path in sources()
        if (extra := third_parties(path) - ALLOWED.get(folder(path), set()))
    }
    assert strays == {}


def test_every_third_party_is_declared():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {line.partition(";")[0].partition(">")[0].strip() for line in lines}
    used = {root for path in sources() for root in third_parties(path)}
    assert {root for root in used if DISTRIBUTION.get(root, root) not in declared} == set()


def test_lower_floors_do_not_use_the_facade():
    """`fp8graph.optimize` reaches every floor, lazily, which import-linter does not see."""
    submodules = {p.stem for p in PRODUCT.iterdir()} | {"__version__"}
    strays = [
        f"{short(path)}: {module} {name}".rstrip()
        for path in sources()
        if path.parent != PRODUCT and folder(path) != "cli"
        for module, name in imports(path)
        if module == "fp8graph" and name not in submodules
    ]
    assert strays == []
