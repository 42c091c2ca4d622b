"""What README.md and docs/ show works: every block of commands and of Python runs, every link leads somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\w+\.py)\n")  # a block that begins so is a file to write, not a script to run
_LINK = re.compile(r"\]\(([^)#:]+)\)")


def run(command: list[str], folder: Path) -> None:
    # `python` in a block is the interpreter of these tests.
    env = os.environ | {"PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])}
    done = subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\nstatus {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like the root of the project: with the samples, the benchmarks, and a `python`."""
    for name in ("samples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="needs bash")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_works(page: Path, folder: Path):
    text = page.read_text(encoding="utf-8")
    module, extra = ("openvino", "openvino") if page.stem == "openvino" else ("tensorrt_rtx", "rtx")
    if " build " in text and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install -e '.[{extra}]'")
    blocks = [block for block in _BLOCK.findall(text) if block[0] in ("sh", "python")]
    assert blocks
    for kind, body in blocks:
        if kind == "sh":
            run(["bash", "-euo", "pipefail", "-c", body], folder)
        elif name := _FILE.match(body):
            (folder / name[1]).write_text(body, encoding="utf-8")
        else:
            run([sys.executable, "-c", body], folder)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path):
    missing = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert missing == []
