"""INT4: -8 to 7, symmetric (no zero point): scales map the largest value to 7. A format of weights.

Source: ONNX, operator QuantizeLinear from opset 21.
"""

from __future__ import annotations

from fp8graph.formats.spec import Format

FORMAT = Format(
    name="int4",
    kind="int",
    bits=4,
    exponent=0,
    mantissa=3,
    bias=0,
    infinities=False,
    nans=(),
    negative_zero=False,
    onnx_type=22,  # TensorProto.INT4
    min_opset=21,
    min_ir=10,
)
