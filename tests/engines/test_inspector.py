"""The third witness: the maker's inspector on a machine with a GPU, here a stand-in for both."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import engine_models as models
import pytest
from conftest import Build, Made

from fp8graph.data.plan import Plan
from fp8graph.engines import child, inspector
from fp8graph.engines.attest import attest_engine
from fp8graph.engines.witness import EngineOp

GPU = [{"name": "stand-in", "chip": "sm89"}]
LINE = (
    "Name: mm_myl0_1, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [32,64], Format/Datatype: x, Datatype: FP8, }, "
    "{ Name: b, Dimensions: [64,128], Format: x, Datatype: FP8, }], Outputs: [ { Name: c, Dimensions: [32,128], "
    "Format: x, Datatype: Half, }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: mm]"
)


class FakeRuntime:
    """What of `tensorrt` and `tensorrt_rtx` is asked: both have these names."""

    def __init__(self, text: str, loads: bool = True) -> None:
        self.text, self.loads, self.asked = text, loads, []
        self.__name__, self.__version__ = "tensorrt", "10.16.1"
        self.LayerInformationFormat = SimpleNamespace(ONELINE="oneline")
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
        self.Runtime = lambda logger: self

    def deserialize_cuda_engine(self, data: bytes) -> "FakeRuntime | None":
        return self if self.loads else None

    def create_engine_inspector(self) -> "FakeRuntime":
        return self

    def get_engine_information(self, form: str) -> str:
        self.asked.append(form)
        return self.text


def test_it_asks_for_the_lines_that_the_listing_has():
    trt = FakeRuntime("Layers:\n" + LINE)
    assert inspector.layers(trt, b"engine") == {"layers": "Layers:\n" + LINE}
    assert trt.asked == ["oneline"]
    assert inspector.layers(FakeRuntime(LINE), b"")["layers"].startswith("Layers:\nName: mm_myl0_1")
    assert "does not load" in inspector.layers(FakeRuntime("", loads=False), b"")["why"]


def answering(code: str) -> Callable[[str], list[str]]:
    return lambda module: [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.abort()", "ended by signal SIGABRT"),
        ("print('no document')", "ended with status 0"),
        ('print(\'{"why": "no such GPU"}\')', "no such GPU"),
        ('print(\'{"layers": "Layers:\\\\n\\\\nName: x"}\')', "cannot be read"),
        ('print(\'{"layers": ""}\')', "cannot be read"),
    ],
)
def test_a_library_that_fails_is_a_silent_witness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, why: str):
    monkeypatch.setattr(inspector, "devices", lambda: GPU)
    monkeypatch.setattr(child, "python", answering(code))
    ops, said = inspector.inspect(tmp_path / "e", "tensorrt")
    assert ops is None
    assert why in said


def test_what_it_prints_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import json

    monkeypatch.setattr(inspector, "devices", lambda: GPU)
    text = "noise\n" + json.dumps({"layers": "Layers:\n" + LINE})
    monkeypatch.setattr(child, "python", answering(f"print({text!r})"))
    ops, why = inspector.inspect(tmp_path / "e", "tensorrt-rtx")
    assert (why, [(op.said, op.names, op.operands[:2]) for op in ops or ()]) == (
        "",
        [("gemm", ("mm",), ("fp8", "fp8"))],
    )


def test_without_a_gpu_nobody_expects_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(inspector, "devices", list)
    assert inspector.inspect(tmp_path / "e", "tensorrt") == (None, "")


@pytest.mark.parametrize(
    ("operands", "verdict", "code"), [(("fp8", "fp8"), "fp8", ""), (("fp16", "fp16"), "unknown", "FG503")]
)
def test_it_has_to_agree_with_the_others(
    monkeypatch: pytest.MonkeyPatch, build: Build, operands: tuple[str, str], verdict: str, code: str
):
    made = build(models.matmul())
    ops = [EngineOp(0, "gemm", ("mm",), operands, ())]
    monkeypatch.setattr(inspector, "inspect", lambda engine, builder: (ops, ""))
    op = attest_engine(made.engine, made.model, None).verdicts["mm_o"]
    assert (op.verdict, op.code, op.rests_on) == (verdict, code, ("builder", "file", "inspector"))


def test_of_an_engine_that_only_its_maker_can_read_its_word_counts(
    monkeypatch: pytest.MonkeyPatch, sound: Made, plan: Plan, tmp_path: Path
):
    """TensorRT's own engines: their form is not known, but a GPU loads them."""
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"ftrt" + bytes(100))
    ops = [EngineOp(0, "gemm", (name,), ("fp8", "fp8"), ()) for name in ("conv1", "conv2", "gemm", "mm")]
    asked = []

    def inspect(engine: Path, builder: str) -> tuple[list[EngineOp], str]:
        asked.append(builder)
        return ops, ""

    monkeypatch.setattr(inspector, "inspect", inspect)
    done = attest_engine(engine, sound.model, plan)
    assert asked == ["tensorrt"]
    assert done.counts == {"fp8": 4}
    assert {op.rests_on for op in done.verdicts.values()} == {("inspector",)}
    monkeypatch.setattr(inspector, "inspect", lambda engine, builder: (None, "the inspector was stopped"))
    op = attest_engine(engine, sound.model, plan).verdicts["mm_o"]
    assert (op.verdict, op.code) == ("unknown", "FG508")
    assert op.witnesses["inspector"] == "silent: the inspector was stopped"
