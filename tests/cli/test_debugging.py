"""The command `debug precision`: what it hands on, and what it refuses."""

from __future__ import annotations

import pytest

from fp8graph.flow.debugging import Debugged, Step

CALL = ("debug", "precision", "m.onnx", "--plan", "p.json", "-o", "keep.toml")


@pytest.fixture
def found(flow, plan):
    flow.answers["debug_precision"] = Debugged(
        {"conv2": "without it: y: SQNR 9.00 dB is below 20 dB"},
        plan,
        2,
        (Step(("conv2", "logits"), True, "equal"), Step((), False, "y: SQNR 9.00 dB is below 20 dB")),
    )
    return flow


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ([], {"plan": "p.json", "output": "keep.toml", "mode": "bisect", "dir": None, "check": None}),
        (["--mode", "linear", "--dir", "reverse", "--resume"], {"mode": "linear", "dir": "reverse", "resume": True}),
        (["--min-sqnr", "20", "--data", "d.npz"], {"min_sqnr": {"": 20.0}, "data": ("d.npz",)}),
        (["--check", "python", "e.py"], {"check": ("python", "e.py")}),
        (
            ["--check", "e", "--json", "-h", "--my_own", "--", "--check", "x"],
            {"check": ("e", "--json", "-h", "--my_own", "--", "--check", "x")},
        ),
        (
            ["--fail_code", "1", "2", "--fail-regex", "a.*b", "--check", "e"],
            {"fail_code": (1, 2), "fail_regex": ("a.*b",)},
        ),
        (["--check"], {"check": ()}),
    ],
)
def test_debug_hands_on_what_was_asked(cli, found, words, asked):
    done = cli(*CALL, *words)
    assert done.status == 0, done.err
    assert found.calls["debug_precision"].items() >= asked.items()


def test_the_result_names_what_is_kept_and_every_step(cli, found):
    done = cli(*CALL, "--json", "--check", "e")
    assert done.json["result"] == {
        "keep": [{"key": "conv2", "op_type": "Conv", "why": "without it: y: SQNR 9.00 dB is below 20 dB"}],
        "quantized": 2,
        "units": 2,
        "steps": [
            {"kept": ["conv2", "logits"], "good": True, "said": "equal"},
            {"kept": [], "good": False, "said": "y: SQNR 9.00 dB is below 20 dB"},
        ],
    }
    text = cli(*CALL, "--check", "e").out
    assert "optimize m.onnx -o OUT --recipe keep.toml --target tensorrt-rtx:sm89 --data FILE" in text


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["debug"], "needs to know what to search for"),
        (["debug", "accuracy", "m.onnx"], "'debug' does not know 'accuracy'"),
        (["debug", "precision", "--plan", "p.json"], "needs one MODEL"),
        (["debug", "precision", "m.onnx", "--plan", "p.json"], "needs a name for what it writes"),
        (["debug", "precision", "m.onnx", "-o", "k.toml"], "needs a plan"),
        ([*CALL, "--mode", "bisekt"], "bisekt"),
        ([*CALL, "--chekc", "python"], "did you mean '--check'?"),
        ([*CALL, "--fail-code", "x", "--check", "e"], "--fail-code"),
    ],
)
def test_wrong_calls_are_status_2(cli, found, words, what):
    done = cli(*words)
    assert done.status == 2
    assert what in done.err
