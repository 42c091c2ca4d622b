"""`compare --layers`: the error of each layer, its own and what has come together."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.compare import layers as measuring
from fp8graph.data.comparison import Comparison, LayerErrors
from fp8graph.testing.models import corpus
from tests.small import TWO, TWO_OPEN, feeds, model, refused

# TWO as another tool writes it: one scale, and a Q/DQ pair in front of each product.
QUANTIZED = """(float[2,32] x, float[32,32] w_a, float[32,32] w_b, float w_s) => (float[2,32] y) {
    zero = Constant <value = float8e4m3fn {0}> ()
    xq = QuantizeLinear (x, w_s, zero)
    xd = DequantizeLinear (xq, w_s)
    h = MatMul(xd, w_a)
    r = Relu(h)
    rq = QuantizeLinear (r, w_s, zero)
    rd = DequantizeLinear (rq, w_s)
    y = MatMul(rd, w_b)
}"""
NAMED = """(float[2,32] x, float[32,32] w_a, float[32,32] w_b, float w_s) => (float[2,32] y) {
    [q1] xq = QuantizeLinear (x, w_s)
    [d1] xd = DequantizeLinear (xq, w_s)
    [one] first = MatMul(xd, w_a)
    [two] second = Relu(first)
    [three] y = MatMul(second, w_b)
}"""
IF = """(float[2,32] x, float[32,32] w_a, bool[1] c) => (float[2,32] y) {
    h = MatMul(x, w_a)
    y = If (c) <
        then_branch = yes () => (float[2,32] t) { t = Relu(h) },
        else_branch = no () => (float[2,32] e) { e = Neg(h) }
    >
}"""


def layers(a, b, data, **more) -> LayerErrors:
    found = fp8graph.compare(a, b, data=data, layers=True, **more).layers
    assert found is not None
    return found


def db(reference, other) -> float:
    noise = ((reference - other).astype(np.float64) ** 2).sum()
    return float(10 * math.log10((reference.astype(np.float64) ** 2).sum() / noise))


def weights(proto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def rounded(array, scale):
    """An array as a Q/DQ pair hands it on."""
    import ml_dtypes

    return np.clip(array / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


@pytest.fixture
def pair():
    """A model, the same with Q/DQ, and data."""
    one = model(TWO)
    held = weights(one)
    scale = np.array(0.0371, np.float32)
    other = model(QUANTIZED, w_a=held["w_a"], w_b=held["w_b"], w_s=scale)
    return one, other, feeds(one, 3), held, scale


def test_a_layer_s_own_error_is_that_on_the_inputs_of_the_original(pair):
    one, other, data, held, scale = pair
    found = layers(one, other, data)
    assert [(item.key, item.op_type) for item in found.layers] == [("h", "MatMul"), ("r", "Relu"), ("y", "MatMul")]
    x = np.concatenate([feed["x"] for feed in data])
    h = x @ held["w_a"]
    r = np.maximum(h, 0)
    y = r @ held["w_b"]
    alone = {"h": rounded(x, scale) @ held["w_a"], "y": rounded(r, scale) @ held["w_b"]}
    after = np.maximum(alone["h"], 0)
    together = {"h": alone["h"], "r": after, "y": rounded(after, scale) @ held["w_b"]}
    by_key = {item.key: item for item in found.layers}
    assert by_key["r"].local.equal and by_key["r"].local.sqnr_db is None
    for key, array in (("h", h), ("y", y)):
        assert by_key[key].local.sqnr_db == pytest.approx(db(array, alone[key]), abs=1e-3)
        assert by_key[key].local.max_abs == pytest.approx(np.abs(array - alone[key]).max(), rel=1e-3)
    for key, array in (("h", h), ("r", r), ("y", y)):
        assert by_key[key].accumulated.sqnr_db == pytest.approx(db(array, together[key]), abs=1e-3)
    assert by_key["y"].accumulated.sqnr_db < by_key["y"].local.sqnr_db


def test_the_last_layers_agree_with_the_outputs(pair):
    one, other, data, *_ = pair
    found = fp8graph.compare(one, other, data=data, layers=True)
    assert found.layers is not None
    assert found.layers.layers[-1].accumulated == found.outputs["y"]


def test_groups_of_layers_and_open_shapes_change_no_number(monkeypatch, tmp_path):
    one = model(TWO_OPEN)
    data = feeds(one, 5)
    out = tmp_path / "o.onnx"
    fp8graph.optimize(one, output=out, data=data, target="tensorrt-rtx")
    whole = layers(one, out, data)
    opened = []
    monkeypatch.setattr(measuring, "_GROUP", 1)
    monkeypatch.setattr(measuring, "reference", lambda *a, true=measuring.reference: opened.append(a) or true(*a))
    assert layers(one, out, data) == whole
    assert len(opened) == 2 + 3 * 3  # shapes, then two models and the pieces for each of three layers


def test_ops_go_together_by_node_name_where_tensors_were_renamed():
    text = TWO.replace("h = M", "[one] h = M").replace("r = R", "[two] r = R").replace("y = M", "[three] y = M")
    one = model(text)
    scale = np.array(0.1, np.float32)
    held = weights(one)
    int8 = model(NAMED, w_s=scale, w_a=held["w_a"], w_b=held["w_b"])
    found = layers(one, int8, feeds(one, 2))
    assert [(item.key, item.name) for item in found.layers] == [("first", "one"), ("second", "two"), ("y", "three")]
    assert [item.local.equal for item in found.layers] == [False, True, True]


def test_ops_in_bodies_are_left_out_by_name_and_their_owner_is_a_layer():
    one = model(IF)
    found = layers(one, one, feeds(one, 2))
    assert [item.key for item in found.layers] == ["h", "y"]
    assert all(item.local.equal and item.accumulated.equal for item in found.layers)
    assert set(found.left_out) == {"y.then_branch/t", "y.else_branch/e"}


@pytest.mark.parametrize("name", ["function_product", "function_plain"])
def test_functions_are_measured_inside(name, tmp_path):
    proto = corpus()[name]
    data = [{"x": np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)}]
    out = tmp_path / "o.onnx"
    fp8graph.optimize(proto, output=out, data=data, target="tensorrt-rtx", allow_unquantized=True)
    found = layers(proto, out, data)
    assert len(found.layers) >= 4 and not found.left_out
    assert all(item.local.equal or item.local.sqnr_db > 20 for item in found.layers)


@pytest.mark.parametrize("plan", [True, False])
def test_a_batch_normalization_that_weights_took_over_is_no_error(plan, tmp_path):
    source = tmp_path / "m.onnx"
    proto = corpus()["conv_bn_relu"]
    onnx.save(proto, str(source))
    out = tmp_path / "o.onnx"
    data = [{item.name: _random(item) for item in proto.graph.input}]
    fp8graph.optimize(source, output=out, data=data, target="tensorrt-rtx")
    if not plan:
        (tmp_path / "o.onnx.plan.json").unlink()
    found = layers(source, out, data)
    products = [item for item in found.layers if item.op_type in ("Conv", "Gemm")]
    assert len(products) >= 3
    assert all(item.local.equal or item.local.sqnr_db > 25 for item in found.layers)


def test_a_scale_that_moved_through_attention_is_no_error_where_the_plan_is_there(tmp_path):
    source, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    proto = corpus()["split_scale_attention"]
    onnx.save(proto, str(source))
    data = [{item.name: _random(item) for item in proto.graph.input}]
    fp8graph.optimize(source, output=out, data=data, target="tensorrt-rtx")
    found = layers(source, out, data)
    assert all(item.local.equal or item.local.sqnr_db > 18 for item in found.layers)
    (tmp_path / "o.onnx.plan.json").unlink()
    found = layers(source, out, data)
    assert any(item.local.sqnr_db is not None and item.local.sqnr_db < 10 for item in found.layers)


def _random(value) -> np.ndarray:
    shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("high", ["fp16", "bf16"])
def test_a_layer_of_another_float_type_is_fed_what_the_original_computes(high, tmp_path):
    one = model(TWO)
    data, out = feeds(one, 3), tmp_path / "o.onnx"
    fp8graph.optimize(one, output=out, data=data, target="tensorrt-rtx", high_precision_dtype=high)
    found = {item.key: item for item in layers(one, out, data).layers}
    assert 25 < found["y"].local.sqnr_db < 50 and found["y"].accumulated.sqnr_db < found["y"].local.sqnr_db


def test_sequences_are_no_layers_and_what_reads_them_is():
    text = """(float[2,8] x) => (float[2,8] y) {
        h = Relu(x)
        all = SequenceConstruct(h, x)
        zero = Constant <value_int = 0> ()
        y = SequenceAt(all, zero)
    }"""
    found = layers(model(text), model(text), feeds(model(text), 1))
    assert [(item.key, item.local.equal) for item in found.layers] == [("h", True), ("y", True)]


@pytest.mark.parametrize("rows", ["2", "n"])
def test_a_layer_of_another_shape_is_left_out_with_both_shapes(rows):
    head = f"(float[{rows},8] x) => (float[{rows},8] y) "
    one = model(head + "{ h = Relu(x) y = Neg(h) }")
    other = model(head + "{ h = Transpose(x) b = Relu(h) r = Transpose(b) y = Neg(r) }")
    found = layers(one, other, feeds(one, 1))
    assert found.left_out == {"h": "its output is of shape [8, 2], it was [2, 8]"}
    assert [(item.key, item.local.equal) for item in found.layers] == [("y", True)]


def test_models_without_a_common_layer_are_refused():
    one = model("(float[2,8] x) => (float[2,8] y) { y = Relu(x) }")
    other = model("(float[2,8] x) => (float[2,8] z) { z = Relu(x) }")
    with refused(fp8graph.InputError, "FG403", "no layer in common"):
        layers(one, other, feeds(one, 1))


@pytest.mark.parametrize(
    ("b", "more", "why"),
    [
        ("m.onnx@onnxruntime", {}, "@onnxruntime is asked for"),
        (None, {"save_outputs": "o.npz"}, "there is one model"),
        ("m.onnx", {"load_outputs": "o.npz"}, "no tensors between layers"),
    ],
)
def test_layers_are_refused_where_there_are_no_two_models(monkeypatch, tmp_path, b, more, why):
    monkeypatch.chdir(tmp_path)
    one = model(TWO)
    onnx.save(one, "m.onnx")
    with refused(fp8graph.UsageError, "FG100", why):
        fp8graph.compare("m.onnx", b, data=feeds(one, 1), layers=True, **more)


def test_the_document_holds_the_layers_and_reads_back(pair):
    one, other, data, *_ = pair
    found = fp8graph.compare(one, other, data=data, layers=True)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Comparison.from_json(document) == found
    assert document["layers"][0].items() >= {"key": "h", "op_type": "MatMul"}.items()
    assert set(document["layers"][0]["local"]) == {"sqnr_db", "cosine", "max_abs", "new_nonfinite", "equal"}
    assert "layers" not in fp8graph.compare(one, other, data=data).to_json()


def test_the_command_shows_where_the_error_starts_and_a_report_joins_it(pair, tmp_path, cli_run):
    one, other, data, *_ = pair
    onnx.save(one, str(tmp_path / "a.onnx"))
    onnx.save(other, str(tmp_path / "b.onnx"))
    np.savez(tmp_path / "d.npz", x=np.stack([feed["x"] for feed in data]))
    call = ["compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--data", tmp_path / "d.npz", "--layers"]
    status, said = cli_run(*call)
    assert status == 0
    assert "layers, 2 of 3 with an error of their own" in said
    line = next(line for line in said.splitlines() if line.split()[:2] == ["h", "MatMul"])
    assert "the error starts here" in line
    status, said = cli_run(*call, "--json")
    (tmp_path / "c.json").write_text(said)
    status, said = cli_run("report", tmp_path / "c.json")
    row = next(line for line in said.splitlines() if line.split()[:1] == ["y"])
    assert "its own: SQNR" in row


@pytest.fixture
def cli_run(capsys):
    from fp8graph.cli.main import main

    def run(*args):
        status = main([str(arg) for arg in args])
        return status, capsys.readouterr().out

    return run
