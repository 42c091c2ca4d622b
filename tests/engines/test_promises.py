"""Which ops are owed, in which precision, how they are found in a model, how large they are, and why they fall back."""

from pathlib import Path
from types import SimpleNamespace

import engine_models as models
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fp8graph.data.plan import Decision, Plan, Profile, Quant, Reason, Scale
from fp8graph.engines.causes import likely_cause
from fp8graph.engines.promises import of_model, of_plan, operands, planned_word
from fp8graph.engines.sites import constants, sites
from fp8graph.engines.sizes import op_sizes
from fp8graph.formats.spec import PerTensor
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types


def loaded(proto: onnx.ModelProto, tmp_path: Path) -> ir.Model:
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    model = load(tmp_path / "m.onnx").model
    infer_types(model)
    return model


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ({0: "e4m3fn", 1: "e4m3fn"}, "fp8"),
        ({0: "e4m3fn", 1: "e4m3fn", 2: "e4m3fn"}, "fp8"),
        ({1: "e4m3fn"}, "storage"),
        ({0: "int8", 1: "int8"}, "int8"),
        ({0: "e2m1", 1: "e2m1"}, "fp4"),
        ({0: "e4m3fn", 1: "int4"}, "fp8"),
    ],
)
def test_the_word_of_a_decision(inputs: dict[int, str], word: str):
    # Not a Decision: plans hold only formats that there are, and the word must stand before they come.
    assert planned_word(SimpleNamespace(inputs={i: SimpleNamespace(format=name) for i, name in inputs.items()})) == word


def test_an_op_that_was_taken_apart_is_found_in_its_products(tmp_path: Path):
    proto = models.attention()
    for node in proto.graph.node:
        role = {"MatMul": node.name, "Softmax": "softmax"}.get(node.op_type)
        if role:
            node.metadata_props[0].value = f"attn_out~{role}"
    quants = {slot: Quant(f"v{slot}", "e4m3fn", PerTensor(), Scale("computed", "amax")) for slot in (0, 1)}
    decision = Decision("Attention", "attn", "quantize", Reason("FG201", "t", "t"), inputs=quants)
    plan = Plan(structure="", target="tensorrt-rtx", recipe={}, ops={"attn_out": decision})
    (promise,) = of_plan(plan, sites(loaded(proto, tmp_path)))
    assert [site.node.name for site in promise.sites] == ["scores", "mixed"]


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (models.matmul(), {"mm_o": "fp8"}),
        (models.matmul(weight_only=True), {"mm_o": "storage"}),
        (models.attention(), {"scores_o": "fp8", "mixed_o": "fp8"}),
        (models.attention(quantized=False), {}),
        (models.attention(softmax=False), {"scores_o": "fp8"}),
        (models.function(), {"mm_o": "fp8"}),
        (models.loop(), {"loop_o.body/in_mm_o": "fp8"}),
        # a broken pair is still a promise
        (models.network(early=True), dict.fromkeys(("conv1_o", "conv2_o", "gemm_o", "mm_o"), "fp8")),
    ],
    ids=["matmul", "weight only", "attention", "plain attention", "no softmax pair", "function", "loop", "early pair"],
)
def test_what_the_pairs_of_a_model_promise(proto: onnx.ModelProto, expected: dict[str, str], tmp_path: Path):
    model = loaded(proto, tmp_path)
    assert {p.key: p.planned for p in of_model(model, sites(model), constants(model))} == expected


def test_names_in_engines(tmp_path: Path):
    proto = models.branches()
    for node in proto.graph.node[0].attribute[0].g.node:
        node.ClearField("name")
    named = {site.name.base: site.name.full for site in sites(loaded(proto, tmp_path))}
    assert named["if"] == "if"
    branch = proto.graph.node[0].attribute[0]
    first = branch.g.node[-1].output[0]
    assert named[f"node_of_{first}"] == f"node_of_{first} | {branch.g.name} ({branch.name}) | if (If)"
    assert [site.name.looped for site in sites(loaded(models.loop(), tmp_path))][-1] is True


def test_sizes_want_shapes(tmp_path: Path):
    model = loaded(models.matmul("rows"), tmp_path)
    assert op_sizes(model, {}) == {"mm_o": (None, 64 * 128)}
    assert op_sizes(model, {"x": Profile((1, 64), (5, 64), (9, 64))}) == {"mm_o": (5 * 64 * 128, 64 * 128)}
    assert op_sizes(model, {"x": Profile((1,), (5,), (9,))}) == {"mm_o": (None, 64 * 128)}


