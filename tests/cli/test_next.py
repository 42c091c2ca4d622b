"""What a command proposes to type next works on this machine and asks for the same; what it built for is said."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from fp8graph.cli.main import main
from fp8graph.engines import probe

ADA = {"name": "a GPU", "chip": "sm89"}


@pytest.mark.parametrize(
    ("target", "devices", "wanted"),
    [
        ("tensorrt-rtx", [], "tensorrt-rtx:sm89+sm120+sm121"),
        ("tensorrt-rtx", [ADA], "tensorrt-rtx"),
        ("tensorrt-rtx:sm120", [], "tensorrt-rtx:sm120"),
        ("tensorrt", [], "tensorrt"),  # builds for the machine's own GPU alone
    ],
)
def test_a_build_without_a_gpu_is_proposed_with_chips(cli, flow, plan, monkeypatch, target, devices, wanted):
    monkeypatch.setattr(probe, "devices", lambda: devices)
    usual = flow.answers["optimize"]

    def answer(asked):
        done = usual(asked)
        done.plan = replace(plan, target=target)
        return done

    flow.answers["optimize"] = answer
    said = cli("optimize", "m.onnx", "-o", "o.onnx").out
    assert said.splitlines()[-1] == f"next       python -m fp8graph build o.onnx -o o.engine --target {wanted} --attest"


@pytest.mark.parametrize(
    "asked",
    [
        [],
        ["--recipe", "mine.toml", "--target", "onnxruntime"],
        ["--plan", "a b.json"],
        ["--nodes-to-exclude", "a", "b*", "--high-precision-dtype", "fp16", "--fp8-everywhere", "--attention", "off"],
        ["--passes", "keep-router{steps=2}", "--pass-file", "p.py:Mine"],
    ],
)
def test_ranges_are_proposed_for_what_they_were_observed_for(cli, flow, asked):
    said = cli("calibrate", "m.onnx", "-o", "r.json", "--data", "d.npz", *asked)
    line = said.out.splitlines()[-1].removeprefix("next").strip()
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "fp8graph"] and words[4:8] == ["m.onnx", "-o", "OUT", "--ranges"]
    assert main(words[3:]) == 0
    observed, optimized = flow.calls["calibrate"], flow.calls["optimize"]
    alike = {name for name in observed if name in optimized} - {"output", "data", "progress", "force"}
    assert {name: observed[name] for name in alike} == {name: optimized[name] for name in alike}


def test_calibrate_tells_what_there_is_to_say_about_the_data(cli, flow):
    done = cli("calibrate", "m.onnx", "-o", "r.json", "--data", "d.npz", "--json")
    assert [item["code"] for item in done.json["findings"]] == ["FG122"]
    assert "warning[FG122]: 2 rows are left out" in cli("calibrate", "m.onnx", "-o", "r.json", "--data", "d.npz").out


ONE = {"image": {"min": [1, 3, 8, 8], "opt": [1, 3, 8, 8], "max": [1, 3, 8, 8]}}
WIDE = {"image": {"min": [1, 8], "opt": [2, 8], "max": [4, 8]}, "n": {"min": [], "opt": [], "max": []}}


@pytest.mark.parametrize(
    ("profiles", "says"),
    [
        ([ONE], "shapes     image 1x3x8x8\n"),
        ([WIDE], "shapes     image 1x8 to 4x8, most often 2x8; n ()\n"),
        (
            [ONE, WIDE],
            "shapes     profile 0: image 1x3x8x8\n           profile 1: image 1x8 to 4x8, most often 2x8; n ()\n",
        ),
    ],
)
def test_the_shapes_that_an_engine_was_built_for_are_said(cli, flow, profiles, says):
    usual = flow.answers["build"]

    def answer(asked):
        done = usual(asked)
        done.manifest = {**done.manifest, "profiles": profiles}
        return done

    flow.answers["build"] = answer
    assert says in cli("build", "m.onnx", "-o", "m.engine", "--target", "tensorrt-rtx:sm89").out


def test_onnx_runtimes_reason_is_told_to_its_end(cli, flow):
    from fp8graph.data.comparison import DefaultSession

    usual = flow.answers["optimize"]
    reason = "This is an invalid model. " + "Type Error: of an operator, " * 12 + "and that was all"

    def answer(asked):
        done = usual(asked)
        done.default_session = DefaultSession(False, reason, {"session.disable_quant_qdq": "1"})
        return done

    flow.answers["optimize"] = answer
    said = cli("optimize", "m.onnx", "-o", "o.onnx").out
    assert reason in " ".join(said.split()) and max(map(len, said.splitlines())) < 120


HEAVY = ("dataclasses", "inspect", "pathlib", "logging", "tempfile", "difflib", "json", "hashlib", "shutil")


def test_help_of_a_command_imports_next_to_nothing():
    """Measured: of `optimize --help` these took three quarters of the time."""
    import subprocess
    import sys

    code = (
        "import sys; from fp8graph.cli.main import main; status = main(['optimize', '--help'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    # -S -E: what an installation adds to start-up is not ours; the path is handed over instead.
    command = [sys.executable, "-S", "-E", "-c", f"import sys; sys.path = {sys.path}; " + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
