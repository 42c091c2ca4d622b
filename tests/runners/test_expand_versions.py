"""The reference runs models of opsets and IR versions that ONNX Runtime does not load, or has no kernels for."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from fp8graph.base.errors import BackendError
from fp8graph.graph.load import load
from fp8graph.runners.expand.versions import expand
from fp8graph.runners.onnxruntime import OnnxRuntime
from fp8graph.runners.reference import reference
from tests.small import model, refused

BODIES = {
    "an op that stays": "y = Relu(x)",
    "a new version of an op": "y = Mod <fmod = 1> (x, two)",
    "a new attribute with the old meaning": 'a = SpaceToDepth <blocksize = 2, mode = "DCR"> (x) y = Neg(a)',
    "a new attribute with another meaning": 'a = SpaceToDepth <blocksize = 2, mode = "CRD"> (x) y = Neg(a)',
    "a new op": "y = SwiGLU(x, x)",
    "a new op of two results": 'y, p = CausalConvWithState <activation = "silu"> (rows, kernel)',
    "a new op by its inputs": """y, p = LinearAttention <q_num_heads = 2, kv_num_heads = 1, update_rule = "linear">
        (rows, keys, keys)""",
    "FP8": "q = QuantizeLinear <output_dtype = 17> (x, two) y = DequantizeLinear(q, two)",
    "FP6": "q = QuantizeLinear <output_dtype = 28> (x, two) y = DequantizeLinear(q, two)",
    "numbers that are counted": "r = Range(zero, four, one) y = Mul(x, r)",
}


def written(body: str) -> onnx.ModelProto:
    text = """(float[1,4,6,4] x) => (float y) <float two = {2}, float zero = {0}, float four = {4}, float one = {1},
        float[4,1,2] kernel = {1, 2, 3, 4, 5, 6, 7, 8}, int64[3] rank = {1, 4, 24}, int64[1] axis = {2},
        int64[1] first = {0}, int64[1] half = {12}>"""
    given = "rows = Reshape(x, rank) keys = Slice(rows, first, half, axis)"
    proto = model(f"{text} {{ {given} {body} }}", opset=28, ir=14)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of onnx.reference
@pytest.mark.parametrize("case", BODIES)
def test_the_newest_opset_is_run_as_onnx_says(case, tmp_path):
    proto, path = written(BODIES[case]), tmp_path / "m.onnx"
    onnx.save(proto, path)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 4, 6, 4)).astype(np.float32) * 5}
    (expected,) = ReferenceEvaluator(proto).run(None, feed)
    given = [runner.run(feed) for runner in (reference(load(proto).model), reference(path))]
    with suppress(BackendError):  # up to 1.31 ONNX Runtime loads none of these, 1.32 has kernels for some
        given.append(OnnxRuntime(path).run(feed))
    for outputs in given:
        np.testing.assert_allclose(outputs["y"], expected, rtol=1e-5, atol=5e-6)


def test_weights_beside_the_file_and_functions_are_kept(tmp_path):
    called = "(float[2,4] x, float[4,4] w) => (float[2,4] y) { a = MatMul(x, w) b = SwiGLU(a, a) y = local.twice(b) }"
    inner = '<domain: "local", opset_import: ["" : 28]> twice (a) => (b) { b = Add(a, a) }'
    proto, path = model(called, functions=inner, opset=28, ir=14), tmp_path / "m.onnx"
    feed = {"x": np.ones((2, 4), np.float32)}
    (expected,) = ReferenceEvaluator(proto).run(None, feed)
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    np.testing.assert_allclose(reference(path).run(feed)["y"], expected, rtol=2e-6)


def test_the_model_itself_stays():
    held = load(written("y = Relu(x)")).model
    before = ir.to_proto(held).SerializeToString(deterministic=True)
    done = expand(held)
    assert (done.graph.opset_imports[""], done.ir_version) == (26, 13)
    assert ir.to_proto(held).SerializeToString(deterministic=True) == before


def test_another_meaning_is_refused():
    body = "a = Cast <to = 10> (four) b = Cast <to = 10> (one) c = Cast <to = 10> (zero)"
    body += " r = Range <stash_type = 0> (c, a, b) s = Cast <to = 1> (r) y = Mul(x, s)"
    with refused(BackendError, "FG133", "Range", "stash_type", "opset 28"):
        reference(load(written(body)).model)
