"""What builders say, in words. Messages are those of tensorrt_rtx 1.7.1, one for each row of the table."""

import re

import engine_models as models
import pytest

from fp8graph.base.errors import BackendError, UsageError
from fp8graph.engines.words import TABLE, explain
from fp8graph.graph.load import load

SAID = [
    (
        "Cannot compile for target(s) sm80, because the model contains HW-specific datatypes: fp8_e4m3.",
        2,
    ),
    (
        "Cannot compile for target(s) sm89, because the model contains HW-specific datatypes: fp4_e2m1.",
        2,
    ),
    ("Cannot compile operation 'mm' for Turing (SM75): FP32 GEMM is not supported", 2),
    ("Assertion failed: (scaleAllPositive || allowNegativeScale): Scale coefficients must all be positive", 4),
    ("Size mismatch when importing initializer: w", 4),
    ("Failed to import initializer: In node -1 (importInitializers): Failed to import initializer: w", 4),
    ("Attribute output_dtype specifies an unsupported data type float32.", 4),
    ("Tensor a_q_o has datatype FP8 but is not consumed by IPluginLayer, IDequantizeLayer, or IdentityLayer.", 4),
    ("Tensor a_q_o has datatype FP8 but is not produced by IPluginLayer, IQuantizeLayer, or IdentityLayer.", 4),
    ("Quantized constant (w) is only allowed before DQ or PLUGIN_V2 or kPLUGIN_V3 node", 4),
    ("mm: IMatrixMultiplyLayer must have same input types. `A` is of type Float and `B` is of type Half.", 4),
    ("ElementWiseOperation SUM must have same input types. But they are of types Half and Float.", 4),
    ("__add1 = add(__resh2, a_q_o.1)\nError is:\nInput 0's element type (half) differs from input 1's (float).", 4),
    ("Could not infer output types for operation:    31: deconv: mm_o-(bf16[1,32,16,16]) | x", 4),
    ("Could not infer output types for operation:    50: quantize: a_q_o-(f8[32,64]) | x-(f16[32,64])", 4),
    ("Graph contains more than one tensor named x.1_cast . In compileGraph", 4),
    ("quantize_ppg.cpp:3906: CHECK_EQ(lhs_scale->type(), rhs_scale->type()) failed.", 4),
    ("cudnn_impl.cpp:738: CHECK(opndA->type() == opndB->type()) failed. Input and filter have to be the same type", 4),
    ("Assertion failed: K == scaleSize: The number of scales is not equal to the number of output channels.", 4),
    ("Assertion failed: axis < inputDims.nbDims: The quantization axis must index a dimension of the input.", 4),
    ("The quantization axis must divide into whole blocks. Input dimension 0 = 256, scale dimension = 3.", 4),
    ("Mismatch between attribute output_dtype int8 and zero-point data type float8.", 4),
    ("TensorRT only supports Attention nodes with one output.", 4),
    ("decompose_composite_ops.cpp:59: Attention operation was not supported by a dedicated kernel.", 4),
    ("const_ppg.cpp:1478: CHECK(same_symbolic_shapes(op_output->dimensions(), A_dims)) failed", 4),
    ("Network has dynamic or shape inputs, but no optimization profile has been defined.", 2),
    ("Invalid optimization profiles for input tensors x, please ensure that MIN<=OPT<=MAX.", 2),
    ("Tactic Selection: no tactics to implement the operation within workspace limit.", 2),
    ("OutOfMemory (Requested size was 68719484928 bytes.)", 4),
    ("MyelinCheckException: graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed.", 4),
    ("Failed attempt to rename a layer from (Unnamed Layer* 11) to q as the new name is already in use.", 4),
    ("Plugin not found, are the plugin name, version, and namespace correct?", 4),
    ("Assertion failed: (ctx->tensors().count(inputName)): Node input was not registered.", 4),
    ("Failed to sort the model topologically.", 4),
    ("ONNX graph contains nested structures that exceed the maximum allowed by TensorRT!", 4),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("words") / "m.onnx"
    path.write_bytes(models.matmul().SerializeToString())
    return load(path).model


@pytest.mark.parametrize(("row", "message"), list(zip(TABLE, SAID, strict=True)), ids=lambda value: str(value)[:40])
def test_every_row_is_reached_by_its_message(model, row, message: tuple[str, int]):
    text, status = message
    assert re.search(row.pattern, text)
    error = explain("tensorrt-rtx", "m.onnx", {"errors": [], "log": [text]}, model)
    assert row.what in error.what
    assert row.why in error.why
    assert text.partition("\n")[0][:40] in error.why
    assert (error.do, error.code, error.status) == (row.do, row.code, status)
    assert type(error) is (UsageError if status == 2 else BackendError)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("Tensor a_q_o has datatype FP8 but is not consumed by X", "node 'a_q' (QuantizeLinear)"),
        ("Size mismatch when importing initializer: w", "tensor 'w' (FLOAT8E4M3FN), read by node 'w_dq'"),
        ("Could not infer output types for operation:    31: deconv: mm_o-(bf16) | x", "node 'mm' (MatMul)"),
        ("Tensor elsewhere has datatype FP8 but is not consumed by X", "'elsewhere'"),
    ],
)
def test_names_in_messages_are_looked_up_in_the_model(model, text: str, where: str):
    assert where in explain("tensorrt-rtx", "m.onnx", {"errors": [], "log": [text]}, model).where


@pytest.mark.parametrize("text", ["false", "", "Invalid Node - q"])
def test_the_parser_names_the_node(model, text: str):
    said = {"errors": [{"text": text, "node": "q", "op_type": "QLinearMatMul"}], "log": []}
    error = explain("tensorrt-rtx", "m.onnx", said, model)
    assert error.where == "m.onnx, node 'q' (QLinearMatMul)"
    assert error.why == "the parser does not import this form of QLinearMatMul"


def test_the_more_telling_line_counts(model):
    log = ["Failed to import initializer: w", "Size mismatch when importing initializer: w"]
    assert "shorter than its shape" in explain("tensorrt-rtx", "m.onnx", {"errors": [], "log": log}, model).what


def test_an_unknown_message_is_quoted_without_its_place_in_the_source(model):
    text = "IBuilder::buildSerializedNetwork: Error Code 9: Sunspots (today) In observe at /_src/sky.cpp:7)"
    error = explain("tensorrt-rtx", "m.onnx", {"errors": [], "log": [text]}, model)
    assert error.why == "tensorrt-rtx said: Sunspots (today)"
    assert error.code == "FG504"
    assert explain("tensorrt", "m.onnx", {"errors": [], "log": []}, model).why == "tensorrt gave no reason"
