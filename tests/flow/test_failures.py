"""Whatever goes wrong, whenever: the class that says whose turn it is, and nothing left behind."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import BackendError, InputError, UsageError
from fp8graph.data.plan import Profile
from fp8graph.flow import job
from fp8graph.graph import save as saving
from tests.small import contents, feeds, model, refused

TEXT = "(float[n,8] x, float[8,8] w) => (float[n,8] y) { h = Relu(x) y = MatMul(h, w) }"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and data for it, sound and otherwise."""
    proto = model(TEXT)
    onnx.save(proto, str(tmp_path / "m.onnx"))
    (tmp_path / "torn.onnx").write_bytes(proto.SerializeToString()[:100])
    np.savez(tmp_path / "good.npz", x=np.ones((4, 8), np.float32))
    np.savez(tmp_path / "wrong.npz", other=np.ones((4, 8), np.float32))
    np.savez(tmp_path / "shape.npz", x=np.ones((4, 9), np.float32))
    np.savez(tmp_path / "nan.npz", x=np.array([[1.0] * 8, [np.nan] * 8], np.float32))
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4")
    (tmp_path / "old.onnx").write_bytes(b"old")
    (tmp_path / "recipe.toml").write_text('name = "x"')
    return tmp_path


CALLS: list[tuple[str, dict[str, Any], type[fp8graph.Fp8GraphError], str]] = [
    ("missing model", {"model": "none.onnx"}, InputError, "FG106"),
    ("torn model", {"model": "torn.onnx"}, InputError, "FG106"),
    ("no data", {"data": None}, UsageError, "FG120"),
    ("missing data", {"data": "none.npz"}, InputError, "FG108"),
    ("torn data", {"data": "torn.npz"}, InputError, "FG108"),
    ("data of another model", {"data": "wrong.npz"}, InputError, "FG107"),
    ("data of another shape", {"data": "shape.npz"}, InputError, "FG107"),
    ("data with a NaN", {"data": "nan.npz"}, InputError, "FG107"),
    ("unknown target", {"target": "tensorrt-rtz"}, UsageError, "FG101"),
    ("unknown chip", {"target": "tensorrt-rtx:sm999"}, UsageError, "FG101"),
    ("a chip without FP8", {"target": "tensorrt-rtx:sm86"}, UsageError, "FG303"),
    ("unknown recipe", {"recipe": "fp8-defalt"}, UsageError, "FG101"),
    ("broken recipe", {"recipe": "recipe.toml"}, UsageError, "FG140"),
    ("unknown pass", {"passes": "no-such-pass"}, UsageError, "FG113"),
    ("a pattern without a match", {"nodes_to_exclude": ["none"]}, UsageError, "FG109"),
    ("a wish that is refused", {"nodes_to_quantize": ["h"]}, UsageError, "FG302"),
    ("output exists", {"output": "old.onnx"}, UsageError, "FG102"),
    ("output is the input", {"output": "m.onnx", "force": True}, UsageError, "FG103"),
    ("output is the data", {"output": "good.npz", "force": True}, UsageError, "FG103"),
    ("output in no folder", {"output": "none/o.onnx"}, UsageError, "FG112"),
    ("output is a folder", {"output": "."}, UsageError, "FG102"),
    ("missing plan", {"plan": "none.json"}, InputError, "FG111"),
    ("missing ranges", {"ranges": "none.json", "data": None}, InputError, "FG111"),
    ("nothing to quantize", {"op_types_to_exclude": ["MatMul"]}, fp8graph.UnmetError, "FG150"),
]


