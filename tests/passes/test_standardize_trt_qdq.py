"""TensorRT's own FP8 operators become ONNX's: the same codes, in words that every tool knows."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from fp8graph_passes.standardize_trt_qdq import StandardizeTrtQDQ
from tests.passes.doing import run

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((8, 4)).astype(np.float32)
CODES = WEIGHT.astype(ml_dtypes.float8_e4m3fn)
NAMED = ("TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear")


def made(*, domain="trt", ops=NAMED, codes=CODES, opset=18, scale=0.02, x=TensorProto.FLOAT, info=()):
    """x is quantized and moved as codes; one weight is stored in float, one as codes."""
    quantize, dequantize = ops
    nodes = [
        helper.make_node(quantize, ["x", "s"], ["q"], domain=domain),
        helper.make_node("Reshape", ["q", "shape"], ["moved"]),
        helper.make_node(dequantize, ["moved", "s"], ["d"], domain=domain),
        helper.make_node(dequantize, ["w", "s"], ["wd"], domain=domain),
        helper.make_node("MatMul", ["d", "wd"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.float32(scale), "s"),
        numpy_helper.from_array(np.array([2, 8], np.int64), "shape"),
        numpy_helper.from_array(codes, "w"),
    ]
    inputs = [helper.make_tensor_value_info("x", x, [1, 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants, value_info=list(info))
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


UINT8 = [helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in ("q", "moved")]


@pytest.mark.parametrize("domain", ["trt", ""])
@pytest.mark.parametrize("opset", [17, 18, 21, 23])
@pytest.mark.parametrize("codes", [CODES, CODES.view(np.uint8)], ids=["fp8", "bytes"])
def test_they_become_onnx_with_the_same_codes(domain, opset, codes):
    done = run(StandardizeTrtQDQ(), made(domain=domain, opset=opset, codes=codes, info=UINT8))
    assert done.count == 3
    assert {node.domain for node in done.model.graph} == {""}
    assert dict(done.kinds) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "Reshape": 1, "MatMul": 1}
    assert done.model.opset_imports == {"": max(21, opset)}
    for output in ("q", "moved"):
        assert done.node(output).outputs[0].dtype == ir.DataType.FLOAT8E4M3FN
    stored = done.node("wd").inputs[0].const_value.numpy()
    assert stored.dtype == CODES.dtype and stored.tobytes() == CODES.tobytes()
    assert done.same()


def test_standard_names_in_the_domain_of_tensorrt_lose_the_domain():
    text = made(ops=("QuantizeLinear", "DequantizeLinear"), opset=21)
    text.graph.node[0].attribute.append(helper.make_attribute("output_dtype", TensorProto.FLOAT8E4M3FN))
    done = run(StandardizeTrtQDQ(), text)
    assert done.count == 3 and {node.domain for node in done.model.graph} == {""}


def test_operators_in_a_function_are_found():
    proto = made(opset=21)
    body = list(proto.graph.node)
    function = helper.make_function("local", "layer", ["x", "s", "shape", "w"], ["y"], body, list(proto.opset_import))
    del proto.graph.node[:]
    proto.graph.node.append(helper.make_node("layer", ["x", "s", "shape", "w"], ["y"], domain="local"))
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    done = run(StandardizeTrtQDQ(), proto)
    assert done.count == 3 and not done.model.functions
    assert done.same()


def test_what_has_another_form_stays_and_says_so():
    proto = made(x=TensorProto.UINT8)
    del proto.graph.node[:2]
    proto.graph.node[0].input[0] = "x"
    proto.graph.node[1].input.append("s")
    done = run(StandardizeTrtQDQ(), proto)
    assert done.count == 0 and [item.code for item in done.ctx.notes.items()] == ["FG235", "FG235"]
    assert "trt" in done.model.opset_imports


def test_mxfp8_and_plain_models_are_left_alone():
    proto = made(ops=("TRT_MXFP8QuantizeLinear", "TRT_MXFP8DequantizeLinear"))
    before = onnx.ModelProto.FromString(proto.SerializeToString())
    done = run(StandardizeTrtQDQ(), proto)
    assert done.count == 0 and done.model.opset_imports == {"": before.opset_import[0].version, "trt": 1}
