"""Damaged files of every kind: always an error that says whose turn it is, never a traceback, never a file left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fp8graph
from fp8graph.testing.models import from_text
from tests.hard.judging import left_behind
from tests.hard.mutating import damaged, damaged_json, damaged_model
from tests.small import contents

EXAMPLES = 60
bounded = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
MODEL = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
m (float[2,16] x, bool which, float[16,16] w_0, float[16,16] w_1) => (float[2,16] y)
<int64[1] axes = {1}, float[2] unused = {1, 2}> {
  [first] h = MatMul(x, w_0)
  [act] r = local.Act <slope = 0.5> (h)
  [choose] c = If (which) <
    then_branch = a () => (float[2,16] a_out) <float[16,16] w_own> { a_out = MatMul(r, w_own) },
    else_branch = b () => (float[2,16] b_out) { b_out = Relu(r) }>
  p = Abs(c)
  s = ReduceSum <keepdims = 1> (p, axes)
  n = Div(c, s)
  [last] y = Gemm <transB = 1, alpha = 0.5> (n, w_1)
}
<domain: "local", opset_import: ["" : 21]> Act <slope> (a) => (b) { b = LeakyRelu <alpha: float = @slope> (a) }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file of each kind: model, data, plan with its arrays, ranges, recipe."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "m.onnx").write_bytes(from_text(MODEL).SerializeToString(deterministic=True))
    draw = np.random.default_rng(0)
    np.savez(
        folder / "c.npz",
        x=draw.standard_normal((3, 2, 16)).astype(np.float32),
        which=np.array([True, False, True]),
    )
    done = fp8graph.optimize(
        folder / "m.onnx", data=folder / "c.npz", output=folder / "p", passes="balance-rounding", compare=False
    )
    assert done.planned == 3 and (folder / "p.plan.safetensors").exists()
    fp8graph.calibrate(folder / "m.onnx", data=folder / "c.npz", output=folder / "r.json")
    text = resources.files("fp8graph.recipes").joinpath("fp8-default.toml").read_text(encoding="utf-8")
    (folder / "r.toml").write_text(text, encoding="utf-8")
    (folder / "p").unlink()
    (folder / "out").mkdir()
    return folder


def hold(folder: Path, name: str, content: bytes, **call: Any) -> None:
    """Optimises with this content of one file: a result, or an error of status 1 to 4 that leaves nothing."""
    sound = (folder / name).read_bytes()
    given_files = {"data": folder / "c.npz", **{key: folder / item for key, item in call.items() if item}}
    given_files = {key: str(item) for key, item in given_files.items() if key not in call or call[key]}
    try:
        (folder / name).write_bytes(content)
        before = contents(folder)
        refusal: fp8graph.Fp8GraphError | None = None
        try:
            fp8graph.optimize(folder / "m.onnx", output=folder / "out" / "o.onnx", **given_files)
        except fp8graph.Fp8GraphError as error:
            refusal = error
        made = left_behind(folder / "out")
        assert refusal is None or (1 <= refusal.status <= 4 and refusal.what), f"{refusal}\n{refusal.__cause__!r}"
        assert ("o.onnx" in made) if refusal is None else made == []
        for path in (folder / "out").iterdir():
            path.unlink()
        assert contents(folder) == before
    finally:
        (folder / name).write_bytes(sound)


Damage = Callable[[bytes], st.SearchStrategy[bytes]]
# The file that is damaged, how, and what the call is given besides (None: not given).
FILES: list[tuple[str, Damage, dict[str, Any]]] = [
    ("m.onnx", damaged, {}),
    ("m.onnx", damaged_model, {}),
    ("c.npz", damaged, {}),
    ("p.plan.json", damaged, {"plan": "p.plan.json"}),
    ("p.plan.json", damaged_json, {"plan": "p.plan.json"}),
    ("p.plan.safetensors", damaged, {"plan": "p.plan.json"}),
    ("r.json", damaged, {"ranges": "r.json", "data": None}),
    ("r.json", damaged_json, {"ranges": "r.json", "data": None}),
    ("r.toml", damaged, {"recipe": "r.toml"}),
]


@pytest.mark.parametrize(("name", "damage", "call"), FILES, ids=[f"{row[0]} {row[1].__name__}" for row in FILES])
def test_a_damaged_file_is_refused_or_harmless(folder, name, damage, call):
    @bounded
    @given(content=damage((folder / name).read_bytes()))
    def check(content: bytes) -> None:
        hold(folder, name, content, **call)

    check()


def test_arrays_that_are_damaged_and_signed_anew_are_refused_or_harmless(folder):
    """The digest in the plan keeps damage out; here it is that of the damaged file."""
    arrays, plan = folder / "p.plan.safetensors", folder / "p.plan.json"
    sound, document = arrays.read_bytes(), json.loads(plan.read_bytes())

    @bounded
    @given(content=damaged(sound))
    def check(content: bytes) -> None:
        arrays.write_bytes(content)
        signed = {**document, "sidecar": hashlib.sha256(content).hexdigest()}
        hold(folder, "p.plan.json", json.dumps(signed).encode(), plan="p.plan.json")

    try:
        check()
    finally:
        arrays.write_bytes(sound)
