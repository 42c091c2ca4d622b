"""Small models as text, and what tests ask of them again and again."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fp8graph
from fp8graph.data.plan import Plan

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'fp8graph[rtx]'",
)
# Two products with a Relu between, at a batch of two and at any.
TWO = """(float[2,32] x, float[32,32] w_a, float[32,32] w_b) => (float[2,32] y) {
    h = MatMul(x, w_a)
    r = Relu(h)
    y = MatMul(r, w_b)
}"""
TWO_OPEN = TWO.replace("float[2,", "float[n,")
# A product in each branch of an If.
BRANCHES = """(bool[1] c, float[2,8] x, float[8,8] w) => (float[2,8] y) {
    k = Squeeze(c)
    y = If (k) <
        then_branch = a () => (float[2,8] t) { s = Relu(x)  t = MatMul(s, w) },
        else_branch = b () => (float[2,8] t) { s = Neg(x)  t = MatMul(s, w) }
    >
}"""
# Four convolutions: `f` and `g` are concatenated, and `g` has a reader of its own.
CONCAT = """(float[1,16,8,8] x, float[16,16,3,3] w_a, float[16,16,3,3] w_b, float[16,32,3,3] w_c, float[16,16,3,3] w_d)
    => (float[1,16,8,8] y, float[1,16,8,8] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w_a)
    f = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (f, w_b)
    g = Relu(b)
    c = Concat <axis = 1> (f, g)
    y = Conv <pads = [1, 1, 1, 1]> (c, w_c)
    z = Conv <pads = [1, 1, 1, 1]> (g, w_d)
}"""


def chain(batch: int, *sizes: int) -> str:
    """Products with a Relu between, as text: `a`, `b` and so on with weights `w_a`, `w_b`, the last of them `y`."""
    letters = "abcdefgh"[: len(sizes) - 1]
    weights = "".join(f", float[{k},{n}] w_{name}" for name, k, n in zip(letters, sizes[:-1], sizes[1:], strict=True))
    lines, read = [], "x"
    for name in letters[:-1]:
        lines += [f"{name} = MatMul({read}, w_{name})", f"r{name} = Relu({name})"]
        read = f"r{name}"
    lines.append(f"y = MatMul({read}, w_{letters[-1]})")
    return f"(float[{batch},{sizes[0]}] x{weights}) => (float[{batch},{sizes[-1]}] y) {{ {' '.join(lines)} }}"


def model(
    text: str, *, opset: int = 21, ir: int = 10, seed: int = 0, functions: str = "", **weights: np.ndarray[Any, Any]
) -> onnx.ModelProto:
    """The model `(float[2,8] x, float[8,4] w) => (float[2,4] y) { y = MatMul(x, w) }`.

    Inputs whose names begin with `w` become weights: those given by name, else seeded normal numbers.
    """
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    head = f"<ir_version: {ir}, opset_import: [{imports}]>\n"
    proto = onnx.parser.parse_model(f"{head}small {text}\n{functions}")
    inputs = list(proto.graph.input)
    del proto.graph.input[:]
    for position, value in enumerate(inputs):
        if not value.name.startswith("w"):
            proto.graph.input.append(value)
            continue
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = [dim.dim_value for dim in tensor.shape.dim]
        array = weights.get(value.name)
        if array is None:
            array = np.random.default_rng([seed, position]).standard_normal(shape)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array).astype(dtype), value.name))
    return proto


def feeds(proto: onnx.ModelProto, count: int = 4, *, seed: int = 1, scale: float = 1.0) -> list[dict[str, Any]]:
    """Normal numbers for every float input, zeros and ones for the others; dynamic dimensions are 2."""
    held = {tensor.name for tensor in proto.graph.initializer}
    random = np.random.default_rng(seed)
    out: list[dict[str, Any]] = []
    for _ in range(count):
        feed = {}
        for value in proto.graph.input:
            if value.name in held:
                continue
            tensor = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            shape = [dim.dim_value or 2 for dim in tensor.shape.dim]
            numbers = random.standard_normal(shape) * scale if dtype.kind == "f" else random.integers(0, 2, shape)
            feed[value.name] = np.asarray(numbers).astype(dtype)
        out.append(feed)
    return out


def plan_of(proto: Any, **asked: Any) -> Plan:
    """The plan that `optimize` makes without data: observed scales have no numbers yet."""
    asked.setdefault("target", "tensorrt-rtx")
    return fp8graph.optimize(proto, plan_only=True, **asked).plan


def why(plan: Plan, key: str) -> tuple[str, str]:
    """What is done with an op, and the code that says why."""
    op = plan.ops[key]
    return op.do, op.why.code


def sha(path: Path) -> str:
    """Digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def written(path: Path, document: object) -> Path:
    """A document of JSON as a file."""
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def contents(folder: Path) -> Mapping[str, str]:
    """Every file below a folder with its digest."""
    return {path.relative_to(folder).as_posix(): sha(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def refused(error: type[fp8graph.Fp8GraphError], code: str, *says: str) -> Iterator[None]:
    """Expects this very class and code, and that the message holds each of `says`; no bare jargon, something to do."""
    with pytest.raises(fp8graph.Fp8GraphError) as raised:
        yield
    found = raised.value
    assert (type(found), found.code) == (error, code), str(found)
    text = str(found)
    for part in says:
        assert part in text, text
    assert "Traceback" not in text
