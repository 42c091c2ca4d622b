"""Attention as exporters write it, built: fused in FP8 wherever the engine can, else what the plan says instead."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import fp8graph
from fp8graph.testing import corpus
from tests.small import feeds, model

pytestmark = pytest.mark.usefixtures("rtx")
PLAIN = "p = Softmax <axis = -1> (scores)"
GUARD = "added = Add (scores, mask) raw = Softmax <axis = -1> (added) bad = IsNaN (raw) p = Where (bad, nothing, raw)"
CAP = "low = Mul (scores, part) bent = Tanh (low) high = Mul (bent, cap) p = Softmax <axis = -1> (high)"
MASK = ", float[{b},1,{q},{k}] mask"
P_OUT, SCORES_OUT = ", float[{b},{h},{q},{k}] p", ", float[{b},{h},{q},{k}] scores"

# Sizes (batch, heads, queries, keys, head), what lies between the products, further inputs and outputs, type; and the
# verdict on both products (None: kept), whether one kernel computes them, and words of the reason where they are kept.
CASES = {
    "plain": ((2, 4, 64, 64, 32), PLAIN, "", "", "fp16", "fp8", True, ""),
    "plain in bf16": ((2, 4, 64, 64, 32), PLAIN, "", "", "bf16", "fp8", True, ""),
    "plain in fp32": ((2, 4, 64, 64, 32), PLAIN, "", "", "fp32", "fp8", True, ""),
    "a mask in fp32": ((2, 4, 64, 64, 32), GUARD, MASK, "", "fp32", "fp8", False, ""),
    "one query": ((2, 4, 1, 128, 32), PLAIN, "", "", "fp16", None, True, "single query"),
    "one query in fp32": ((2, 4, 1, 128, 32), PLAIN, "", "", "fp32", None, True, "single query"),
    "two queries": ((2, 4, 2, 128, 32), PLAIN, "", "", "fp16", "fp8", True, ""),
    "few keys": ((2, 4, 16, 16, 32), PLAIN, "", "", "fp16", None, True, "--min-shapes"),
    "one head": ((1, 1, 64, 64, 32), PLAIN, "", "", "fp16", "fp8", False, ""),
    "heads of 288": ((2, 2, 64, 64, 288), PLAIN, "", "", "fp16", "fp8", False, ""),
    "soft capping": ((2, 4, 64, 64, 32), CAP, "", "", "fp16", "fp8", False, ""),
    "a guard": ((2, 4, 64, 64, 32), GUARD, MASK, "", "fp16", "fp8", True, ""),
    "scores as output": ((2, 4, 64, 64, 32), PLAIN, "", SCORES_OUT, "fp16", "fp8", False, ""),
    "probabilities as output": ((2, 4, 64, 64, 32), PLAIN, "", P_OUT, "fp16", "fp8", False, ""),
    "a guard, probabilities as output": ((2, 4, 64, 64, 32), GUARD, MASK, P_OUT, "fp16", "fp8", False, ""),
}


@pytest.mark.parametrize(
    ("sizes", "between", "extra", "also", "high", "verdict", "fused", "why"), CASES.values(), ids=CASES
)
def test_each_form(tmp_path, sizes, between, extra, also, high, verdict, fused, why):
    b, h, q, k, d = sizes
    size = {"b": b, "h": h, "q": q, "k": k}
    text = f"""(float[{b},{h},{q},{d}] xq, float[{b},{h},{k},{d}] xk, float[{b},{h},{k},{d}] xv{extra.format(**size)},
      float[{d},{d}] wq, float[{d},{d}] wk, float[{d},{d}] wv, float[{d},{d}] wo)
      => (float[{b},{h},{q},{d}] y{also.format(**size)})
      <float eighth = {{0.125}}, float nothing = {{0}}, float part = {{0.02}}, float cap = {{50}}> {{
        qp = MatMul (xq, wq) kp = MatMul (xk, wk) vp = MatMul (xv, wv)
        scaled = Mul (qp, eighth) kt = Transpose <perm = [0, 1, 3, 2]> (kp)
        scores = MatMul (scaled, kt) {between}
        context = MatMul (p, vp) y = MatMul (context, wo)
      }}"""
    proto, out = model(text), tmp_path / "m.onnx"
    done = fp8graph.optimize(
        proto, target="tensorrt-rtx:sm89", data=feeds(proto, 1), high_precision_dtype=high, output=out
    )
    engine = tmp_path / "m.engine"
    fp8graph.build(out, output=engine, target="tensorrt-rtx:sm89")
    attested = fp8graph.attest(engine, model=out)
    assert set(attested.verdicts) >= {"qp", "kp", "vp", "y"}
    assert all(op.verdict == "fp8" for op in attested.verdicts.values())
    for key in ("scores", "context"):
        op = attested.verdicts.get(key)
        assert (op.verdict if op is not None else None) == verdict
        if verdict is None:
            assert done.plan.ops[key].why.code == "FG304" and why in done.plan.ops[key].why.text
    assert bool(kernels(engine)) is fused


def test_the_operator_that_must_fuse_does(tmp_path):
    out, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    proto = corpus()["long_attention"]
    how = {"target": "tensorrt-rtx:sm89", "high_precision_dtype": "fp16", "attention": "must-fuse"}
    fp8graph.optimize(proto, data="random", batch=2, output=out, **how)
    fp8graph.build(out, output=engine, target="tensorrt-rtx:sm89")
    attested = fp8graph.attest(engine, model=out)
    assert not attested.notes
    assert {key: op.verdict for key, op in attested.verdicts.items()} == dict.fromkeys(
        ["scores", "context", "scores2", "y"], "fp8"
    )


@pytest.mark.parametrize(("length", "kernel", "verdict"), [(64, b"_gemm_mha_v2", "fp8"), (1, b"_gemv_mha_v1", None)])
def test_a_cache_in_fp8_is_read_by_the_fused_kernel(tmp_path, length, kernel, verdict):
    """Prefill and decoding. What reads the cache as codes has no kernel for dequantizing it."""
    out, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    proto = corpus()["kv_cache"]
    random = np.random.default_rng(0)
    sizes = {"x": (2, length, 64), "past_key": (2, 2, 64, 32), "past_value": (2, 2, 64, 32)}
    feed = {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    how = {"target": "tensorrt-rtx:sm89", "high_precision_dtype": "fp16", "kv_cache": "fp8"}
    fp8graph.optimize(proto, data=[feed], output=out, **how)
    fp8graph.build(out, output=engine, target="tensorrt-rtx:sm89")
    verdicts = fp8graph.attest(engine, model=out).verdicts
    assert {op.verdict for op in verdicts.values()} == {"fp8"}
    assert (verdicts["scores"].verdict if "scores" in verdicts else None) == verdict
    assert kernels(engine) == {kernel}


def kernels(engine: Path) -> set[bytes]:
    """Kernels of fused attention in an engine."""
    return set(re.findall(rb"name=(_ge[mv]+_mha_v\d) ", engine.read_bytes()))