def cause(proto: onnx.ModelProto, tmp_path: Path, planned: str = "fp8") -> str:
    """The likely cause for the last product of a model."""
    model = loaded(proto, tmp_path)
    known = constants(model)
    site = [site for site in sites(model) if site.node.op_type in ("MatMul", "Conv", "ConvTranspose", "Gemm")][-1]
    return likely_cause(site, operands(site, model, known), known, planned, "high")


def product(op_type: str = "MatMul", before: str = "", scale: object = 0.02, axis: int = 0, **attributes: object):
    """One product whose activation goes through `before`, behind a Q/DQ pair with this scale."""
    g = models.Graph("fp32")
    conv = op_type.startswith("Conv")
    x = g.input("x", [1, 16, 8, 8] if conv else [32, 64])
    s = g.constant(np.asarray(scale, np.float32), "s")
    about = {"axis": axis} if np.ndim(scale) else {}
    q = g.op("QuantizeLinear", [x, s], "q", output_dtype=onnx.TensorProto.FLOAT8E4M3FN, **about)
    y = g.op("DequantizeLinear", [q, s], "dq", **about)
    if before:
        y = g.op(before, [y], "between", **({"kernel_shape": [1, 1]} if before.endswith("Pool") else {}))
    g.output(g.op(op_type, [y, g.weight8([16, 16, 3, 3] if conv else [64, 128], "w")], "op", **attributes))
    return g.model()


@pytest.mark.parametrize(
    ("proto", "said"),
    [
        (product(), ""),
        (product(before="Identity"), ""),
        (product(before="Relu"), "Relu 'between' stands between DequantizeLinear and operand 0"),
        (product("Conv", before="MaxPool"), "MaxPool 'between' stands between"),
        (product("ConvTranspose"), "transposed convolutions"),
        (product(scale=[0.02] * 64, axis=1), "the scales of operand 0 lie along axis 1, which the product sums over"),
        (product(scale=[0.02] * 32, axis=0), ""),
        (product("Conv", scale=[0.02] * 16, axis=1), "operand 0 has a scale for each index of axis 1"),
        (product("Conv", scale=[0.02]), "the scale of operand 0, 's', has shape [1]"),
        (models.matmul(weight_only=True), "operand 0, 'x', has no Q/DQ"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_likely_causes(proto: onnx.ModelProto, said: str, tmp_path: Path):
    found = cause(proto, tmp_path)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_cast_in_the_wrong_place_is_a_cause(tmp_path: Path):
    proto = product()
    for node in proto.graph.node:
        if node.name == "op":
            node.input[0] = "up"
    cast = onnx.helper.make_node("Cast", ["half"], ["up"], name="raise", to=onnx.TensorProto.FLOAT)
    half = onnx.helper.make_node("Cast", ["dq_o"], ["half"], name="lower", to=onnx.TensorProto.FLOAT16)
    proto.graph.node.insert(len(proto.graph.node) - 1, half)
    proto.graph.node.insert(len(proto.graph.node) - 1, cast)
    assert cause(proto, tmp_path).startswith("Cast 'raise' from FLOAT16 to FLOAT stands between")


@pytest.mark.parametrize(("other", "said"), [(0.02, ""), (0.03, "Concat 'both' joins tensors of different scales")])
def test_a_concat_of_different_scales_is_a_cause(other: float, said: str, tmp_path: Path):
    g = models.Graph("fp32")
    parts = [g.qdq(g.input(name, [32, 32]), f"{name}8", scale) for name, scale in (("x", 0.02), ("y", other))]
    g.output(g.op("MatMul", [g.op("Concat", parts, "both", axis=1), g.weight8([64, 128], "w")], "mm"))
    found = cause(g.model(), tmp_path)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_computed_scale_is_a_cause(tmp_path: Path):
    proto = product()
    scale = next(tensor for tensor in proto.graph.initializer if tensor.name == "s")
    proto.graph.initializer.remove(scale)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, []))
    assert cause(proto, tmp_path).startswith("the scale of operand 0, 's', is computed")


def test_a_weight_only_op_misses_no_activation(tmp_path: Path):
    assert cause(models.matmul(weight_only=True), tmp_path, planned="storage") == ""
