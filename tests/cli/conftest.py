"""A command line to call, and a stand-in for `fp8graph.flow` that records how it was called."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

import fp8graph
from fp8graph.base.files import WrittenFile
from fp8graph.base.findings import Finding
from fp8graph.base.progress import SILENT
from fp8graph.cli.main import main
from fp8graph.data.attestation import Attestation, OpVerdict
from fp8graph.data.comparison import Comparison, OutputDifference
from fp8graph.data.difference import Difference
from fp8graph.data.plan import Decision, Plan, Quant, Reason, Scale
from fp8graph.flow.checking import Checked
from fp8graph.flow.reporting import Reported
from fp8graph.formats.spec import PerAxis, PerTensor
from fp8graph.report.joined import join


@dataclass
class Ran:
    """What one command line came to."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs `python -m fp8graph ARGS` in this process."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(*args: object) -> Ran:
        status = main([str(arg) for arg in args])
        said = capsys.readouterr()
        return Ran(status, said.out, said.err)

    return run


def reason(code: str = "FG201", text: str = "Conv is quantized") -> Reason:
    return Reason(code, "recipe fp8-default", text)


def quantized(op_type: str, key: str, value: float | None = 0.5) -> Decision:
    """An op with both operands in FP8: an observed activation and a computed weight."""
    inputs = {
        0: Quant(f"{key}_in", "e4m3fn", PerTensor(), Scale("observed", "amax", value)),
        1: Quant(f"{key}_w", "e4m3fn", PerAxis(0), Scale("computed", "amax")),
    }
    return Decision(op_type, f"/{key}", "quantize", reason(), inputs=inputs)


def kept(op_type: str, key: str, code: str, text: str) -> Decision:
    return Decision(op_type, f"/{key}", "keep", reason(code, text))


@pytest.fixture
def plan() -> Plan:
    """Two ops in FP8, one kept, and two that no recipe quantizes."""
    return Plan(
        structure="sha256:0",
        target="tensorrt-rtx:sm89",
        recipe={"name": "fp8-default", "quantize": {"ops": ["Conv", "Gemm", "MatMul"]}},
        ops={
            "conv1": kept("Conv", "conv1", "FG208", "it reads the 3 channels of an image"),
            "relu1": kept("Relu", "relu1", "FG202", "Relu is not quantized by the recipe"),
            "conv2": quantized("Conv", "conv2"),
            "relu2": kept("Relu", "relu2", "FG202", "Relu is not quantized by the recipe"),
            "logits": quantized("Gemm", "logits"),
        },
        data="calib.npz",
    )


@pytest.fixture
def comparison() -> Comparison:
    return Comparison({"logits": OutputDifference(31.24, 0.999612, 0.0812)}, samples=128)


def verdict(op_type: str, key: str, verdict: Any = "fp8", why: str = "", macs: int = 100) -> OpVerdict:
    return OpVerdict(op_type, f"/{key}", "fp8", verdict, why, macs=macs, weight_bytes=10)


def attestation(**verdicts: OpVerdict) -> Attestation:
    return Attestation("e", "m", "p", "tensorrt-rtx 1.7.1", ("sm89",), 1, verdicts)


