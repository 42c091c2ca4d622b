"""Samples from a function in the user's file: run anew for each reading, and its failures are the file's."""

from __future__ import annotations

import sys

import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import Fp8GraphError, InputError, UsageError
from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import files_of, open_samples
from tests.small import model, refused

PROTO = model("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }")
WORK = ir.from_proto(PROTO)
FILE = """
import numpy as np
READ = []
def load_data():
    READ.append(1)
    for rows in (1, 2):
        yield {"x": np.full((rows, 3), len(READ), np.float32)}
def listed():
    return [{"x": np.zeros((1, 3), np.float32)}]
def nothing():
    return 3
def late():
    yield {"x": np.zeros((1, 3), np.float32)}
    raise ValueError("no more")
def early():
    raise SystemExit("gone")
def wrong():
    yield [1]
def ranks():
    yield {"x": np.zeros(3, np.float32)}
number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "load.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(("name", "shapes"), [("", [1, 2]), (":load_data", [1, 2]), (":listed", [1])])
def test_a_function_gives_whole_feeds_and_load_data_is_the_one_that_need_not_be_named(file, name, shapes):
    samples = open_samples(f"script:{file}{name}", WORK, Notes())
    assert [len(feed["x"]) for feed in samples] == shapes
    assert (samples.label, samples.count) == (f"script:load.py{name or ':load_data'}", None)
    assert files_of([f"script:{file}{name}"]) == [file]


def test_each_reading_calls_the_function_anew_and_runs_the_file_once(file):
    samples = open_samples([f"script:{file}"], WORK, Notes())
    assert [[feed["x"][0, 0] for feed in samples] for _ in range(2)] == [[1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("text", "name", "error", "code", "says"),
    [
        (FILE, ":load_dat", UsageError, "FG101", "did you mean 'load_data'?"),
        (FILE, ":number", UsageError, "FG101", "has no function 'number'"),
        ("x = 1", "", UsageError, "FG101", "define load_data()"),
        (None, "", InputError, "FG108", "does not exist"),
        ("import no_such_module", "", InputError, "FG108", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "", InputError, "FG108", "SystemExit: 3"),
        ("def load_data(:", "", InputError, "FG108", "SyntaxError"),
        (FILE, ":nothing", InputError, "FG107", "it gave int"),
        (FILE, ":late", InputError, "FG108", "sample 1\n  why:   ValueError: no more"),
        (FILE, ":early", InputError, "FG108", "SystemExit: gone"),
        (FILE, ":wrong", InputError, "FG107", "got list"),
        (FILE, ":ranks", InputError, "FG107", "each sample is a whole feed"),
    ],
)
def test_what_a_script_lacks_or_raises_is_an_error_that_names_it(tmp_path, text, name, error, code, says):
    path = tmp_path / "other.py"
    if text is not None:
        path.write_text(text)
    before = set(sys.modules)
    with refused(error, code, says, "other.py"):
        list(open_samples(f"script:{path}{name}", WORK, Notes()))
    if says.endswith("Error"):
        assert set(sys.modules) - before <= {"no_such_module"}


def test_an_error_of_ours_passes_a_script_as_it_is(tmp_path):
    path = tmp_path / "ours.py"
    path.write_text("import fp8graph\ndef load_data():\n    yield from fp8graph.compare(1, 2, data=3)\n")
    with pytest.raises(Fp8GraphError) as raised:
        list(open_samples(f"script:{path}", WORK, Notes()))
    assert raised.value.code != "FG900"


def test_a_script_is_data_on_the_command_line_by_polygraphys_name_too(file, tmp_path, cli_run):
    out = tmp_path / "m.npz"
    source = tmp_path / "m.onnx"
    source.write_bytes(PROTO.SerializeToString())
    for index, option in enumerate((["--data", f"script:{file}"], ["--data-loader-script", f"{file}:listed"])):
        assert cli_run("compare", source, *option, "--save-outputs", out.with_stem(f"o{index}")) == 0


@pytest.fixture
def cli_run(capsys):
    from fp8graph.cli.main import main

    return lambda *words: main([str(word) for word in words])


def test_a_script_may_not_be_overwritten(file):
    with refused(UsageError, "FG103", "load.py"):
        fp8graph.optimize(PROTO, data=f"script:{file}", output=file, force=True)
