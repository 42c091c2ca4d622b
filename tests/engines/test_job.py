"""What a build is asked to do, as data."""

import json

import pytest

from fp8graph.base.errors import InputError, UsageError
from fp8graph.data.plan import Profile
from fp8graph.engines.job import BuildJob

FULL = BuildJob(
    model="/in/m.onnx",
    builder="tensorrt-rtx",
    chips=("sm89", "sm120"),
    profiles=({"x": Profile((1, 3), (2, 3), (4, 3)), "n": Profile((1,), (2,), (4,))},),
    optimization_level=3,
    workspace_bytes=1 << 30,
    load_timing_cache="/in/t.cache",
    save_timing_cache="/out/t.cache",
    hardware_compatibility_level="none",
    version_compatible=True,
    weight_streaming=True,
    refit=True,
    strip_weights=True,
    plugins=("/lib/ops.so",),
    builder_args={"b": "2", "a": "1"},
)


@pytest.mark.parametrize("job", [FULL, BuildJob(model="/m.onnx", builder="tensorrt")], ids=["full", "bare"])
def test_a_job_comes_back_from_json(job: BuildJob):
    assert BuildJob.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_options_hold_no_paths_and_no_defaults():
    assert BuildJob(model="/m.onnx", builder="tensorrt").options == {}
    assert FULL.options == {
        "optimization_level": 3,
        "workspace_bytes": 1 << 30,
        "hardware_compatibility_level": "none",
        "version_compatible": True,
        "weight_streaming": True,
        "refit": True,
        "strip_weights": True,
        "plugins": ["ops.so"],
        "builder_args": {"a": "1", "b": "2"},
    }


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"builder": "tensorrt-rtxx"}, "FG101"),
        ({"optimization_level": 6}, "FG100"),
        ({"optimization_level": -1}, "FG100"),
        ({"workspace_bytes": 0}, "FG100"),
        ({"hardware_compatibility_level": "ampere"}, "FG100"),
        ({"chips": ("sm89", "sm89")}, "FG100"),
    ],
    ids=lambda value: str(value),
)
def test_what_no_builder_takes_is_a_wrong_call(wrong: dict[str, object], code: str):
    with pytest.raises(UsageError) as caught:
        BuildJob(**{"model": "/m.onnx", "builder": "tensorrt", **wrong})
    assert caught.value.code == code


def test_a_relative_path_is_refused():
    with pytest.raises(ValueError, match="absolute"):
        BuildJob(model="m.onnx", builder="tensorrt")


@pytest.mark.parametrize("document", [None, [], {}, {"schema": "fp8graph.plan/1"}, {"schema": "fp8graph.build-job/1"}])
def test_anything_else_is_no_job(document: object):
    with pytest.raises(InputError):
        BuildJob.from_json(document)
