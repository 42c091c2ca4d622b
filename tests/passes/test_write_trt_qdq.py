"""FP8 Q/DQ with one scale in TensorRT's own words, and back again."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.graph import walk
from fp8graph.graph.load import load
from fp8graph.testing import corpus, outputs
from fp8graph_passes.standardize_trt_qdq import StandardizeTrtQDQ
from fp8graph_passes.write_trt_qdq import WriteTrtQDQ
from tests.passes.doing import run
from tests.passes.test_write_fp4_quantization import product
from tests.small import feeds, model, needs_rtx

TEXT = product("6,32", "32,8", "MatMul(a, w)", "6,8")


def pair(
    *, shape: str = "", scale: str = "0.5", zero: str = "", how: str = "<output_dtype = 17>", of: str = "float8e4m3fn"
):
    """x through Q and DQ with a scale, and a zero point where one is given."""
    zero_point = f", {of} z = {{{zero}}}" if zero else ""
    rest = ", s, z" if zero else ", s"
    body = f"q = QuantizeLinear {how} (x{rest}) y = DequantizeLinear (q{rest})"
    return model(f"(float[4,16] x) => (float[4,16] y) <float{shape} s = {{{scale}}}{zero_point}> {{ {body} }}")


@pytest.mark.parametrize(
    "proto",
    [pair(), pair(shape="[1]"), pair(zero="0", how=""), pair(zero="0")],
    ids=["a number", "a list of one", "a zero point", "both"],
)
def test_a_pair_with_one_scale_has_tensorrts_names(proto):
    done = run(WriteTrtQDQ(), proto)
    assert done.count == 2 and done.model.opset_imports["trt"] == 1
    nodes = list(done.model.graph)
    assert [(node.domain, node.op_type) for node in nodes] == [
        ("trt", "TRT_FP8QuantizeLinear"), ("trt", "TRT_FP8DequantizeLinear")
    ]  # fmt: skip
    assert all(len(node.inputs) == 2 and not node.attributes for node in nodes)
    assert nodes[0].outputs[0].dtype == ir.DataType.FLOAT8E4M3FN
    assert set(done.model.graph.initializers) == {"s"}
    assert done.same()


SIXTEEN = ", ".join(["0.5"] * 16)


@pytest.mark.parametrize(
    "proto",
    [
        pair(shape="[16]", scale=SIXTEEN),
        pair(how="<output_dtype = 18>"),
        pair(how="<output_dtype = 19>"),
        pair(how="<output_dtype = 3>"),
    ],
    ids=["per channel", "e4m3fnuz", "e5m2", "int8"],
)
def test_what_the_operators_have_no_words_for_stays(proto):
    done = run(WriteTrtQDQ(), proto)
    assert done.count == 0 and "trt" not in done.model.opset_imports


@pytest.mark.parametrize("name", ["gemm", "if_captured", "loops", "long_attention"])
@pytest.mark.parametrize("high", ["keep", "fp16"])
def test_there_and_back_is_the_same_model(name, high):
    proto = corpus()[name]
    how = {"recipe": "fp8-default", "target": "reference", "high_precision_dtype": high}
    plain = fp8graph.optimize(proto, **how, data=feeds(proto, 2)).model
    there = run(WriteTrtQDQ(), plain)
    assert there.count > 0
    back = run(StandardizeTrtQDQ(), ir.to_proto(there.model))
    assert back.count == there.count and "trt" not in back.model.opset_imports
    before, after = (load(item).model for item in (plain, ir.to_proto(back.model)))
    for old, new in zip(walk.walk(before), walk.walk(after), strict=True):
        names = [[value.name if value else "" for value in node.inputs] for node in (old.node, new.node)]
        assert (old.node.op_type, names[0]) == (new.node.op_type, names[1])
    for feed in feeds(proto, 2):
        left, middle, right = (outputs(item, feed, by_reference=False) for item in (before, there.model, after))
        for output, array in left.items():
            np.testing.assert_array_equal(array, middle[output])
            np.testing.assert_array_equal(array, right[output])


@pytest.mark.parametrize("high", ["fp16", "fp32"])
@needs_rtx
def test_an_engine_of_it_runs_in_fp8(high, tmp_path):
    proto, out, engine = model(TEXT), tmp_path / "m.onnx", tmp_path / "m.engine"
    target = "tensorrt-rtx:sm89"
    fp8graph.optimize(
        proto, target=target, data=feeds(proto, 2), high_precision_dtype=high, passes=["write-trt-qdq"], output=out
    )
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert {"TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear"} <= kinds and "QuantizeLinear" not in kinds
    fp8graph.build(out, output=engine, target=target)
    (said,) = fp8graph.attest(engine, model=out).verdicts.values()
    assert (said.verdict, said.macs, said.weight_bytes) == ("fp8", 6 * 32 * 8, 32 * 8)
