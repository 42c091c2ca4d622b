"""What `optimize` makes of the sample models: counted, measured, written beside each other, and nothing else."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import fp8graph
from fp8graph.data.plan import Plan
from tests.small import contents, feeds, model, refused, sha

PLANNED = {"cnn": 9, "vit": 19}
FLOOR_DB = {"cnn": 26.0, "vit": 32.0}  # measured 27.2 and 33.3 (onnxruntime 1.31, x86-64, 2026-11)


def session(path: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime with the settings under which it computes FP8 graphs as they are written."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["ReluQuantRewrite"]
    )


@functools.cache
def accuracy(path: Path, heldout: Path) -> float:
    """Share of held-out images (0..1) that the model names rightly."""
    data = np.load(heldout)
    (logits,) = session(path).run(None, {"image": data["image"]})
    return float((logits.argmax(axis=1) == data["label"]).mean())


def test_every_product_that_pays_is_planned(made):
    assert made.done.planned == PLANNED[made.name]
    assert made.done.planned_by == {"fp8": PLANNED[made.name], "int8": 0, "fp4": 0, "storage": 0}
    assert made.done.kept == len(made.done.plan.ops) - PLANNED[made.name]
    kept = {op.op_type for _, op in made.done.plan.kept()} & {"Conv", "Gemm", "MatMul"}
    assert kept == {"Conv"}  # the first one, on the image


def test_the_file_holds_what_the_plan_says(made):
    """Counted without our own code: products whose operands both come from an FP8 DequantizeLinear."""
    graph = onnx.load(str(made.out)).graph
    producer = {name: node for node in graph.node for name in node.output}
    codes = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN}

    def in_fp8(name: str) -> bool:
        node = producer.get(name)
        while node is not None and node.op_type in ("Reshape", "Transpose", "Squeeze"):
            node = producer.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return False
        quantizer = producer.get(node.input[0])
        return node.input[0] in codes or (quantizer is not None and quantizer.op_type == "QuantizeLinear")

    full = [
        node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul") and all(map(in_fp8, node.input[:2]))
    ]
    assert len(full) == PLANNED[made.name]
    assert len(codes) == sum(
        1 for _, op in made.done.plan.quantized() for q in op.inputs.values() if q.scale.origin == "computed"
    )


def test_exactly_the_model_and_its_plan_are_written_and_they_are_those_listed(made):
    assert contents(made.out.parent) == {Path(file.path).name: file.sha256 for file in made.done.files}
    assert set(contents(made.out.parent)) == {"out.onnx", "out.onnx.plan.json", "out.onnx.plan.safetensors"}
    for file in made.done.files:
        assert Path(file.path).stat().st_size == file.bytes
    assert made.done.model == made.out


def test_the_input_is_untouched(made):
    assert sha(made.source) == made.before


def test_the_plan_that_was_written_is_the_plan_that_was_returned(made):
    assert Plan.from_json(json.loads(made.plan.read_text())) == made.done.plan
    assert made.done.plan.settled and made.done.plan.data == "calibration.npz"
    text = made.plan.read_text() + made.out.read_bytes().decode("latin1")
    assert str(made.source.parent) not in text and str(made.out.parent) not in text  # no path of this machine


def test_interface_and_node_names(made):
    before, after = onnx.load(str(made.source)).graph, onnx.load(str(made.out)).graph
    for one, other in ((before.input, after.input), (before.output, after.output)):
        assert [(v.name, v.type) for v in one] == [(v.name, v.type) for v in other]
    names = [node.name for node in after.node]
    assert all(names) and len(set(names)) == len(names)
    assert {node.name for node in before.node if node.op_type in ("Conv", "Gemm", "MatMul")} <= set(names)


def test_the_comparison_is_that_of_outputs_on_the_data(made):
    found = made.done.comparison
    assert found is not None and found.samples == 256 and found.problems == ()
    output = found.outputs["logits"]
    assert output.sqnr_db > FLOOR_DB[made.name] and output.cosine > 0.998 and not output.equal
    one, other = (session(path) for path in (made.source, made.out))
    images = np.load(made.source.parent / "calibration.npz")["image"]
    a, b = (s.run(None, {"image": images})[0].astype(np.float64) for s in (one, other))
    assert output.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=0.2)
    assert output.max_abs == pytest.approx(np.abs(a - b).max(), rel=0.05)


def test_accuracy_on_held_out_images_stays_within_a_point_and_a_half(made, digits):
    before, after = (accuracy(path, digits / "heldout.npz") for path in (made.source, made.out))
    assert before > 0.98
    assert after > before - 0.015, f"{before:.4f} -> {after:.4f}"


def test_the_result_is_valid_onnx_and_loads_in_onnx_runtime(made):
    onnx.checker.check_model(onnx.load(str(made.out)), full_check=True)
    assert [output.name for output in session(made.out).get_outputs()] == ["logits"]


def test_planning_alone_writes_the_plan_alone(tmp_path, sample, made):
    out = tmp_path / "m.onnx"
    done = fp8graph.optimize(sample, output=out, plan_only=True)
    assert set(contents(tmp_path)) == {"m.onnx.plan.json"} and done.comparison is None
    assert [Path(file.path).name for file in done.files] == ["m.onnx.plan.json"]
    assert not done.plan.settled and done.planned == made.done.planned
    assert list(done.plan.ops) == list(made.done.plan.ops)


def test_without_an_output_nothing_is_written(tmp_path, monkeypatch, digits, calibration):
    monkeypatch.chdir(tmp_path)
    done = fp8graph.optimize(digits / "cnn.onnx", data=calibration, samples=4)
    assert isinstance(done.model, onnx.ModelProto) and done.files == () and contents(tmp_path) == {}


def test_without_comparing_there_is_no_comparison(digits, calibration):
    done = fp8graph.optimize(digits / "cnn.onnx", data=calibration, samples=4, compare=False)
    assert done.comparison is None and done.planned == 9


NOTHING = "(float[2,8] x) => (float[2,8] y) { y = Relu(x) }"


def test_nothing_to_quantize_is_status_1_with_reasons_and_no_file(tmp_path):
    proto = model(NOTHING)
    with refused(fp8graph.UnmetError, "FG150", "1x the recipe does not quantize Relu (FG202)"):
        fp8graph.optimize(proto, data=feeds(proto), output=tmp_path / "o.onnx")
    assert contents(tmp_path) == {} and fp8graph.UnmetError.status == 1
    done = fp8graph.optimize(proto, output=tmp_path / "o.onnx", allow_unquantized=True)
    assert set(contents(tmp_path)) == {"o.onnx", "o.onnx.plan.json"} and done.planned == 0


def test_the_most_frequent_reasons_come_first():
    text = (
        "(float[2,8] x, float[8,8] w) => (float[2,8] y) { a = MatMul(x, w) b = MatMul(a, w) c = Relu(b) y = Add(b, c) }"
    )
    with pytest.raises(fp8graph.UnmetError) as raised:
        fp8graph.optimize(model(text), op_types_to_exclude=["MatMul"])
    assert raised.value.why.startswith("2x MatMul was excluded (FG203); 1x")


def test_nothing_is_printed_and_only_our_own_loggers_are_used(tmp_path, digits, calibration, capfd, caplog):
    with caplog.at_level(logging.INFO):
        fp8graph.optimize(digits / "vit.onnx", data=calibration, samples=4, output=tmp_path / "o.onnx", verify=True)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    foreign = {record.name for record in caplog.records if not record.name.startswith("fp8graph")}
    assert foreign == set()


def test_random_data_is_noted_and_stamped_into_the_plan(digits):
    done = fp8graph.optimize(digits / "cnn.onnx", data="random", samples=2, plan_only=True)
    assert done.plan.data == "random, seed 0, 2 samples"
    assert [(item.code, item.severity) for item in done.findings if item.severity != "info"] == [("FG121", "warning")]


@pytest.mark.parametrize("name", ["calibrate", "compare", "check", "optimize", "inspect", "doctor", "build", "attest"])
def test_folders_of_the_same_name_hide_no_function(name):
    """`fp8graph/calibrate/` and `fp8graph/compare/` are imported by now."""
    assert callable(getattr(fp8graph, name))


def test_what_an_earlier_result_left_beside_the_output_goes(tmp_path, digits, calibration):
    out = tmp_path / "cnn.fp8.onnx"
    asked = {"output": out, "data": calibration, "compare": False, "force": True}
    fp8graph.optimize(digits / "cnn.onnx", external_data_size_threshold=1024, passes="balance-rounding", **asked)
    beside = {".data", ".plan.json", ".plan.safetensors"}
    assert {path.name.removeprefix(out.name) for path in tmp_path.iterdir()} == {"", *beside}
    fp8graph.optimize(digits / "cnn.onnx", recipe="fp8-amax", **asked)
    assert {path.name.removeprefix(out.name) for path in tmp_path.iterdir()} == {"", ".plan.json"}
