"""What came in FP8 and is not computed in FP8 is stored as it came."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fp8graph
from tests.small import feeds, model

SCALE = "<float[32] s = {" + ", ".join(str(0.01 + i / 512) for i in range(32)) + "}>"
SHARED = f"""(float[4,32] x, float8e4m3fn[32,32] w) => (float[4,32] y) {SCALE} {{
    [came] d = DequantizeLinear <axis = 1> (w, s)
    [a] a = MatMul(x, d)
    [r] r = Relu(a)
    [y] y = MatMul(r, d)
}}"""


@pytest.mark.parametrize("high", [None, "fp16"])
@pytest.mark.parametrize("kept", [["a", "y"], ["y"]], ids=["both", "one of two"])
def test_a_kept_product_reads_its_codes(kept, high):
    proto = model(SHARED)
    done = fp8graph.optimize(
        proto,
        target="reference",
        data=feeds(proto, 2),
        high_precision_dtype=high,
        nodes_to_exclude=kept,
        allow_unquantized=True,
    )
    onnx.checker.check_model(done.model, full_check=True)
    assert done.planned == 2 - len(kept)
    came, left = ({item.name: item for item in one.graph.initializer} for one in (proto, done.model))
    np.testing.assert_array_equal(*(numpy_helper.to_array(one["w"]).view(np.uint8) for one in (came, left)))
    # One byte an element, once, whoever reads it: no float copy of the weight stays.
    assert [item.name for item in left.values() if len(item.dims) == 2] == ["w"]
    nodes = {node.name: node for node in done.model.graph.node}
    assert nodes["came"].op_type == "DequantizeLinear" and nodes["came"].input[0] == "w"
    if kept == ["a", "y"]:
        assert list(nodes["came"].output) == ["d"]
        assert done.comparison is not None
        assert high == "fp16" or done.comparison.outputs["y"].sqnr_db is None  # nothing changed at all