@dataclass
class Flow:
    """What the stand-in answers, and what it was asked. An exception is raised instead of returned."""

    answers: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)

    def answer(self, name: str, arguments: dict[str, Any]) -> Any:
        self.calls[name] = arguments
        answer = self.answers[name]
        if isinstance(answer, BaseException):
            raise answer
        return answer(arguments) if callable(answer) else answer


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch, plan: Plan, comparison: Comparison) -> Flow:
    """`fp8graph.flow` with the functions' parameters and without their work."""
    recorder = Flow()
    module = types.ModuleType("fp8graph.flow")

    def optimize(
        model, *, output=None, recipe=None, target=None, data=None, ranges=None, plan=None, shapes=None, samples=None,
        batch=None, seed=0, val_range=None, input_shapes=None, providers=None, calibration_method=None,
        op_types_to_quantize=None, op_types_to_exclude=None, nodes_to_quantize=None,
        nodes_to_exclude=None, fp8_everywhere=False, attention="auto", kv_cache="keep", high_precision_dtype=None,
        direct_io_types=False, given_scales=None, passes=None, pass_file=None, min_sqnr=None, max_drop=None,
        metric=None, eval_data=None, curve=None, resume=False, compare=True,
        plan_only=False, allow_unquantized=False, verify=False, force=False,
        external_data_size_threshold=None, custom_ops=None, progress=SILENT,
    ):  # fmt: skip
        return recorder.answer("optimize", dict(locals()))

    def calibrate(
        model=None, *, output=None, data=None, plan=None, target=None, recipe=None, samples=None, batch=None, seed=0,
        val_range=None, input_shapes=None, providers=None, calibration_method=None,
        op_types_to_quantize=None, op_types_to_exclude=None, nodes_to_quantize=None, nodes_to_exclude=None,
        fp8_everywhere=False, attention="auto", kv_cache="keep", high_precision_dtype=None, direct_io_types=False,
        given_scales=None, passes=None, pass_file=None, custom_ops=None, shard=None, merge=None, resume=False,
        force=False, progress=SILENT,
    ):  # fmt: skip
        return recorder.answer("calibrate", dict(locals()))

    def build(
        model, *, output=None, target=None, plan=None, shapes=None, force=False, attest=False, timeout=None,
        memory_limit=None, builder_optimization_level=None, workspace=None, load_timing_cache=None,
        save_timing_cache=None, version_compatible=False, hardware_compatibility_level=None, weight_streaming=False,
        refit=False, strip_weights=False, builder_args=None, custom_ops=None, emit_script=None, progress=SILENT,
    ):  # fmt: skip
        return recorder.answer("build", dict(locals()))

    def attest(engine, *, model, plan=None):
        return recorder.answer("attest", dict(locals()))

    def compare(
        a, b=None, *, data, samples=None, batch=None, seed=0, val_range=None, input_shapes=None, providers=None,
        custom_ops=None, min_sqnr=None, rtol=None, atol=None, check_error_stat=None, error_quantile=None,
        save_outputs=None, load_outputs=None, layers=False, force=False, progress=SILENT,
    ):  # fmt: skip
        return recorder.answer("compare", dict(locals()))

    def debug_precision(
        model, *, plan, output=None, mode="bisect", dir=None, check=None, fail_code=None, fail_regex=None,
        data=None, samples=None, batch=None, seed=0, val_range=None, input_shapes=None, providers=None, custom_ops=None,
        min_sqnr=None, rtol=None, atol=None, check_error_stat=None, error_quantile=None, resume=False, force=False,
        progress=SILENT,
    ):  # fmt: skip
        return recorder.answer("debug_precision", dict(locals()))

    def check(model, *, plan=None, target=None, fix=False, output=None, force=False):
        return recorder.answer("check", dict(locals()))

    def inspect(file, *, show=None, op=None):
        return recorder.answer("inspect", dict(locals()))

    def diff(a, b, *, op=None):
        return recorder.answer("diff", dict(locals()))

    def report(files, *, format="text", output=None, force=False):
        return recorder.answer("report", dict(locals()))

    def doctor():
        return recorder.answer("doctor", {})

    for function in (
        optimize,
        calibrate,
        build,
        attest,
        compare,
        debug_precision,
        check,
        inspect,
        diff,
        report,
        doctor,
    ):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "fp8graph.flow", module)
    monkeypatch.setattr(fp8graph, "flow", module, raising=False)
    recorder.answers = usual_answers(plan, comparison)
    return recorder


def usual_answers(plan: Plan, comparison: Comparison) -> dict[str, Any]:
    """What the stand-in says where a test does not say otherwise."""

    def optimized(asked: dict[str, Any]) -> types.SimpleNamespace:
        out = asked["output"]
        return types.SimpleNamespace(
            model=None,
            files=(WrittenFile(out, "00", 400_000), WrittenFile(f"{out}.plan.json", "11", 2_000)),
            plan=plan,
            findings=(Finding("FG121", "warning", "", "scales come from random data", "--data FILE"),),
            comparison=comparison,
            default_session=None,
            planned=2,
            planned_by={"fp8": 2, "int8": 0, "fp4": 0, "storage": 0},
            kept=3,
            seconds={"plan": 0.1, "calibrate": 1.25},
        )

    return {
        "optimize": optimized,
        "calibrate": lambda asked: types.SimpleNamespace(
            ranges=types.SimpleNamespace(samples=128, values={"a": 1, "b": 2}),
            files=(WrittenFile(asked["output"], "00", 3_000),),
            findings=(Finding("FG122", "warning", "", "2 rows are left out"),),
        ),
        "build": lambda asked: types.SimpleNamespace(
            files=(WrittenFile(asked["output"] or asked["emit_script"], "00", 1_300_000),),
            findings=(),
            manifest={"builder": {"name": "tensorrt-rtx", "version": "1.7.1"}},
            chips=("sm89",),
            warnings=("the timing cache is left out",),
            attestation=attestation(conv2=verdict("Conv", "conv2")) if asked["attest"] else None,
        ),
        "attest": attestation(conv2=verdict("Conv", "conv2"), logits=verdict("Gemm", "logits")),
        "compare": comparison,
        "check": Checked(),
        "inspect": {"kind": "plan", "target": "tensorrt-rtx"},
        "diff": Difference("plan", {"recipe": ("a", "b")}, same=3),
        "report": Reported(join(plan, attestation(conv2=verdict("Conv", "conv2")), comparison), "the text\n"),
        "doctor": {
            "python": "3.11.7",
            "platform": "Linux",
            "packages": {"onnx": "1.23.2", "tensorrt": None},
            "targets": [
                {"name": "tensorrt-rtx", "usable": True, "can": ["build", "attest"], "why_not": "", "install": ""},
                {
                    "name": "tensorrt",
                    "usable": False,
                    "can": [],
                    "why_not": "tensorrt is not installed",
                    "install": "pip install 'fp8graph[tensorrt]'",
                },
            ],
            "devices": [],
        },
    }
