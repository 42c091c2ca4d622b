"""Every version of tensorrt-rtx on the registry: the table of docs/build.md is what its command prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def rows(text: str) -> dict[tuple[str, str], str]:
    """What `attest` says, by version and sample."""
    found = re.findall(r"^\| (\d[\d.]+) \| (\w+) \| .* \| (status .*) \|$", text, re.MULTILINE)
    return {(version, sample): said for version, sample, said in found}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the wheels were tried on Linux")
def test_every_version_attests_as_the_page_says(tmp_path: Path):
    call = [sys.executable, str(ROOT / "benchmarks" / "versions.py"), "--folder", str(tmp_path)]
    said = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
    page = rows((ROOT / "docs" / "build.md").read_text(encoding="utf-8"))
    assert len(page) >= 6
    assert {key: value for key, value in rows(said).items() if key in page} == page
