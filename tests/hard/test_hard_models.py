"""The 65 models of ../shared/bench/hard that break quantisers: what is to become of each, written down beforehand."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.calibrate.readers import npz
from fp8graph.flow import Optimized
from tests.conftest import SHARED
from tests.hard.judging import (
    fp8_products,
    interface,
    left_behind,
    outputs,
    products,
    scales,
    session,
    sqnr,
)
from tests.small import contents

CORPUS = SHARED / "bench" / "hard" / "models"
INDEX = CORPUS / "index.json"
CASES: dict[str, dict[str, Any]] = {}
if INDEX.is_file():
    CASES = {case["name"]: case for case in json.loads(INDEX.read_text(encoding="utf-8"))["cases"]}


@dataclass(frozen=True)
class Row:
    """`fp8` products with both operands in FP8 and `kept` ones by code where status is 0; what is `said` where it
    is 1; and why."""

    why: str
    fp8: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    status: int = 0
    said: tuple[str, ...] = ()


def fp8(count: int, why: str, **kept: int) -> Row:
    """Optimised."""
    return Row(why, count, kept)


def nothing(why: str, *said: str, **kept: int) -> Row:
    """Status 1: nothing to quantise, and the reasons say `said`."""
    return Row(why, 0, kept, 1, said)


# None is refused: status 3 is for what is broken, and all of these are valid or run in ONNX Runtime.
MODELS: dict[str, Row] = {
    "weight_shared_two_axes": fp8(3, "each of the three uses has codes and scales of its own, along its own axis"),
    "weight_tied_transposed": fp8(3, "Gather keeps the float table, the head has its own transposed codes"),
    "weight_on_left": fp8(2, "the weight is operand 0: its channels are rows"),
    "matmul_both_dynamic": fp8(6, "activations on both sides are observed, both products of the attention too"),
    "conv_1d_3d": fp8(1, "the 3-D Conv; the 1-D one is the first layer", FG208=1),
    "convtranspose_groups": nothing("transposed convolutions have no FP8 kernel", "transposed", "FG206"),
    "conv_depthwise_dilated": fp8(2, "the 1x1 Convs; no target runs the depthwise and grouped ones", FG304=2),
    "weight_constant_nodes": fp8(3, "Constant nodes are weights like any other"),
    "weight_constantofshape_identity": fp8(3, "chains of constants are folded first"),
    "weight_through_ops": fp8(6, "Cast, Transpose, Reshape, Unsqueeze, Concat and Slice of weights are folded first"),
    "init_as_input_ir3": fp8(1, "initialisers stop being inputs (FG219); the first Conv stays", FG208=1),
    "init_is_output": fp8(2, "the outputs W and bias stay as they are, the MatMul reads codes of its own"),
    "output_also_consumed": fp8(3, "Q/DQ lies on the edges, not on the outputs"),
    "names_empty_optional": fp8(1, "the MatMul; the Conv is the first layer, LSTM no product", FG208=1),
    "names_duplicate_nodes": fp8(4, "main graph and both branches"),
    "names_weird": fp8(4, "names are copied, never used as paths"),
    "names_collide": fp8(3, "new names evade those taken"),
    "scalars_zero_size": fp8(1, "the MatMul of 0 rows was never computed", FG213=1),
    "dims_symbolic": fp8(3, "three products, dims stay symbolic"),
    "rank_unknown": fp8(2, "activation scales need no rank"),
    "opset7_bn_dropout_upsample": fp8(1, "the opset is raised; the first Conv stays", FG208=1),
    "opset9_upsample_scales": fp8(1, "the opset is raised; the first Conv stays", FG208=1),
    "opset11_attr_axes_softmax": fp8(2, "the opset is raised, Softmax keeps its meaning"),
    "opset13_forms": fp8(2, "the opset is raised, axes become inputs"),
    "opset24_attention": fp8(5, "the five projections; head size and keys of this attention are too small", FG209=2),
    "contrib_fused_ops": fp8(1, "the MatMul; FusedMatMul and FusedGemm stay as they are"),
    "contrib_multihead": fp8(3, "the MatMuls; fused attentions stay as they are"),
    "ai_onnx_ml_mixed": fp8(1, "the MatMul between the trees"),
    "functions_nested": fp8(4, "inlined: two calls of a function have two weights"),
    "functions_overload": fp8(2, "inlined by domain, name and overload"),
    "if_branch_weights": fp8(3, "each branch has codes of its own"),
    "if_branch_never_taken": fp8(2, "the branch that no sample took has no range", FG213=1),
    "loop_captures_shared_weight": fp8(3, "top level, Loop and If read the same codes"),
    "scan_body_weights": fp8(2, "inside the body"),
    "nested_three_deep": fp8(5, "at every depth"),
    "subgraphs_64_siblings": fp8(65, "every branch"),
    "nested_if_depth_30": fp8(31, "at every depth, without one level more"),
    "sequence_optional": fp8(2, "values that are no tensors are passed by"),
    "int_bool_string_inputs": fp8(2, "only float tensors get Q/DQ"),
    "fp64_model": nothing("FP8 Q/DQ takes no double", "DOUBLE", "FG215", FG215=2),
    "fp16_model_int32_data": fp8(3, "bit patterns are read as such, scales stay above fp16's zero"),
    "bf16_weights_cast": fp8(2, "the Casts are folded"),
    "int8_qdq_prequantised": fp8(1, "the float layer; int8 ones keep their scales", FG230=2),
    "int8_qoperators": nothing("integer operators hold no float weight", "QLinearConv", "FG202"),
    "fp8_already": fp8(2, "it is in FP8: its codes and scales are taken over"),
    "fp8_already_matmul": fp8(2, "it is in FP8: its codes and scales are taken over"),
    "sparse_initialiser": fp8(2, "a sparse weight is made dense"),
    "annotations_metadata": fp8(2, "what is said beside the arithmetic stays"),
    "external_many_files": fp8(4, "weights from three files"),
    "typed_fields": fp8(2, "each field of a tensor is read"),
    "weights_zero_tiny_constant": fp8(4, "every scale is a positive normal number"),
    "activations_huge": fp8(3, "scales are float32"),
    "outlier_channel": fp8(1, "a scale for each channel"),
    "activations_all_zero": fp8(4, "a tensor of zeros gets a scale that saturates nothing small"),
    "nan_inf_unused_parts": fp8(2, "the dead branch holds a NaN and stays", FG212=1),
    "mask_finfo_min": fp8(6, "masked scores are no operand"),
    "einsum_matmuls": nothing("Einsum is no product that the recipe names", "Einsum", "FG202"),
    "gemm_variants": fp8(6, "channels follow transB, alpha and beta stay"),
    "conv_autopad_negpad": fp8(3, "attributes stay; the first Conv stays", FG208=1),
    "residual_concat_scales": fp8(4, "no scale is shared over Concat or Add"),
    "no_quantisable_op": nothing("it holds no product", "softmax", "FG206"),
    "single_matmul": fp8(1, "nothing but the MatMul"),
    "single_relu_fp": nothing("it holds no product", "Relu", "FG202"),
    "deep_chain_5000": fp8(20, "5000 nodes in a row, no recursion"),
    "unsorted_nodes": fp8(3, "sorted first"),
}  # fmt: skip

pytestmark = pytest.mark.shared


def test_every_model_of_the_corpus_has_a_row():
    assert MODELS.keys() == CASES.keys() and len(MODELS) == 65
    outcome = {0: "optimise", 1: "nothing", 3: "refuse"}
    assert [name for name, row in MODELS.items() if outcome[row.status] not in CASES[name]["expect"]] == []
    assert [name for name, row in MODELS.items() if row.fp8 < (CASES[name]["ops"][0] if not row.status else 0)] == []


def test_a_model_without_fp8_has_no_product_that_the_recipe_takes():
    for name in [name for name, row in MODELS.items() if row.status]:
        source = onnx.load(str(CORPUS / name / "model.onnx"))
        assert len(products(source)) == sum(MODELS[name].kept.values()), name


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `in`, `out`, `here` (the working directory) and `temporary` (TMPDIR), all of them empty."""
    for name in ("in", "out", "here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


@pytest.mark.parametrize("name", MODELS)
def test_each_becomes_what_the_table_says(name, quiet):
    row, source = MODELS[name], quiet / "in" / "model.onnx"
    shutil.copytree(CORPUS / name, quiet / "in", dirs_exist_ok=True, ignore=shutil.ignore_patterns("io.npz"))
    before = contents(quiet / "in")
    call = {"data": quiet / "in" / "calib.npz", "output": quiet / "out" / "OUT.onnx"}
    if row.status:
        with pytest.raises(fp8graph.UnmetError) as raised:
            fp8graph.optimize(source, **call)
        assert raised.value.code == "FG150" and all(part in str(raised.value) for part in row.said)
        plan = fp8graph.optimize(source, plan_only=True).plan
        assert left_behind(quiet / "out") == []
    else:
        done = fp8graph.optimize(source, **call)
        plan = done.plan
        arrays = ["OUT.onnx.plan.safetensors"] if plan.arrays else []
        assert left_behind(quiet / "out") == ["OUT.onnx", "OUT.onnx.plan.json", *arrays]
        agrees(name, source, quiet / "out" / "OUT.onnx", done)
    full = [key for key, op in plan.quantized() if len(op.inputs) == 2]
    kept = Counter(op.why.code for _, op in plan.kept() if op.op_type in ("Conv", "Gemm", "MatMul"))
    assert (len(full), kept) == (row.fp8, row.kept), row.why
    assert contents(quiet / "in") == before
    assert left_behind(quiet / "here") == left_behind(quiet / "temporary") == []


def agrees(name: str, source: Path, out: Path, done: Optimized) -> None:
    """ONNX Runtime computes the result, which differs by no more than FP8 does, and says the same of itself.

    What the summary says of ONNX Runtime's default level is so, on samples that calibration has not seen.
    """
    case, row = CASES[name], MODELS[name]
    was, made = onnx.load(str(source)), onnx.load(str(out))
    assert interface(made) == interface(was)
    assert {p.key: p.value for p in was.metadata_props}.items() <= {p.key: p.value for p in made.metadata_props}.items()
    assert len(fp8_products(made)) == row.fp8
    assert not {node.name for node in fp8_products(made)} & set(case["avoid"])
    assert all((scale > 0).all() and np.isfinite(scale).all() for scale in scales(made))
    stored = npz.load(CORPUS / name / "io.npz")
    inputs = {key.removeprefix("input:"): array for key, array in stored.items() if key.startswith("input:")}
    feeds = [{key: np.asarray(array[index]) for key, array in inputs.items()} for index in range(2)]
    first, second = outputs(session(str(source)), feeds), outputs(session(str(out)), feeds)
    assert list(first) == list(second)
    for output, arrays in first.items():
        if output in case["exact"]:
            assert [array.tobytes() for array in arrays] == [array.tobytes() for array in second[output]]
        elif arrays[0].dtype.kind == "f":
            assert sqnr(arrays, second[output]) >= case["min_sqnr_db"], output
    assert done.default_session is not None
    if done.default_session.safe:
        plainly = outputs(session(str(out), plain=True), feeds)
        floats = [output for output, arrays in plainly.items() if arrays and arrays[0].dtype.kind == "f"]
        assert min(sqnr(first[output], plainly[output]) for output in floats) >= case["min_sqnr_db"]
    else:
        assert done.default_session.why and "session.disable_quant_qdq" in done.default_session.options
