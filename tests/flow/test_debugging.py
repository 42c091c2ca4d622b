"""`debug precision`: the smallest set that has to stay in high precision, by bounds and by a command of the user's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import onnx
import pytest

import fp8graph
from fp8graph.base.errors import Interrupted
from fp8graph.cli.main import main
from fp8graph.core.options import Options
from fp8graph.data import recipe as recipes
from fp8graph.data.plan import Reason
from fp8graph.flow import commanding
from fp8graph.flow.feeding import Reading
from fp8graph.flow.job import Job
from fp8graph.flow.judging import carried_out
from fp8graph.search.units import keep
from fp8graph.testing.models import corpus
from tests.small import chain, feeds, model, refused

WHY = Reason("FG238", "test", "test")
CHAIN = chain(4, 32, 32, 32, 32, 32)
# Bad while one of the ops that are named reads what a DequantizeLinear gives.
JUDGE = """
import sys, onnx
model = onnx.load("fp8graph_debug.onnx")
low = {output for node in model.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
bad = [node.output[0] for node in model.graph.node if node.output[0] in sys.argv[1:] and low & set(node.input)]
print("in low precision:", *bad)
sys.exit(3 if bad else 0)
"""


PLAN = "o.onnx.plan.json"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a model, its plan, and a script that judges."""
    monkeypatch.chdir(tmp_path)
    proto = model(CHAIN)
    onnx.save(proto, "m.onnx")
    fp8graph.optimize("m.onnx", output="o.onnx", data=feeds(proto, 32), target="reference", recipe="fp8-full")
    Path("judge.py").write_text(JUDGE)
    return tmp_path


@pytest.fixture
def quick(here, monkeypatch):
    """The same, with what the script does done in this process: a step takes no second then."""

    def judged(command, legal):
        graph = legal.model.graph
        low = {value for node in graph if node.op_type == "DequantizeLinear" for value in node.outputs}
        bad = any(node.outputs[0].name in command.words[2:] and low & set(node.inputs) for node in graph)
        return not bad, f"status {3 * bad}"

    monkeypatch.setattr(commanding.Command, "judged", judged)
    return here


def debug(*culprits, **more):
    more.setdefault("check", (sys.executable, "judge.py", *culprits))
    return fp8graph.debug_precision("m.onnx", plan=PLAN, **more)


@pytest.mark.parametrize("mode", ["bisect", "linear"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("culprits", [("b",), ("a", "y"), ("a", "b", "c", "y")])
def test_what_the_command_objects_to_is_found(quick, mode, direction, culprits):
    done = debug(*culprits, mode=mode, dir=direction)
    assert tuple(done.keep) == culprits
    assert [step.good for step in done.steps[:2]] == [True, False] and not done.steps[1].kept
    assert {key for key, _ in done.plan.quantized()} == {"a", "b", "c", "y"} - set(culprits)
    assert all("without it: status 3" in why for why in done.keep.values())


def test_the_command_finds_the_model_in_its_folder_which_is_then_taken_away(here):
    assert tuple(debug("b").keep) == ("b",)
    assert not list(here.glob(commanding.DEBUG_MODEL + "*"))


@pytest.mark.parametrize("direction", ["forward", "reverse", "sensitive"])
def test_bounds_are_held_and_nothing_that_is_kept_can_be_let_go(here, direction):
    data = feeds(onnx.load("m.onnx"), 32)

    def sqnr(plan) -> float:
        found = fp8graph.optimize("m.onnx", plan=plan, data=data, allow_unquantized=True).comparison
        return found.outputs["y"].sqnr_db if found.outputs["y"].sqnr_db is not None else 1e9

    whole = fp8graph.optimize("m.onnx", plan=PLAN, data=data)
    least = sqnr(keep(whole.plan, ["b", "c", "y"], WHY))
    done = debug(check=None, data=data, min_sqnr=least, dir=direction)
    assert 0 < len(done.keep) < 4
    assert sqnr(done.plan) >= least
    for key in done.keep:
        rest = [other for other in done.keep if other != key]
        assert sqnr(keep(whole.plan, rest, WHY)) < least
    assert f"is below {least:g} dB" in next(iter(done.keep.values()))
    if direction == "sensitive":  # the default with bounds
        assert debug(check=None, data=data, min_sqnr=least) == done


def test_the_keep_list_is_a_recipe_that_makes_the_same_decisions(quick):
    done = debug("b", output="keep.toml")
    assert tomllib.loads(Path("keep.toml").read_text())["extends"] == "fp8-full"
    assert recipes.load("keep.toml").keep[-1].ops == ("key:b",)
    again = fp8graph.optimize("m.onnx", recipe="keep.toml", target="reference", data=feeds(onnx.load("m.onnx"), 32))
    assert {key: op.do for key, op in again.plan.ops.items()} == {key: op.do for key, op in done.plan.ops.items()}
    assert [file.path for file in done.files] == ["keep.toml"] and not Path("keep.toml.resume").exists()


def test_ops_that_can_only_be_quantized_together_are_kept_together(quick):
    proto = corpus()["long_attention"]
    onnx.save(proto, "m.onnx")
    plan = fp8graph.optimize("m.onnx", target="tensorrt-rtx:sm89", data="random", output="o.onnx", force=True).plan
    last = [op.group for _, op in plan.quantized() if op.group][-1]
    group = [key for key, op in plan.quantized() if op.group == last]
    assert len(group) > 1
    assert set(debug(group[-1]).keep) == set(group)


def test_where_nothing_has_to_be_kept_the_list_is_empty(quick):
    done = debug(output="keep.toml")
    assert (done.keep, len(done.steps)) == ({}, 2)
    assert recipes.load("keep.toml").keep == recipes.load("fp8-full").keep


def test_where_nothing_is_good_that_is_said_and_nothing_is_written(here):
    with refused(fp8graph.UnmetError, "FG152", "even with every operator in high precision", "status 1"):
        debug(check=(sys.executable, "-c", "raise SystemExit(1)"), output="keep.toml")
    assert not Path("keep.toml").exists() and not Path(commanding.DEBUG_MODEL).exists()


@pytest.mark.parametrize(
    ("ends", "more", "good"),
    [
        ("sys.exit(0)", {}, True),
        ("sys.exit(2)", {}, False),
        ("os.kill(os.getpid(), 9)", {}, False),
        ("sys.exit(2)", {"fail_codes": (3,)}, True),
        ("sys.exit(3)", {"fail_codes": (2, 3)}, False),
        ("print('all fine'); sys.exit(2)", {"fail_regex": ("FAIL.*y",)}, True),
        ("print('FAILED y')", {"fail_regex": ("x", "FAIL.*y")}, False),
        ("print('FAIL y', file=sys.stderr)", {"fail_regex": ("FAIL",)}, False),
        ("print('FAIL')", {"fail_regex": ("FAIL",), "fail_codes": (1,)}, True),
        ("print('FAIL'); sys.exit(1)", {"fail_regex": ("FAIL",), "fail_codes": (1,)}, False),
        ("sys.exit(1)", {"fail_regex": ("FAIL",), "fail_codes": (1,)}, True),
    ],
)
def test_how_a_command_ends_means_what_it_means_in_polygraphy(here, ends, more, good):
    command = commanding.Command((sys.executable, "-c", f"import os, sys; {ends}"), **more)
    job = Job(Options(), None, Reading())
    job.open("m.onnx", None, None, PLAN, None, None)
    assert command.judged(carried_out(job, job.plan()))[0] is good


def test_a_model_of_that_name_in_the_working_folder_is_not_overwritten(here):
    Path(commanding.DEBUG_MODEL).write_text("mine")
    with refused(fp8graph.UsageError, "FG102", commanding.DEBUG_MODEL):
        debug("b")
    assert Path(commanding.DEBUG_MODEL).read_text() == "mine"


def test_an_interrupted_search_goes_on_behind_its_steps(quick, monkeypatch):
    whole = debug("b", "y")
    asked = []
    true = commanding.Command.judged

    def judged(command, legal):
        asked.append(legal)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return true(command, legal)

    monkeypatch.setattr(commanding.Command, "judged", judged)
    with pytest.raises(Interrupted) as left:
        debug("b", "y", output="keep.toml")
    assert [file.path for file in left.value.files] == ["keep.toml.resume"] and "3 steps" in left.value.what
    with refused(fp8graph.InputError, "FG110", "mode: bisect then, linear now"):
        debug("b", "y", output="keep.toml", mode="linear", resume=True)
    with refused(fp8graph.InputError, "FG110", "check:"):
        debug("c", output="keep.toml", resume=True)
    done = debug("b", "y", output="keep.toml", resume=True)
    assert len(asked) == 4 + len(whole.steps) - 3
    assert (done.steps, dict(done.keep)) == (whole.steps, dict(whole.keep))
    assert not Path("keep.toml.resume").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_ctrl_c_is_130_and_leaves_only_what_resume_goes_on_from(here):
    Path("stop.py").write_text(
        "import os, signal, sys, time\n"
        "count = int(open('n').read()) + 1 if os.path.exists('n') else 1\n"
        "open('n', 'w').write(str(count))\n"
        "if count == 3: os.kill(os.getppid(), signal.SIGINT); time.sleep(60)\n"
        "sys.exit(count == 2)\n"
    )
    before = {path.name for path in here.iterdir()}
    words = ["debug", "precision", "m.onnx", "--plan", PLAN, "-o", "keep.toml", "--check", sys.executable, "stop.py"]
    done = subprocess.run([sys.executable, "-m", "fp8graph", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert {path.name for path in here.iterdir()} - before == {"keep.toml.resume", "n"}
    assert len(json.loads(Path("keep.toml.resume").read_text())["steps"]) == 2


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ({"check": None}, "FG100", "nothing says what is good"),
        ({"min_sqnr": 20.0}, "FG100", "two things say what is good"),
        ({"check": None, "min_sqnr": 20.0}, "FG120", "bounds hold for outputs on data"),
        ({"dir": "sensitive"}, "FG120", "--dir sensitive"),
        ({"mode": "bisekt"}, "FG101", "did you mean 'bisect'?"),
        ({"dir": "sideways"}, "FG101", "forward"),
        ({"check": None, "fail_code": [1]}, "FG100", "--fail-code"),
        ({"check": ()}, "FG100", "last on the line"),
        ({"check": ("no-such-program-at-all",)}, "FG101", "no-such-program-at-all"),
        ({"fail_regex": ["("]}, "FG100", "no regular expression"),
        ({"fail_code": [-1]}, "FG100", "fail_code"),
    ],
)
def test_wrong_calls_say_what_is_wrong(here, more, code, says):
    with refused(fp8graph.UsageError, code, says):
        debug(**{"check": (sys.executable, "judge.py", "b"), **more})
    assert not Path(commanding.DEBUG_MODEL).exists()


def test_a_plan_that_quantizes_nothing_leaves_nothing_to_search(here):
    words = {"data": feeds(onnx.load("m.onnx"), 1), "allow_unquantized": True, "op_types_to_exclude": ["MatMul"]}
    fp8graph.optimize("m.onnx", output="o.onnx", force=True, **words)
    with refused(fp8graph.UnmetError, "FG150", "the plan quantizes nothing"):
        debug("b")


def test_the_command_takes_the_rest_of_the_line_and_shows_every_step(here, capsys):
    line = ["debug", "precision", "m.onnx", "--plan", PLAN, "-o", "keep.toml", "--fail_code", "3", "--check"]
    Path("judge.py").write_text(JUDGE.replace("sys.argv[1:]", "sys.argv[-1:]"))
    status = main([*line, sys.executable, "judge.py", "--json", "-h", "--my_own", "c"])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "1 of 4 quantized ops have to stay in high precision" in said.out
    assert "--recipe keep.toml --target reference" in said.out
    rows = [line.split() for line in said.out.splitlines()]
    assert ["1", "4", "good", "status", "0"] in rows and ["2", "0", "bad", "status", "3"] in rows
    status = main(["debug", "precision", "m.onnx", "--plan", PLAN, "-o", "k2.toml", "--json", *line[7:], "false"])
    document = json.loads(capsys.readouterr().out)
    assert (status, document["result"]["keep"]) == (0, [])
    assert Path("k2.toml").exists()
