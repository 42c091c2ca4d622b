"""E8M0 (UE8M0): the powers of two from 2^-127 to 2^127, and NaN. No sign, no zero: a format of scales, not of values.

Source: OCP Microscaling Formats (MX) specification v1.0, 5.4.1; ONNX, operator Cast from opset 24.
"""

from __future__ import annotations

from fp8graph.formats.spec import Format

FORMAT = Format(
    name="e8m0",
    kind="exponent",
    bits=8,
    exponent=8,
    mantissa=0,
    bias=127,
    infinities=False,
    nans=(0xFF,),
    negative_zero=False,
    onnx_type=24,  # TensorProto.FLOAT8E8M0
    min_opset=24,
    min_ir=12,
)
