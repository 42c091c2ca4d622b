"""INT8: -128 to 127, symmetric (no zero point): scales map the largest value to 127.

Source: ONNX, operator QuantizeLinear.
"""

from __future__ import annotations

from fp8graph.formats.spec import Format

FORMAT = Format(
    name="int8",
    kind="int",
    bits=8,
    exponent=0,
    mantissa=7,
    bias=0,
    infinities=False,
    nans=(),
    negative_zero=False,
    onnx_type=3,  # TensorProto.INT8
    min_opset=10,
    min_ir=1,
)
