"""ONNX Runtime's providers by short names: what there is not, and what this machine has not."""

from __future__ import annotations

import onnxruntime
import pytest

import fp8graph
from fp8graph.base.errors import BackendError, UsageError
from fp8graph.runners import providers
from tests.small import feeds, model, refused

PROTO = model("(float[n,32] x, float[32,32] w) => (float[n,32] y) { y = MatMul(x, w) }")
ALL = list(providers.SHORT.values())


@pytest.mark.parametrize(
    ("names", "resolved"),
    [
        ([], [providers.CPU]),
        (["cpu"], [providers.CPU]),
        (["CPUExecutionProvider"], [providers.CPU]),
        (["cuda:1", "cpu"], [("CUDAExecutionProvider", {"device_id": "1"}), providers.CPU]),
        (["trt", "cuda"], ["TensorrtExecutionProvider", "CUDAExecutionProvider"]),
    ],
)
def test_names_are_those_of_a_session(monkeypatch, names, resolved):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    assert providers.resolved(names) == resolved


@pytest.mark.parametrize(
    ("name", "error", "code", "says"),
    [
        ("gpu", UsageError, "FG101", "did you mean 'cpu'?"),
        ("cuda:", UsageError, "FG101", "no provider 'cuda:'"),
        ("cuda:x", UsageError, "FG101", "no provider 'cuda:x'"),
        ("cuda:0", BackendError, "FG505", "there is cpu"),
    ],
)
@pytest.mark.parametrize("call", ["compare", "calibrate", "optimize"])
def test_a_provider_that_is_unknown_or_missing_is_refused_before_anything_runs(
    monkeypatch, call, name, error, code, says
):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [providers.CPU])
    models = (PROTO, PROTO) if call == "compare" else (PROTO,)
    with refused(error, code, says):
        getattr(fp8graph, call)(*models, data=feeds(PROTO), providers=[name])


def test_the_status_of_a_missing_provider_is_4(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [providers.CPU])
    with pytest.raises(fp8graph.BackendError) as raised:
        fp8graph.compare(PROTO, PROTO, data=feeds(PROTO), providers="cuda")
    assert raised.value.status == 4


def test_a_provider_that_a_session_silently_leaves_out_is_missing(monkeypatch):
    """ONNX Runtime goes on with the CPU where CUDA's libraries cannot be loaded, and only warns."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    with refused(BackendError, "FG505", "its libraries or its device are missing; there is cpu"):
        providers.check_used([("CUDAExecutionProvider", {})], [providers.CPU])
    providers.check_used([providers.CPU], [providers.CPU])


def test_the_cpu_by_name_is_the_default():
    one, other = (fp8graph.calibrate(PROTO, data=feeds(PROTO), **how).ranges for how in ({}, {"providers": ["cpu"]}))
    assert one == other
    assert fp8graph.compare(PROTO, PROTO, data=feeds(PROTO), providers=["cpu"]).outputs["y"].equal
