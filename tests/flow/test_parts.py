"""Calibration in parts: shards joined, and runs that go on after Ctrl-C, give the very bytes of one run."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import fp8graph
from fp8graph.base.errors import InputError, Interrupted, UsageError
from fp8graph.cli.main import main
from tests.small import contents, feeds, model, refused

PROTO = model("(float[n,32] x, float[32,32] w) => (float[n,32] y) { r = Relu(x) y = MatMul(r, w) }")
OTHER = model("(float[n,32] x, float[32,32] w) => (float[n,32] y) { r = Relu(x) y = MatMul(r, w) }", seed=3)
COUNT = 11
DATA = np.random.default_rng(0).standard_normal((COUNT, 1, 32)).astype(np.float32)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(PROTO.SerializeToString())
    folder = tmp_path / "data"
    folder.mkdir()
    for index, array in enumerate(DATA):  # of several lengths, so that shards see other shapes
        np.savez(folder / f"{index:02}.npz", x=np.repeat(array[None], index % 3 + 1, axis=1))
    fp8graph.calibrate("m.onnx", data="data", output="all.json")
    return tmp_path


@pytest.mark.parametrize("number", [1, 2, 3, COUNT])
def test_shards_in_any_order_join_to_the_bytes_of_one_run(place, number):
    names = []
    for index in range(number):
        names.append(f"r{index}.json")
        done = fp8graph.calibrate("m.onnx", data="data", output=names[-1], shard=f"{index}/{number}")
        assert done.ranges.samples == len(range(index, COUNT, number))
    for order in itertools.islice(itertools.permutations(names), 3):
        fp8graph.calibrate(merge=order, output="joined.json", force=True)
        assert (place / "joined.json").read_bytes() == (place / "all.json").read_bytes()
    assert fp8graph.calibrate(merge=[fp8graph.calibrate(PROTO, data=feeds(PROTO), shard=(0, 2)).ranges]).files == ()


def test_ranges_that_were_joined_are_taken_like_those_of_one_run(place, capsys):
    for index in range(2):
        assert main(["calibrate", "m.onnx", "--data", "data", "-o", f"r{index}.json", "--shard", f"{index}/2"]) == 0
    assert main(["calibrate", "--merge", "r0.json", "r1.json", "-o", "r.json", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert document["result"]["samples"] == COUNT and [file["path"] for file in document["files"]] == ["r.json"]
    assert main(["optimize", "m.onnx", "-o", "a.onnx", "--ranges", "r.json"]) == 0
    assert main(["optimize", "m.onnx", "-o", "b.onnx", "--data", "data"]) == 0
    assert (place / "a.onnx").read_bytes() == (place / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("call", "error", "code", "says"),
    [
        ({"shard": "2/2"}, UsageError, "FG100", "from 0/2 to 1/2"),
        ({"shard": "-1/2"}, UsageError, "FG100", "there is no shard -1/2"),
        ({"shard": "1"}, UsageError, "FG100", "I/N"),
        ({"shard": "a/b"}, UsageError, "FG100", "I/N"),
        ({"shard": 3}, UsageError, "FG100", "I/N"),
        ({"shard": "12/20"}, InputError, "FG107", "holds no sample"),
        ({"model": None}, UsageError, "FG100", "needs a model"),
        ({"data": None}, UsageError, "FG120", "needs data"),
        ({"merge": ["all.json"]}, UsageError, "FG100", "leave MODEL and --data out"),
        ({"model": None, "data": None, "merge": []}, UsageError, "FG100", "nothing to join"),
        ({"model": None, "data": None, "merge": ["all.json", "./all.json"]}, UsageError, "FG100", "count twice"),
        ({"model": None, "data": None, "merge": ["all.json", "other.json"]}, InputError, "FG110", "two models"),
        ({"model": None, "data": None, "merge": ["all.json", "fewer.json"]}, InputError, "FG110", "in one of them"),
        ({"model": None, "data": None, "merge": ["all.json", "m.onnx"]}, InputError, "FG111", "the ranges"),
        ({"model": None, "data": None, "merge": ["all.json", "none.json"]}, InputError, "FG111", "does not exist"),
        ({"model": None, "data": None, "merge": "all.json", "output": "all.json"}, UsageError, "FG103", "all.json"),
        ({"calibration_method": "kl"}, UsageError, "FG101", "--calibration-method absmax"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_or_cut_is_refused_and_nothing_is_written(place, call, error, code, says):
    fp8graph.calibrate(OTHER, data="data", output="other.json")
    fewer = json.loads((place / "all.json").read_text())
    fewer["values"].pop(next(iter(fewer["values"])))
    (place / "fewer.json").write_text(json.dumps(fewer))
    before = contents(place)
    arguments = {"model": "m.onnx", "data": "data", "output": "new.json"} | call
    with refused(error, code, says):
        fp8graph.calibrate(arguments.pop("model"), **arguments)
    assert contents(place) == before


@pytest.mark.parametrize("method", ["absmax", "max", None])
def test_the_largest_absolute_value_has_several_names(place, method):
    fp8graph.calibrate("m.onnx", data="data", output="again.json", calibration_method=method)
    assert (place / "again.json").read_bytes() == (place / "all.json").read_bytes()


class Stopping:
    """Feeds that Ctrl-C ends behind `after` of them, in the second reading: the first one looks at the shapes."""

    def __init__(self, after: int) -> None:
        self.after, self.readings = after, 0

    def __call__(self):
        self.readings += 1
        for index, array in enumerate(DATA):
            if self.readings > 1 and index == self.after:
                raise KeyboardInterrupt
            yield {"x": array}


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.json"
    fp8graph.calibrate(PROTO, data=Stopping(99), output=path)
    return path


@pytest.mark.parametrize("stops", [[8], [6, 9], [9, 9], [0, 8]])
def test_a_run_that_was_interrupted_goes_on_to_the_bytes_of_one_run(tmp_path, whole, stops):
    out = tmp_path / "r.json"
    for after in stops:
        with pytest.raises(KeyboardInterrupt) as stopped:
            fp8graph.calibrate(PROTO, data=Stopping(after), output=out, resume=True)
        kept = isinstance(stopped.value, Interrupted)
        assert kept is (after > 0) and sorted(contents(tmp_path)) == ["r.json.resume", "whole.json"][not kept :]
        if kept:
            assert [file.path for file in stopped.value.files] == [f"{out}.resume"] and "--resume" in stopped.value.do
    done = fp8graph.calibrate(PROTO, data=Stopping(99), output=out, resume=True)
    assert done.ranges.samples == COUNT
    assert out.read_bytes() == whole.read_bytes() and sorted(contents(tmp_path)) == ["r.json", "whole.json"]


def test_a_shard_goes_on_too(tmp_path):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    fp8graph.calibrate(PROTO, data=Stopping(99), output=one, shard="1/2")
    with pytest.raises(Interrupted):
        fp8graph.calibrate(PROTO, data=Stopping(10), output=other, shard="1/2")
    fp8graph.calibrate(PROTO, data=Stopping(99), output=other, shard="1/2", resume=True)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("call", "code", "says"),
    [
        ({"samples": 5}, "FG110", "samples: None then, 5 now"),
        ({"shard": "0/2"}, "FG110", "shard: None then, [0, 2] now"),
        ({"model": OTHER}, "FG110", "model: "),
        ({"data": {"x": DATA}}, "FG110", "data: function then, arrays"),
        ({"nodes_to_exclude": ["type:MatMul"]}, "FG110", "other tensors"),
        ({"torn": True}, "FG111", "what --resume goes on from"),
        ({"ranges": True}, "FG111", "a resume was expected"),
    ],
)
def test_another_run_does_not_go_on_from_what_one_has_left(tmp_path, whole, call, code, says):
    out = tmp_path / "r.json"
    with pytest.raises(Interrupted):
        fp8graph.calibrate(PROTO, data=Stopping(9), output=out)
    left = tmp_path / "r.json.resume"
    if call.pop("torn", False):
        left.write_text(left.read_text()[:-20])
    if call.pop("ranges", False):
        left.write_bytes(whole.read_bytes())
    before = contents(tmp_path)
    arguments = {"model": PROTO, "data": Stopping(99), "output": out, "resume": True} | call
    with refused(InputError, code, says):
        fp8graph.calibrate(arguments.pop("model"), **arguments)
    assert contents(tmp_path) == before


def test_the_command_says_how_to_go_on(place, capsys):
    (place / "load.py").write_text(
        "import numpy as np\nREAD = []\ndef load_data():\n    READ.append(1)\n    for index in range(9):\n"
        "        if index == 7 and len(READ) > 1:\n            raise KeyboardInterrupt\n"
        "        yield {'x': np.ones((1, 32), np.float32)}\n"
    )
    status = main(["calibrate", "m.onnx", "-o", "r.json", "--data", "script:load.py", "--json"])
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert (status, document["status"]) == (130, 130)
    assert [file["path"] for file in document["files"]] == ["r.json.resume"]
    assert "--resume" in document["error"]["do"] and "--resume" in said.err
    assert not (place / "r.json").exists()


@pytest.mark.parametrize(
    "words",
    [["m.onnx", "--merge", "all.json"], ["--merge", "all.json", "--data", "data"], ["--merge", "all.json", "--resume"]],
)
def test_the_command_joins_without_a_model_and_data(place, capsys, words):
    assert main(["calibrate", *words, "-o", "new.json"]) == 2
    assert "--merge" in capsys.readouterr().err


TWO = model("""(float[n,32] x, float[m,32] z, float[32,32] w) => (float[n,32] y, float[m,32] v) {
    y = MatMul(x, w)
    v = MatMul(z, w)
}""")


@pytest.mark.parametrize("by", ["data", "ranges"])
def test_inputs_without_given_shapes_have_those_of_the_data(place, by):
    data = {"x": np.ones((6, 2, 32), np.float32), "z": np.ones((6, 5, 32), np.float32)}
    seen = {"ranges": fp8graph.calibrate(TWO, data=data).ranges} if by == "ranges" else {"data": data}
    shapes = {"x": fp8graph.Profile((1, 32), (2, 32), (9, 32))}
    plan = fp8graph.optimize(TWO, shapes=shapes, **seen).plan
    assert dict(plan.shapes) == {"x": shapes["x"], "z": fp8graph.Profile((5, 32), (5, 32), (5, 32))}
    assert (
        fp8graph.optimize(TWO, plan=plan, shapes=shapes).plan.shapes == plan.shapes
    )  # a part of it is no contradiction
    with refused(UsageError, "FG110", "--shapes contradicts the plan"):
        fp8graph.optimize(TWO, plan=plan, shapes={"z": (4, 32)})


def test_shapes_that_are_all_given_are_taken_alone(place):
    done = fp8graph.optimize(PROTO, shapes={"x": (4, 32)}, data={"x": np.ones((6, 2, 32), np.float32)})
    assert dict(done.plan.shapes) == {"x": fp8graph.Profile((4, 32), (4, 32), (4, 32))}
