"""The wheel is whole: it lists recipes, targets and passes in an environment that holds nothing else."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "fp8graph", ROOT / "passes" / "fp8graph_passes")
DATA = {".py", ".toml", ".json", ".typed"}


def run(*argv: object, cwd: Path) -> str:
    """stdout of a command that ends with status 0, run where no source tree is in sight."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(arg) for arg in argv]
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def empty_environment(folder: Path) -> Path:
    """The interpreter of a virtual environment without a single package, pip included."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def install(python: Path, *what: object) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *what, cwd=python.parent)


def contents() -> set[str]:
    """What of the source tree belongs into the wheel, as its paths there."""
    return {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.suffix in DATA and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by hatchling alone, without the network, from a copy: the build leaves no trace in the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("fp8graph", "passes"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", cwd=tree)
    (built,) = (tree / "dist").glob("fp8graph-*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and none of its dependencies."""
    python = empty_environment(tmp_path_factory.mktemp("bare") / "venv")
    install(python, "--no-deps", "--no-index", wheel)
    return python


def listed(python: Path, command: str, cwd: Path) -> set[str]:
    document = json.loads(run(python, "-I", "-m", "fp8graph", command, "--json", cwd=cwd))
    assert document["schema"] == "fp8graph.result/1"
    assert document["command"] == command
    assert document["status"] == 0
    rows = document["result"][command]
    assert all(row["name"] and row["summary"] for row in rows)
    return {row["name"] for row in rows}


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == contents()
    assert "fp8graph/py.typed" in held


def test_recipes_are_listed_without_dependencies(bare: Path, tmp_path: Path):
    assert "fp8-default" in listed(bare, "recipes", tmp_path)


def test_targets_are_listed_without_dependencies(bare: Path, tmp_path: Path):
    assert {"tensorrt-rtx", "onnxruntime", "reference"} <= listed(bare, "targets", tmp_path)


def test_every_pass_file_is_listed_without_dependencies(bare: Path, tmp_path: Path):
    names = {path.stem.replace("_", "-") for path in PACKAGES[1].glob("*.py") if not path.stem.startswith("_")}
    assert names
    assert names <= listed(bare, "passes", tmp_path)


def test_the_console_script_answers_without_dependencies(bare: Path, tmp_path: Path):
    assert "optimize" in run(bare.with_name("fp8graph"), "--help", cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_with_its_dependencies_quantizes_the_sample(wheel: Path, tmp_path: Path):
    python = empty_environment(tmp_path / "venv")
    install(python, wheel)
    digits, out = ROOT / "samples" / "digits", tmp_path / "cnn.fp8.onnx"
    argv = ("optimize", digits / "cnn.onnx", "-o", out, "--data", digits / "calibration.npz", "--json")
    document = json.loads(run(python, "-I", "-m", "fp8graph", *argv, cwd=tmp_path))
    assert document["status"] == 0
    assert document["result"]["planned"] > 0
    assert out.is_file()
    assert Path(f"{out}.plan.json").is_file()
