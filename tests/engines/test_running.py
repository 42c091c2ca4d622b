"""Running engines: on a stand-in for the GPU, and, marked, on a real one."""

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import strict
from fake_gpu import Cuda, Runtime

import fp8graph
from fp8graph.base.errors import BackendError, InputError, UsageError
from fp8graph.data.plan import Profile
from fp8graph.engines import bench as benches
from fp8graph.engines.probe import devices
from fp8graph.flow import benching, looking
from fp8graph.runners import cuda as cudas
from fp8graph.runners.cuda import Device
from fp8graph.runners.engine import Engine, runtime_of

TABLES = {table.stem: table for table in strict.TABLES}
RTX = next(table for name, table in TABLES.items() if "rtx" in name)
MAGIC = {"tensorrt-rtx": b"vtrt", "tensorrt": b"ftrt"}
NO_GPU = pytest.mark.skipif(bool(devices()), reason="this machine has a GPU")


def file(folder: Path, runtime: str = "tensorrt-rtx", name: str = "m.engine") -> Path:
    path = folder / name
    path.write_bytes(MAGIC[runtime] + bytes(60))
    return path


def opened(folder: Path, table: Path = RTX, cuda: Cuda | None = None, **how: Any) -> tuple[Engine, Runtime, Cuda]:
    cuda = cuda or Cuda()
    runtime = Runtime(table, cuda, **how)
    name = "tensorrt-rtx" if "rtx" in table.name else "tensorrt"
    return Engine(file(folder, name), name, trt=runtime.trt, device=lambda: Device(cuda)), runtime, cuda


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_an_engine_gives_what_it_computes(tmp_path: Path, table: Path, rows: int):
    engine, runtime, _ = opened(tmp_path, table)
    x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    assert (list(engine.inputs), list(engine.outputs)) == (["x"], ["y"])
    for _ in range(2):
        np.testing.assert_array_equal(engine.run({"x": x})["y"], 2 * x)
    changed = runtime.strict.called("IExecutionContext.set_optimization_profile_async")
    assert changed == ([(1, 7)] if rows == 8 else [])
    np.testing.assert_array_equal(engine.run({"x": x[:1]})["y"], 2 * x[:1])


@pytest.mark.parametrize(("dtype", "gives"), [("BF16", np.float32), ("HALF", np.float16), ("FP8", np.float32)])
def test_types_that_numpy_does_not_have_come_as_float32(tmp_path: Path, dtype: str, gives: type):
    engine, _, _ = opened(tmp_path, dtype=dtype)
    y = engine.run({"x": np.ones((2, 3), ml_dtypes.bfloat16)})["y"]
    assert y.dtype == gives
    assert (y == 2).all()


