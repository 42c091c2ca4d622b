"""The builder's layer listing: its lines, its names, and what is none."""

import contextlib
import time

import engine_bytes as bytes_
import pytest

from fp8graph.engines.listing import FormError, parse
from fp8graph.engines.witness import EngineOp, layer_names

X8, X16 = ("x8_myl0", "32,64", "FP8"), ("x", "32,64", "Half")
W8, W16 = ("w_myl0", "64,128", "FP8"), ("w16_myl0", "64,128", "Half")
ALPHA = ("alpha_myl0", "1", "Float")
Y = ("y", "32,128", "Half")


def rows(*lines: str) -> list[tuple[int, str, str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]]:
    return [(op.profile, op.kind, op.said, op.names, op.operands, op.stored) for op in parse(bytes_.listing(*lines))]


def test_a_product_has_the_types_of_its_operands_and_not_of_its_scale_factors():
    text = bytes_.line("mm_myl0_1", "gemm", [X8], [W8, ALPHA, ALPHA], [Y], ["mm", "x_DQ", "w_DQ"])
    assert rows(text) == [(0, "product", "gemm", ("mm", "x_DQ", "w_DQ"), ("fp8", "fp8"), ("fp8",))]


def test_a_weight_is_followed_through_the_kernel_that_dequantizes_it():
    kernel = bytes_.line("__myl_CastMul_myl0_0", "kgen", [], [W8, ALPHA], [W16], ["w_DQ"])
    product = bytes_.line("mm_myl0_1", "gemm", [X16, W16], [ALPHA], [Y], ["mm"])
    assert rows(kernel, product)[1] == (0, "product", "gemm", ("mm",), ("fp16", "fp16"), ("fp8",))


def test_a_fused_attention_is_known_by_its_kernel():
    operands = [(name, "4,64,64", "FP8") for name in ("q_myl0", "k_myl0", "v_myl0")]
    mask, kernel = ("mask_myl0", "1,1,64,64", "Bool"), "_gemm_mha_v2_0x6f136769"
    text = bytes_.line("_gemm_mha_v2_myl0_3", "kgen", [*operands, mask], [], [Y], ["mixed", "scores"], kernel)
    assert rows(text) == [(0, "attention", "_gemm_mha_v2", ("mixed", "scores"), ("fp8",) * 3, ())]


def test_a_fusion_is_no_product():
    text = bytes_.line("__myl_CastMulFc_myl0_0", "runtime_fusion", [X8], [W8], [Y], ["mm"])
    assert rows(text) == [(0, "fusion", "runtime_fusion", ("mm",), ("fp8", "fp8"), ("fp8",))]


def test_profiles_are_known_by_the_names_in_their_program():
    first = bytes_.line("mm_myl0_1", "gemm", [X8], [W8], [Y], ["mm"])
    kernel = bytes_.line("__myl_MulCast_myl1_0", "kgen", [("x [profile 1]", "-1,64", "Half")], [], [X8], ["x_Q"])
    second = bytes_.line("mm_myl1_1", "gemm", [X8], [W8], [Y], ["mm"])
    assert [(row[0], row[3]) for row in rows(first, kernel, second)] == [(0, ("mm",)), (1, ("x_Q",)), (1, ("mm",))]


def test_what_names_no_node_and_multiplies_nothing_is_left_out():
    copy = bytes_.line("copy_myl0_0", "copy", [X16], [], [X16], [])
    product = bytes_.line("__mye1_unroll0_myl0_1", "gemm", [X8], [W8], [Y], [])
    assert [row[2] for row in rows(copy, product)] == ["gemm"]


@pytest.mark.parametrize(
    "name",
    [
        "/model/layers.0/MatMul",
        "a b",
        'a"b',
        "a]b",
        "a[b]",
        "a{b}",
        "a=b",
        "a, b",
        "é中",
        "a\\b",
        "[ONNX Layer: B]",
        "n" * 300,
    ],
)
def test_names_come_back_as_they_are(name: str):
    text = bytes_.line("mm_myl0_1", "gemm", [X8], [W8], [Y], [name, "other"])
    assert rows(text)[0][3] == (name, "other")


def test_names_may_be_separated_by_a_unit_separator():
    assert layer_names("[ONNX Layer: a]\x1f[ONNX Layer: b][ONNX Layer: c]") == ("a", "b", "c")
    assert layer_names("") == layer_names("no brackets") == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "something else",
        "Layers:\nName: mm_myl0_1",
        "Layers:\nName: mm_myl0_1, LayerType: gemm, Inputs: [",
        "Layers:\nName: mm, LayerType: ?!, Inputs: [], Outputs: [], TacticName: , StreamId: 0, Metadata: ",
        bytes_.listing(bytes_.line("mm [profile 9000]_myl0_1", "gemm", [X8], [W8], [Y], ["mm"])),
    ],
)
def test_another_form_is_told(text: str):
    with pytest.raises(FormError):
        parse(text)


def test_reading_takes_time_in_proportion_to_the_text():
    line = bytes_.line("mm_myl0_1", "gemm", [X8], [W8, ALPHA], [Y], ["mm"])
    for text in (bytes_.listing(*[line] * 5000), "Layers:\nName: " + "{ Name: " * 300_000):
        start = time.perf_counter()
        with contextlib.suppress(FormError):
            parse(text)
        assert time.perf_counter() - start < 5


def test_an_op_comes_back_from_json():
    for op in parse(bytes_.listing(bytes_.line("mm_myl0_1", "gemm", [X8], [W8], [Y], ["mm"]))):
        assert EngineOp.from_json(op.to_json()) == op
