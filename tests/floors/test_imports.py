"""The import budget: what only lists, explains or parses imports nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("numpy", "ml_dtypes", "safetensors", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt_rtx", "rich")

# Runs as __main__ and leaves the heavy modules that came along in a file: stdout and stderr are the command's.
PROBE = """
import json, runpy, sys
heavy, out, *argv = json.loads(sys.argv[1]), *sys.argv[2:]
status = 0
if argv:
    sys.argv = ["fp8graph", *argv]
    try:
        runpy.run_module("fp8graph", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        status = stop.code or 0
else:
    import fp8graph
with open(out, "w", encoding="utf-8") as file:
    json.dump({"status": status, "heavy": [name for name in heavy if name in sys.modules]}, file)
"""


def probe(out: Path, *argv: str, heavy: tuple[str, ...] = HEAVY) -> dict[str, object]:
    command = [sys.executable, "-c", PROBE, json.dumps(heavy), str(out), *argv]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert out.exists(), done.stdout + done.stderr
    found: dict[str, object] = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--help",),
        ("--version",),
        ("recipes",),
        ("recipes", "--json"),
        ("targets",),
        ("targets", "--json"),
        ("passes",),
        ("passes", "--json"),
        ("optimize", "--help"),
        ("diff", "--help"),
        ("report", "--help"),
    ],
    ids=lambda argv: " ".join(argv) or "import fp8graph",
)
def test_nothing_heavy_is_imported(tmp_path: Path, argv: tuple[str, ...]):
    assert probe(tmp_path / "found.json", *argv) == {"status": 0, "heavy": []}


def test_the_probe_sees_what_is_imported(tmp_path: Path):
    assert probe(tmp_path / "found.json", heavy=("json", "fp8graph", "numpy"))["heavy"] == ["json", "fp8graph"]