def test_what_cannot_be_run_is_said(tmp_path: Path):
    engine, runtime, cuda = opened(tmp_path)
    with pytest.raises(InputError, match="no profile"):
        engine.run({"x": np.zeros((5, 3), np.float32)})
    with pytest.raises(InputError, match="not given"):
        engine.run({})
    runtime.runs = False
    with pytest.raises(BackendError, match="did not run"):
        engine.run({"x": np.zeros((2, 3), np.float32)})
    runtime.strict.answers["IExecutionContext.get_tensor_shape"] = lambda this, name: (-1, 3)
    with pytest.raises(BackendError, match="depends on the data"):
        engine.run({"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(InputError, match="no engine of tensorrt"):
        Engine(file(tmp_path), "tensorrt")
    refusing = Runtime(RTX, cuda)
    refusing.loads = False
    with pytest.raises(BackendError) as caught:
        Engine(file(tmp_path), "tensorrt-rtx", trt=refusing.trt, device=lambda: Device(Cuda()))
    assert (caught.value.code, caught.value.why) == ("FG133", "built for another GPU")


def test_memory_is_reused_given_back_and_may_run_out():
    cuda = Cuda(memory=100)
    with Device(cuda) as device:
        assert device.memory("a", 40) == device.memory("a", 30)
        device.memory("a", 60)
        assert cuda.memory == 40
        with pytest.raises(BackendError) as caught:
            device.memory("b", 50)
        assert (caught.value.status, caught.value.code) == (4, "FG132")
        assert device.name == "no GPU at all"
    assert (cuda.memory, cuda.held) == (100, {})


def test_no_gpu_and_no_package_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BackendError) as caught:
        Device(Cuda(devices=0))
    assert (caught.value.status, caught.value.code, caught.value.why) == (4, "FG505", "cudaErrorNoDevice")
    monkeypatch.setattr(cudas.ctypes, "CDLL", lambda name: None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError) as caught:
        Device()
    assert "cuda-python" in caught.value.what
    assert "fp8graph[gpu]" in caught.value.do


def test_whose_an_engine_is_stands_in_its_first_bytes(tmp_path: Path):
    for runtime in MAGIC:
        assert runtime_of(file(tmp_path, runtime)) == runtime
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a")
    assert runtime_of(tmp_path / "m.onnx") == runtime_of(tmp_path / "none") == ""


# ------------------------------------------------------------------------------------------------------- comparing


def test_an_engine_is_compared_with_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tests.small import model

    path = tmp_path / "m.onnx"
    path.write_bytes(model("(float[n,3] x) => (float[n,3] y) { y = Add(x, x) }").SerializeToString())
    cuda = Cuda()
    runtime = Runtime(RTX, cuda)
    monkeypatch.setattr("fp8graph.runners.engine._package", lambda name: runtime.trt)
    monkeypatch.setattr(cudas, "_bindings", lambda: cuda)
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(6, 1, 3)).astype(np.float32))
    engine = file(tmp_path)
    for a, b in ((path, engine), (engine, path), (f"{path}@onnxruntime", f"{engine}@tensorrt-rtx")):
        found = looking.compare(a, b, data=tmp_path / "d.npz")
        assert found.samples == 6
        assert found.outputs["y"].equal
    for a, b in ((path, f"{engine}@tensorrt"), (path, f"{engine}@reference"), (engine, engine)):
        with pytest.raises(UsageError):
            looking.compare(a, b, data=tmp_path / "d.npz")


# ------------------------------------------------------------------------------------------------------ measuring


class Clock:
    """An engine that takes the times it is told, over and over."""

    def __init__(self, *times_ms: float) -> None:
        self.times_ms, self.at = times_ms, 0

    def latencies_ms(self, feeds: Any, runs: int, warm_up: int = 0) -> list[float]:
        found = [self.times_ms[(self.at + index) % len(self.times_ms)] for index in range(runs)]
        self.at += runs + 1
        return found


class Rounds(Clock):
    """One that takes another time in each round."""

    def latencies_ms(self, feeds: Any, runs: int, warm_up: int = 0) -> list[float]:
        self.at += 1
        return [self.times_ms[self.at % len(self.times_ms)]] * runs


@pytest.mark.parametrize(
    ("a", "b", "least", "holds"),
    [
        (Clock(2.0), Clock(1.0), 1.9, True),
        (Clock(2.0), Clock(1.0), 2.1, False),
        (Clock(1.0), Clock(1.0), 1.0, True),
        (Clock(1.0), Clock(1.01), 1.0, False),
        (Clock(20.0), Rounds(10.0, 30.0), 1.0, False),  # twice as fast in most rounds, slower in the others
    ],
    ids=["twice", "not more than twice", "equal", "slower", "noise"],
)
def test_faster_is_what_stands_above_the_noise(a: Clock, b: Clock, least: float, holds: bool):
    assert benches.bench(a, b, [{}, {}], rounds=11).faster_by(least) is holds


