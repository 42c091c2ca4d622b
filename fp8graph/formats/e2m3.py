"""E2M3: 6 bits, as fine as E4M3FN, from 1/8 to 7.5; no NaN, no infinity. Elements of MXFP6.

Source: OCP Microscaling Formats (MX) specification v1.0, 5.3.2; ONNX, operator QuantizeLinear from opset 28.
"""

from __future__ import annotations

from fp8graph.formats.spec import Format

FORMAT = Format(
    name="e2m3",
    kind="float",
    bits=6,
    exponent=2,
    mantissa=3,
    bias=1,
    infinities=False,
    nans=(),
    negative_zero=True,
    onnx_type=27,  # TensorProto.FLOAT6E2M3
    min_opset=28,
    min_ir=14,
)
