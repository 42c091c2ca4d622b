"""Where a Cast behind DQ keeps FP8 from its reader, DQ gives fp32 itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fp8graph_passes.widen_dequantized import WidenDequantized
from tests.passes.doing import run
from tests.small import model

UP = """(float16[2,8] x, float16 w_s, float[8,4] w) => (float[2,4] y) {
    q = QuantizeLinear <output_dtype = 17> (x, w_s)
    d = DequantizeLinear(q, w_s)
    c = Cast <to = 1> (d)
    y = MatMul(c, w)
}"""


def close(done) -> bool:
    before, after = done.outputs()
    pairs = [(before[name].astype(float), after[name].astype(float)) for name in before]
    return all(np.allclose(old, new, rtol=2e-3, atol=1e-3) for old, new in pairs)


def test_a_cast_up_goes_and_dq_gives_fp32():
    done = run(WidenDequantized(), model(UP, w_s=np.float16(0.3)))
    assert done.count == 1 and done.kinds["Cast"] == 0
    scale = done.inputs(done.inputs("y")[0])[1]
    assert done.constants[scale].dtype == np.float32 and done.constants[scale] == np.float16(0.3)
    assert close(done)


def test_a_cast_to_another_half_type_goes_from_fp32_down():
    text = UP.replace("to = 1", "to = 16").replace("float[8,4] w", "bfloat16[8,4] w")
    text = text.replace("(float[2,4] y)", "(bfloat16[2,4] y)")
    done = run(WidenDequantized(), model(text, w_s=np.float16(0.3), w=np.ones((8, 4))))
    assert done.count == 1 and done.kinds["Cast"] == 1
    assert done.node("c").inputs[0].dtype == ir.DataType.FLOAT


def test_other_readers_keep_what_they_had():
    text = UP.replace("(float[2,4] y)", "(float[2,4] y, float16[2,8] z)").replace(
        "y = MatMul(c, w)", "y = MatMul(c, w) z = Relu(d)"
    )
    done = run(WidenDequantized(), model(text, w_s=np.float16(0.3)))
    assert done.count == 1 and done.kinds["DequantizeLinear"] == 2
    assert done.inputs("z") == ["d"]
    assert close(done)


DOWN = UP.replace("float16[2,8] x, float16 w_s, float[8,4] w", "float[2,8] x, float w_s, float16[8,4] w")
DOWN = DOWN.replace("to = 1", "to = 10").replace("(float[2,4] y)", "(float16[2,4] y)")


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("the Cast goes down", DOWN),
        ("the scale is computed", UP.replace("float16 w_s", "float16 s").replace("w_s", "s")),
        ("nothing was dequantized", UP.replace("d = DequantizeLinear(q, w_s)", "d = Relu(x)")),
    ],
)
def test_it_stays_where(why, text):
    assert run(WidenDequantized(), model(text)).count == 0
