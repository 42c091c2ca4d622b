"""The reference computes Attention as ONNX says, also where ONNX Runtime's kernel does not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from fp8graph.base.errors import BackendError
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.runners.expand.attention import expand
from fp8graph.runners.onnxruntime import OnnxRuntime
from fp8graph.runners.reference import reference
from tests.small import model

INPUTS = "float[2,4,6,8] q, float[2,4,6,8] k, float[2,4,6,8] v"


def written(mask: str, call: str = "Attention(x, k, v, m)") -> onnx.ModelProto:
    text = f"({INPUTS}, {mask} m, float[8,256] w_a, float[256,8] w_b) => (float[2,4,6,8] y)"
    return model(f"{text} {{ u = MatMul(q, w_a) x = MatMul(u, w_b) y = {call} }}", opset=23, ir=10)


def fed(mask: np.ndarray) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal((2, 4, 6, 8), np.float32) for name in "qkv"} | {"m": mask}


def test_a_mask_that_is_broadcast_along_the_queries_is_taken():
    proto, feed = written("bool[2,1,1,6]"), fed(np.array([[[[1, 1, 1, 1, 0, 0]]], [[[1, 0, 1, 0, 1, 0]]]], bool))
    with pytest.raises(BackendError):
        OnnxRuntime(load(proto).model).run(feed)
    (expected,) = ReferenceEvaluator(proto).run(None, feed)
    np.testing.assert_allclose(reference(load(proto).model).run(feed)["y"], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("hidden", [np.finfo(np.float32).min, -np.inf])
def test_a_row_that_a_float_mask_hides_throughout_is_what_onnx_says(hidden):
    proto, mask = written("float[6,6]"), np.zeros((6, 6), np.float32)
    mask[3] = hidden
    (expected,) = ReferenceEvaluator(proto).run(None, fed(mask))
    got = reference(load(proto).model).run(fed(mask))["y"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_a_file_with_weights_beside_it_is_expanded_on_a_copy(tmp_path):
    path, feed = tmp_path / "m.onnx", fed(np.ones((2, 1, 1, 6), bool))
    proto = written("bool[2,1,1,6]")
    expected = reference(load(proto).model).run(feed)["y"]
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    np.testing.assert_array_equal(reference(path).run(feed)["y"], expected)


def test_the_model_itself_stays_and_so_do_inputs_and_weights():
    given = load(written("bool[2,1,1,6]")).model
    before = ir.to_proto(given).SerializeToString(deterministic=True)
    done = expand(given)
    assert ir.to_proto(given).SerializeToString(deterministic=True) == before
    assert "Attention" not in {place.node.op_type for place in walk.walk(done)}
    assert [value.name for value in done.graph.inputs] == [value.name for value in given.graph.inputs]
    assert set(done.graph.initializers) == set(given.graph.initializers)
    assert done.graph.initializers["w_a"].const_value is given.graph.initializers["w_a"].const_value


def test_a_model_without_it_is_handed_back():
    given = load(model("(float[2] x) => (float[2] y) { y = Relu(x) }")).model
    assert expand(given) is given
