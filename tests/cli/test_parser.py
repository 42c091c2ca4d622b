"""What may be typed, and what is said about what may not."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

from fp8graph.cli import commands
from fp8graph.cli.main import COMMANDS, COMMON_FLAGS, COMMON_VALUED, split
from fp8graph.cli.parser import Parser
from fp8graph.data.plan import Profile

FOLDER = Path(commands.__file__).parent


def parser(command: str) -> Parser:
    return Parser(command, importlib.import_module(f"fp8graph.cli.commands.{command}"))


def test_every_command_is_a_file_and_its_line_in_the_help_is_its_docstring():
    files = {path.stem: path for path in FOLDER.glob("*.py") if path.stem != "__init__"}
    assert set(files) == set(COMMANDS)
    for name, path in files.items():
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
        assert first == COMMANDS[name]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_declares_the_common_options_and_no_others_by_these_names(command: str):
    common = next(group for group in parser(command)._action_groups if group.title == "common")
    valued = {name for action in common._group_actions if action.nargs != 0 for name in action.option_strings}
    flags = {name for action in common._group_actions if action.nargs == 0 for name in action.option_strings}
    assert (flags, valued) == (COMMON_FLAGS, COMMON_VALUED)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_that_parse(cli, command: str):
    done = cli(command, "--help")
    assert done.status == 0
    assert done.err == ""
    assert f"usage: python -m fp8graph {command}" in done.out
    for line in importlib.import_module(f"fp8graph.cli.commands.{command}").EXAMPLES:
        assert line in done.out
        words = line.partition(" > ")[0].replace("'", "").split()
        assert words[0] == command
        parser(command).parse(words[1:])


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["optimise-everything"], "'optimize'"),
        (["optimise"], "'optimize'"),
        (["atest"], "'attest'"),
        (["optimize", "m.onnx", "--ouput", "o"], "'--output'"),
        (["optimize", "m.onnx", "-o", "o", "--node-to-exclude", "x"], "'--nodes-to-exclude'"),
        (["build", "m.onnx", "--min-shape", "x:1"], "'--min-shapes'"),
        (["compare", "a", "b", "--min-snqr=3"], "'--min-sqnr'"),
    ],
)
def test_an_unknown_name_is_status_2_with_the_nearest_one(cli, argv: list[str], near: str):
    done = cli(*argv)
    assert done.status == 2
    assert done.out == ""
    assert done.err.startswith("error[FG101]: there is no ")
    assert f"did you mean {near}?" in done.err


def test_an_option_unlike_any_other_points_to_the_help(cli):
    assert "python -m fp8graph check --help" in cli("check", "m.onnx", "--zzz").err


@pytest.mark.parametrize("option", ["--forc", "--verb", "--nodes-to-e", "--plan-onl", "--recip=x"])
def test_abbreviations_are_refused(cli, flow, option: str):
    done = cli("optimize", "m.onnx", "-o", "o.onnx", option)
    assert done.status == 2
    assert "there is no option" in done.err
    assert flow.calls == {}


def test_underscores_are_accepted_for_dashes(cli, flow):
    done = cli("optimize", "m.onnx", "-o", "o.onnx", "--op_types_to_exclude", "Mat_Mul", "--high_precision_dtype=fp16")
    assert done.status == 0, done.err
    assert flow.calls["optimize"]["op_types_to_exclude"] == ("Mat_Mul",)
    assert flow.calls["optimize"]["high_precision_dtype"] == "fp16"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["optimize", "m", "--json"], ("optimize", ["m", "--json"])),
        (["--json", "optimize", "m"], ("optimize", ["--json", "m"])),
        (["-vv", "--color", "never", "--log_file", "f", "check", "m"],
         ("check", ["-vv", "--color", "never", "--log_file", "f", "m"])),
        (["--progress=plain", "-q", "doctor"], ("doctor", ["--progress=plain", "-q"])),
        (["--log-file"], (None, ["--log-file"])),
        ([], (None, [])),
        (["--data", "x", "optimize"], ("--data", ["x", "optimize"])),
    ],
)  # fmt: skip
def test_common_options_stand_before_or_after_the_command(argv, expected):
    assert split(argv) == expected


def test_other_options_before_the_command_are_told(cli):
    done = cli("--data", "c.npz", "optimize", "m.onnx")
    assert done.status == 2
    assert "'--data' stands before the command" in done.err


def test_no_command_is_status_2_and_prints_the_help(cli):
    done = cli()
    assert (done.status, done.out) == (2, "")
    assert all(name in done.err for name in COMMANDS)
    assert cli("--json").json["error"]["what"] == "no command was given"


def test_help_and_version_are_status_0(cli):
    assert "optimize" in cli("--help").out
    assert cli("--version").out == cli("check", "--version").out
    assert cli("--version").out.startswith("fp8graph ")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--onnx-path", "m.onnx", "--output-path", "o"], "model", "m.onnx"),
        (["--onnx", "m.onnx", "-o", "o"], "model", "m.onnx"),
        (["m.onnx", "--output_path", "o"], "output", "o"),
        (["m.onnx", "-o", "o", "--calibration_data_path", "c.npz"], "data", ("c.npz",)),
        (["m.onnx", "-o", "o", "--load-inputs", "c.json"], "data", ("c.json",)),
        (["m.onnx", "-o", "o", "--data", "a.npz", "b.npz"], "data", ("a.npz", "b.npz")),
        (["m.onnx", "-o", "o", "--quantize_mode", "fp8"], "recipe", "fp8-default"),
        (["m.onnx", "-o", "o", "--quantize_mode", "int8"], "recipe", "int8"),
        (["m.onnx", "-o", "o", "--disable_mha_qdq"], "attention", "off"),
        (["m.onnx", "-o", "o", "--attention", "off"], "attention", "off"),
        (["m.onnx", "-o", "o", "--dq-only"], "attention", "auto"),
        (["m.onnx", "-o", "o", "--iterations", "4"], "samples", 4),
        (["m.onnx", "-o", "o", "--minShapes=x:1x3,y:2", "--maxShapes=x:8x3,y:2"], "shapes",
         {"x": Profile((1, 3), (8, 3), (8, 3)), "y": Profile((2,), (2,), (2,))}),
        (["m.onnx", "-o", "o", "--override-shapes", "x:1x3"], "shapes", {"x": Profile((1, 3), (1, 3), (1, 3))}),
        (["m.onnx", "-o", "o", "--passes", "a,b{x=2}", "--passes", "c"], "passes", "a,b{x=2},c"),
        (["m.onnx", "-o", "o", "--external-data-size-threshold", "100M"], "external_data_size_threshold", 100 << 20),
        (["-o", "o", "m.onnx"], "model", "m.onnx"),
        (["-v", "--samples", "3", "m.onnx", "-o", "o"], "samples", 3),
        (["m.onnx", "-o", "o", "--no-compare"], "compare", False),
    ],
)  # fmt: skip
def test_what_is_typed_reaches_the_function(cli, flow, words: list[str], name: str, value: object):
    done = cli("optimize", *words)
    assert done.status == 0, done.err
    assert flow.calls["optimize"][name] == value


def test_names_of_other_tools_are_not_in_the_help(cli):
    said = cli("optimize", "--help").out
    for hidden in (
        "--onnx",
        "--calibration-data-path",
        "--quantize-mode",
        "--minShapes",
        "--disable-mha-qdq",
        "--dq-only",
    ):
        assert hidden not in said


def test_engines_take_the_names_of_trtexec(cli, flow):
    done = cli("build", "--onnx=m.onnx", "--saveEngine=m.engine", "--ort-custom-ops", "l.so")
    assert done.status == 0, done.err
    assert flow.calls["build"]["output"] == "m.engine"
    assert flow.calls["build"]["custom_ops"] == ["l.so"]


def test_builder_settings_reach_the_function(cli, flow):
    done = cli(
        "build", "m.onnx", "-o", "e", "--timeout", "30", "--memory-pool-limit", "workspace:4G",
        "--builder-arg", "a=b=c", "--builder-arg", "d=", "--weight-streaming", "--version-compatible",
        "--hardware-compatibility-level", "ampere_plus", "--refit", "--strip-weights", "--emit-script", "b.py",
    )  # fmt: skip
    assert done.status == 0, done.err
    asked = flow.calls["build"]
    assert (asked["timeout"], asked["workspace"]) == (30.0, 4 << 30)
    assert asked["builder_args"] == {"a": "b=c", "d": ""}
    assert asked["weight_streaming"] is asked["version_compatible"] is True
    assert asked["refit"] is asked["strip_weights"] is True
    assert asked["hardware_compatibility_level"] == "ampere_plus"
    assert (asked["output"], asked["emit_script"]) == ("e", "b.py")


def test_a_script_needs_no_engine(cli, flow):
    assert cli("build", "m.onnx", "--emit-script", "b.py").status == 0
    assert (flow.calls["build"]["output"], flow.calls["build"]["emit_script"]) == (None, "b.py")
    assert cli("build", "m.onnx").status == 2


def test_shapes_belong_to_the_profile_that_was_named_before_them(cli, flow):
    words = "--profile 0 --shapes x:1x3 --profile 1 --min-shapes x:2x3 --profile=0 --shapes y:7 --profile 1"
    done = cli("build", "m.onnx", "-o", "e", *words.split(), "--maxShapes=x:9x3")
    assert done.status == 0, done.err
    one = {"x": Profile((1, 3), (1, 3), (1, 3)), "y": Profile((7,), (7,), (7,))}
    assert flow.calls["build"]["shapes"] == (one, {"x": Profile((2, 3), (9, 3), (9, 3))})
    assert cli("build", "m.onnx", "-o", "e", "--shapes", "x:1x3").status == 0
    assert flow.calls["build"]["shapes"] == ({"x": Profile((1, 3), (1, 3), (1, 3))},)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--profile 1 --shapes x:1", "1 was given and 0 was not"),
        ("--shapes x:1 --profile 2 --shapes x:2", "2 was given and 1 was not"),
        ("--shapes x:1 --profile 1", "shapes stand behind it"),
        ("--profile 0 --shapes x:1 --profile 0 --shapes x:2", "(1,), (2,)"),
        ("--profile -1 --shapes x:1", "at least 0"),
    ],
)
def test_profiles_with_gaps_are_refused(cli, flow, words: str, why: str):
    done = cli("build", "m.onnx", "-o", "e", *words.split())
    assert done.status == 2
    assert why in done.err


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["optimize", "-o", "o"], "needs one MODEL"),
        (["optimize", "m", "--onnx", "n", "-o", "o"], "two were given: m, n"),
        (["optimize", "m"], "needs a name for what it writes"),
        (["optimize", "m", "n", "-o", "o"], "unexpected argument 'n'"),
        (["optimize", "m", "-o"], "needs one argument"),
        (["optimize", "m", "-o", "o", "--samples", "0"], "0 is out of range"),
        (["optimize", "m", "-o", "o", "--samples", "x"], "'x' is no whole number"),
        (["optimize", "m", "-o", "o", "--attention", "on"], "'on' is none of auto, off"),
        (["optimize", "m", "-o", "o", "--high-precision-dtype", "fp23"], "did you mean 'fp32'?"),
        (["optimize", "m", "-o", "o", "--color", "alway"], "did you mean 'always'?"),
        (["build", "m", "-o", "o", "--builder-arg", "x"], "'x' is no KEY=VALUE"),
        (["build", "m", "-o", "o", "--memory-pool-limit", "dla:4G"], "no known pool"),
        (["build", "m", "-o", "o", "--memory-pool-limit", "workspace:1G", "workspace:2G"], "two limits"),
        (["build", "m", "-o", "o", "--timeout", "0"], "out of range"),
        (["attest", "e"], "needs an engine and the model"),
        (["compare", "a"], "needs two models"),
        (["inspect"], "needs a file"),
        (["recipes", "list"], "'recipes' cannot 'list'"),
        (["recipes", "show"], "'show' needs a name"),
        (["check", "m", "--select", "FG7"], "no code begins with 'FG7'"),
        (["optimize", "m", "-o", "o", "--log-file", "no/such/folder/f"], "folder does not exist"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_status_2_and_says_what_to_do(cli, flow, argv: list[str], what: str):
    done = cli(*argv)
    assert done.status == 2
    assert what in done.err
    assert "  do:    " in done.err
    assert "  more:  python -m fp8graph explain FG" in done.err
    assert flow.calls == {}


@pytest.mark.parametrize("command", ["calibrate", "compare"])
def test_data_that_is_needed_and_missing_is_fg120(cli, flow, command: str):
    words = ["m.onnx", "-o", "r.json"] if command == "calibrate" else ["a", "b"]
    done = cli(command, *words)
    assert done.status == 2
    assert "error[FG120]" in done.err


def test_an_option_that_swallowed_the_model_is_told(cli, flow):
    done = cli("optimize", "-o", "o", "--op-types-to-exclude", "Add", "m.onnx")
    assert "took all that follow it" in done.err


@pytest.mark.skipif(importlib.util.find_spec("fp8graph.flow") is None, reason="fp8graph.flow is not there")
@pytest.mark.parametrize("name", ["optimize", "calibrate", "build", "attest", "compare", "check", "inspect", "doctor"])
def test_the_stand_in_has_the_parameters_of_the_real_function(name: str, request: pytest.FixtureRequest):
    real = inspect.signature(getattr(importlib.import_module("fp8graph.flow"), name)).parameters
    request.getfixturevalue("flow")
    stand_in = inspect.signature(getattr(importlib.import_module("fp8graph.flow"), name)).parameters
    assert list(stand_in) == [given for given in stand_in if given in real]
