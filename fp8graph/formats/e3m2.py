"""E3M2: 6 bits, as fine as E5M2, from 1/16 to 28; no NaN, no infinity. Elements of MXFP6.

Source: OCP Microscaling Formats (MX) specification v1.0, 5.3.2; ONNX, operator QuantizeLinear from opset 28.
"""

from __future__ import annotations

from fp8graph.formats.spec import Format

FORMAT = Format(
    name="e3m2",
    kind="float",
    bits=6,
    exponent=3,
    mantissa=2,
    bias=3,
    infinities=False,
    nans=(),
    negative_zero=True,
    onnx_type=28,  # TensorProto.FLOAT6E3M2
    min_opset=28,
    min_ir=14,
)
