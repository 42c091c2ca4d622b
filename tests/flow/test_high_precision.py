"""The type around FP8: what is asked for is there, what a type cannot hold is said, and numbers stay near."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.runners.onnxruntime import OnnxRuntime
from tests.flow.test_optimize import accuracy, session
from tests.small import feeds, model

ONNX_TYPES = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
# Measured in fp32, fp16, bf16: 27.4, 27.5, 27.2 and 33.1, 33.5, 33.3 dB (onnxruntime 1.31, x86-64, 2026-11).
FLOOR_DB = {
    ("cnn", "fp32"): 26,
    ("cnn", "fp16"): 26,
    ("cnn", "bf16"): 25,
    ("vit", "fp32"): 32,
    ("vit", "fp16"): 32,
    ("vit", "bf16"): 31,
}


@pytest.fixture(scope="module", params=["fp16", "bf16", "fp32"])
def typed(request, sample, calibration, tmp_path_factory):
    """Name, type, file and result of each sample model in each type."""
    out = tmp_path_factory.mktemp("typed") / f"{sample.stem}.onnx"
    done = fp8graph.optimize(sample, data=calibration, samples=64, output=out, high_precision_dtype=request.param)
    return sample, request.param, out, done


def test_products_yield_the_type_that_was_asked_for(typed):
    _, kind, out, done = typed
    proto = onnx.shape_inference.infer_shapes(onnx.load(str(out)), data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*proto.graph.value_info, *proto.graph.output)}
    products = [node for node in proto.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert {types[node.output[0]] for node in products} <= {ONNX_TYPES[kind]}
    assert {op.high for _, op in done.plan.quantized()} == {kind}


def test_inputs_and_outputs_keep_their_types(typed):
    sample, _, out, _ = typed
    before, after = onnx.load(str(sample)).graph, onnx.load(str(out)).graph
    assert [v.type for v in before.input] == [v.type for v in after.input]
    assert [(v.name, v.type.tensor_type.elem_type) for v in after.output] == [("logits", onnx.TensorProto.FLOAT)]


def test_numbers_stay_near_the_original(typed):
    sample, kind, _, done = typed
    output = done.comparison.outputs["logits"]
    assert output.sqnr_db > FLOOR_DB[sample.stem, kind] and done.comparison.problems == ()


def test_the_file_loads_in_onnx_runtime_and_keeps_its_accuracy(typed, digits):
    sample, kind, out, _ = typed
    if kind == "bf16":  # its CPU provider has hardly a kernel for it: the reference runs it as rounded fp32
        data = np.load(digits / "heldout.npz")
        from fp8graph.runners.reference import reference

        logits = reference(out).run({"image": data["image"]})["logits"]
        after = float((logits.argmax(axis=1) == data["label"]).mean())
    else:
        assert [value.name for value in session(out).get_outputs()] == ["logits"]
        after = accuracy(out, digits / "heldout.npz")
    assert after > accuracy(sample, digits / "heldout.npz") - 0.015


def test_weights_and_scales_are_small_and_exact(typed):
    _, kind, out, _ = typed
    tensors = {tensor.name: tensor for tensor in onnx.load(str(out)).graph.initializer}
    assert {t.data_type for name, t in tensors.items() if name.endswith("_scale")} == {onnx.TensorProto.FLOAT}
    floats = {t.data_type for name, t in tensors.items() if "_scale" not in name}
    assert onnx.TensorProto.FLOAT8E4M3FN in floats
    if kind != "fp32":
        large = [t for t in tensors.values() if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 64]
        assert not [t.name for t in large if "_scale" not in t.name]


def test_an_op_that_overflows_fp16_stays_in_fp32_and_the_numbers_are_right():
    text = """(float[2,32] x, float[32,32] w, float[1] w_big, float[32,32] w_two) => (float[2,32] y) {
        h = MatMul(x, w)  b = Mul(h, w_big)  s = Div(b, w_big)  y = MatMul(s, w_two)
    }"""
    proto = model(text, w_big=np.array([1e5]))
    done = fp8graph.optimize(proto, data=feeds(proto), high_precision_dtype="fp16")
    assert {key: op.high for key, op in done.plan.ops.items()} == {"h": "fp16", "b": "fp32", "s": "fp32", "y": "fp16"}
    assert [item.op for item in done.findings if item.code == "FG214"] == ["b", "s"]
    assert done.comparison.problems == () and done.comparison.outputs["y"].sqnr_db > 20


def test_bf16_holds_what_fp16_does_not():
    text = """(float[2,32] x, float[32,32] w, float[1] w_big) => (float[2,32] y) {
        h = MatMul(x, w)  b = Mul(h, w_big)  y = Div(b, w_big)
    }"""
    proto = model(text, w_big=np.array([1e6]))
    done = fp8graph.optimize(proto, data=feeds(proto), high_precision_dtype="bf16")
    assert {op.high for op in done.plan.ops.values()} == {"bf16"}
    assert done.comparison.outputs["y"].sqnr_db > 20


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_model_of_half_precision_keeps_its_type(kind):
    text = f"({kind}[2,32] x, {kind}[32,32] w) => ({kind}[2,32] y) {{ h = Relu(x) y = MatMul(h, w) }}"
    proto = model(text)
    done = fp8graph.optimize(proto, data=feeds(proto))
    assert {op.high for op in done.plan.ops.values()} == {"fp16" if kind == "float16" else "bf16"}
    assert [v.type for v in done.model.graph.output] == [v.type for v in proto.graph.output]
    assert done.comparison.outputs["y"].sqnr_db > 22


def test_a_typed_model_is_made_without_data_where_nothing_is_observed():
    """No op in FP8 needs a scale: only the type changes. fp16 still asks for the range of every tensor."""
    proto = model("(float[2,32] x) => (float[2,32] y) { h = Exp(x) y = Relu(h) }")
    done = fp8graph.optimize(proto, high_precision_dtype="bf16", allow_unquantized=True)
    import onnx_ir as ir

    feed = feeds(proto)[0]
    (y,) = OnnxRuntime(ir.from_proto(done.model)).run(feed).values()
    np.testing.assert_allclose(y, np.exp(feed["x"]), rtol=2e-2)


def test_a_constant_beyond_fp16_is_seen_where_there_is_nothing_to_observe():
    proto = model("(float[2] x, float w) => (float[2] y) { y = Mul(x, w) }", w=np.float32(1e6))
    done = fp8graph.optimize(proto, target="reference", high_precision_dtype="fp16", allow_unquantized=True)
    assert done.plan.ops["y"].high == "fp32"
    assert [finding.code for finding in done.findings] == ["FG214"]