@pytest.mark.parametrize(("call", "error", "code"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_a_call_that_fails_says_whose_turn_it_is_and_leaves_nothing(folder, monkeypatch, call, error, code):
    monkeypatch.chdir(folder)
    before = contents(folder)
    given = {"model": "m.onnx", "output": "o.onnx", "data": "good.npz"} | call
    with refused(error, code) as _:
        fp8graph.optimize(given.pop("model"), **given)
    assert contents(folder) == before and not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("shapes", "code", "says"),
    [
        ({"z": Profile((1, 8), (1, 8), (1, 8))}, "FG101", "known: x"),
        ({"x": Profile((1,), (1,), (1,))}, "FG100", "the model says nx8"),
        ({"x": Profile((1, 8), (1, 8), (1, 9))}, "FG100", "cannot have the shape 1x9"),
    ],
)
def test_shapes_that_do_not_fit_the_model_are_a_wrong_call(folder, shapes, code, says):
    with refused(UsageError, code, "--shapes", says):
        fp8graph.optimize(folder / "m.onnx", shapes=shapes, plan_only=True)
    fine = {"x": Profile((1, 8), (2, 8), (4, 8))}
    assert fp8graph.optimize(folder / "m.onnx", shapes=fine, plan_only=True).plan.shapes == fine


def test_the_models_own_data_file_is_an_input_too(tmp_path):
    proto = model("(float[2,64] x, float[64,64] w) => (float[2,64] y) { y = MatMul(x, w) }")
    onnx.save(proto, str(tmp_path / "m.onnx"), save_as_external_data=True, location="o.onnx.data", size_threshold=64)
    before = contents(tmp_path)
    for output in ("o.onnx", "o.onnx.data"):
        with refused(UsageError, "FG103", "o.onnx.data"):
            fp8graph.optimize(tmp_path / "m.onnx", data=feeds(proto), output=tmp_path / output, force=True)
        assert contents(tmp_path) == before


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing_and_an_old_output_as_it_was(folder, monkeypatch):
    monkeypatch.setattr(saving, "to_proto", full)
    before = contents(folder)
    for output in ("o.onnx", "old.onnx"):
        with refused(BackendError, "FG130", "the disk is full"):
            fp8graph.optimize(folder / "m.onnx", data=folder / "good.npz", output=folder / output, force=True)
        assert contents(folder) == before and not list(folder.glob(".*"))


class Stop(BaseException):
    """Something that nobody expects: Ctrl-C, for one."""


@pytest.mark.parametrize("stage", ["profiles", "collect", "settle", "save", "compare_outputs"])
@pytest.mark.parametrize(
    "error", [Stop, KeyboardInterrupt, MemoryError, BackendError("the runtime broke", code="FG133")]
)
def test_a_failure_in_any_stage_leaves_no_output(folder, monkeypatch, stage, error):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(job, stage, fail)
    before = contents(folder)
    for output in ("o.onnx", "old.onnx"):
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            fp8graph.optimize(folder / "m.onnx", data=folder / "good.npz", output=folder / output, force=True)
        assert contents(folder) == before and not list(folder.glob(".*"))


def test_data_that_is_read_for_the_comparison_only_fails_before_anything_is_written(folder):
    """A plan with numbers needs no data; data given all the same is first looked at when the models are compared."""
    plan = fp8graph.optimize(folder / "m.onnx", data=folder / "good.npz").plan
    before = contents(folder)
    for name, code in (("nan.npz", "FG107"), ("shape.npz", "FG107"), ("torn.npz", "FG108")):
        with refused(InputError, code):
            fp8graph.optimize(folder / "m.onnx", plan=plan, data=folder / name, output=folder / "o.onnx")
        assert contents(folder) == before


def test_an_old_output_is_replaced_only_where_that_is_asked_for(folder):
    out = folder / "o.onnx"
    fp8graph.optimize(folder / "m.onnx", data=folder / "good.npz", output=out)
    first = contents(folder)
    with refused(UsageError, "FG102"):
        fp8graph.optimize(folder / "m.onnx", data=folder / "good.npz", output=out, nodes_to_exclude=["h"])
    assert contents(folder) == first
    fp8graph.optimize(folder / "m.onnx", data=folder / "good.npz", output=out, force=True, nodes_to_exclude=["h"])
    assert contents(folder).keys() == first.keys() and contents(folder) != first


def test_calibrate_leaves_nothing_either(folder, monkeypatch):
    before = contents(folder)
    for call, error, code in (
        ({"data": folder / "nan.npz"}, InputError, "FG107"),
        ({"data": folder / "good.npz", "recipe": "none"}, UsageError, "FG101"),
        ({"data": folder / "good.npz", "output": folder / "m.onnx", "force": True}, UsageError, "FG103"),
        ({"data": folder / "good.npz", "output": folder / "good.npz", "force": True}, UsageError, "FG103"),
        ({"data": None}, UsageError, "FG120"),
    ):
        with refused(error, code):
            fp8graph.calibrate(folder / "m.onnx", **({"output": folder / "r.json"} | call))
        assert contents(folder) == before


def test_a_model_that_the_runtime_cannot_run_is_told_with_its_reason(folder):
    """Reshape to a size that no sample has: ONNX Runtime finds it out when it runs."""
    text = "(float[n,8] x, float[8,8] w, int64[2] w_s) => (float[a,b] y) { h = Reshape(x, w_s) y = MatMul(h, w) }"
    proto = model(text, w_s=np.array([7, 8]))
    with pytest.raises(fp8graph.Fp8GraphError) as raised:
        fp8graph.optimize(proto, data=feeds(proto), output=folder / "o.onnx")
    assert raised.value.status in (3, 4) and "eshape" in raised.value.why and not (folder / "o.onnx").exists()