def test_a_slow_drift_hits_both_sides(tmp_path: Path):
    class Drifting(Clock):
        clock = 1.0

        def latencies_ms(self, feeds: Any, runs: int, warm_up: int = 0) -> list[float]:
            Drifting.clock *= 1.1
            return [self.times_ms[0] * Drifting.clock] * runs

    found = benches.bench(Drifting(2.0), Drifting(1.0), [{}, {}], rounds=12)
    assert found.low is not None and found.high is not None
    assert 1.8 < found.low < 2.0 < found.high < 2.25


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (9, 2), (11, 2), (20, 6), (5, 1), (1, 1)])
def test_the_bound_is_the_textbooks_interval_of_the_median(count: int, rank: int):
    values = [float(value) for value in range(1, count + 1)]
    assert benches.interval(values[::-1]) == (float(rank), float(count + 1 - rank))


def test_times_are_the_devices(tmp_path: Path):
    engine, _, _ = opened(tmp_path, step_ms=4.0)
    found = benches.bench(engine, None, [{"x": np.zeros((2, 3), np.float32)}], rounds=6)
    assert (found.a.median_ms, found.a.p99_ms, found.a.runs_per_s) == (4.0, 4.0, 250.0)
    assert found.a.runs == 6 * 50
    assert not found.faster_by(0.1)


def test_the_command_measures_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cudas_of = {}

    def open_(path: Path, runtime: str) -> Engine:
        cuda = Cuda()
        cudas_of[Path(path).name] = made = Runtime(RTX, cuda, step_ms=3.0 if "slow" in Path(path).name else 2.0)
        return Engine(Path(path), runtime, trt=made.trt, device=lambda: Device(cuda))

    monkeypatch.setattr(benching, "Engine", open_)
    slow, fast = file(tmp_path, name="slow.engine"), file(tmp_path, name="fast.engine")
    done = fp8graph.bench(slow, fast, shapes={"x": Profile((4, 3), (4, 3), (4, 3))}, rounds=6)
    assert done.shapes == {"x": (4, 3)}
    assert done.device == "no GPU at all"
    assert done.benchmark.speedup == 1.5
    assert done.to_json()["speedup"] == {"median": 1.5, "low": 1.5, "high": 1.5}
    with pytest.raises(UsageError, match="no input 'z'"):
        fp8graph.bench(slow, shapes={"z": Profile((1,), (1,), (1,))})
    with pytest.raises(InputError, match="does not exist"):
        fp8graph.bench(tmp_path / "none.engine")
    with pytest.raises(UsageError, match="too few"):
        fp8graph.bench(slow, fast, rounds=3)
    from fp8graph.cli.main import main

    for least, status in (("1.4", 0), ("1.6", 1)):
        assert main(["bench", str(slow), str(fast), "--min-speedup", least, "--rounds", "6"]) == status


@NO_GPU
def test_without_a_gpu_the_status_is_4(tmp_path: Path):
    from fp8graph.cli.main import main

    assert main(["bench", str(file(tmp_path))]) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not devices(), reason="this machine has no NVIDIA GPU: run it on one with pytest -m gpu")
def test_on_a_gpu_the_engine_is_near_its_model_and_its_speed_is_measured(
    rtx: None, tmp_path: Path, request: pytest.FixtureRequest
):
    samples = Path(request.config.rootpath) / "samples" / "digits"
    engines = []
    for recipe in ("fp16", "fp8-default"):
        path = tmp_path / f"{recipe}.onnx"
        fp8graph.optimize(
            samples / "vit.onnx", output=path, recipe=recipe, data=samples / "calibration.npz",
            high_precision_dtype="fp16",
        )  # fmt: skip
        engines.append(tmp_path / f"{recipe}.engine")
        fp8graph.build(path, output=engines[-1], target="tensorrt-rtx")
        found = fp8graph.compare(path, engines[-1], data=samples / "heldout.npz")
        assert found.outputs["logits"].sqnr_db is None or found.outputs["logits"].sqnr_db > 20
    done = fp8graph.bench(*engines, rounds=6)
    assert done.benchmark.a.median_ms > 0
    assert done.benchmark.low is not None
